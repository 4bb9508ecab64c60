"""Step distillation: a student of a few network calls, with the guidance of its teacher folded into its weights.

Multistep consistency distillation (Heek et al. 2024, arXiv 2403.06807) of the guided teacher (Meng et al. 2022, arXiv
2210.03142): within each of `nfe` segments of time the student learns to jump from any z_t to the segment's end. Or
trajectory regression (Luhman & Luhman 2021, arXiv 2101.02388, by segments): it learns the jumps of stored trajectories.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from optimize.configs import Count
from optimize.diffusion.context import conditioned
from optimize.diffusion.denoiser import moved
from optimize.errors import UserError
from optimize.registry import PASSES
from optimize.training.loop import TrainingConfig, draw, train
from optimize.training.reread import NFE_MAX, blind_up_to, clock, jumps, reread, taught
from optimize.training.teacher import Guide, Levels

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optimize.diffusion.context import Context, Data
    from optimize.diffusion.denoiser import Denoiser
    from optimize.diffusion.model import Model
    from optimize.diffusion.sampling import Sampler
    from optimize.training.loop import Loss, Share
    from optimize.training.teacher import Clock

log = logging.getLogger(__name__)
AFTER_QUANTIZED = "training would change weights whose scales are fixed already; put distill before quantize"
SIGNAL_MIN = 1e-6  # with less at the noisiest time, an epsilon head cannot be divided by alpha at all


@PASSES.register("distill")
class Distill(TrainingConfig):
    """Teach the incoming model to sample in `nfe` calls what the guided teacher samples in many."""

    method: Literal["multistep_consistency", "trajectory_regression"] = "multistep_consistency"
    """How it is taught."""
    nfe: Annotated[int, Field(ge=1, le=64)] = 2
    """Network calls of the student: as many segments of time."""
    steps: Count = 800
    """Optimizer steps."""
    guidance: Annotated[float, Field(ge=0)] | None = None
    """Guidance weight to fold in; by default the teacher's, 0 is none."""
    teacher: str = "baseline"
    """Which model teaches: baseline, the untouched one."""
    teacher_steps: tuple[int, int] = (8, 64)
    """The teacher's DDIM steps over all time, rising from the first number to the second."""
    weighting: Literal["v_norm", "snr_plus_one"] = "v_norm"
    """Weight of |x^ - x|: sqrt(SNR + 1), or SNR + 1 as published."""
    trajectories: Count = 2048
    """For trajectory_regression: how many the teacher draws, once."""
    trajectory_steps: Annotated[int, Field(ge=1, le=1000)] = 8
    """For trajectory_regression: DPM-Solver++ steps of a trajectory, a multiple of nfe."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """AdamW's peak rate."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Decay of the averaged weights that are kept; 0 is off."""
    head: Literal["auto", "keep", "v"] = "auto"
    """What the student's output means: v instead of the noise where few calls need it (auto), always, or as it is."""
    reread_steps: Annotated[int, Field(ge=1)] = 300
    """Optimizer steps, before all others, in which an output that is read as v is fitted to the teacher's."""

    requires: ClassVar[frozenset[str]] = frozenset({"data"})
    provides: ClassVar[frozenset[str]] = frozenset({"trained", "distilled"})
    refuses_after: ClassVar[dict[str, str]] = {"quantized": AFTER_QUANTIZED}

    @field_validator("teacher_steps")
    @classmethod
    def _rising(cls, value: tuple[int, int]) -> tuple[int, int]:
        if not 1 <= value[0] <= value[1]:
            raise ValueError(f"{list(value)} given; two numbers >= 1 are needed, the second not below the first")
        return value

    @model_validator(mode="after")
    def _divides(self) -> Distill:
        if self.method == "trajectory_regression" and self.trajectory_steps % self.nfe:
            raise ValueError(
                f"trajectory_steps: {self.trajectory_steps} given, allowed are multiples of nfe {self.nfe}"
            )
        return self

    def apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        """The student with its sampler (DDIM, `nfe` steps, guidance folded in) and the record of its training.

        A head that is blind for so few calls is read as v first: see `optimize.training.reread`. Raises UserError without
        data or teacher, for a model that is a guided student already, and for a head that cannot be taught.
        """
        if context.data is None:
            raise UserError("distill: training data is needed and none was given. Name it in the recipe (data: path).")
        if context.teacher is None:
            raise UserError("distill.teacher: no teacher is there. Run it in a pipeline, which provides the baseline.")
        teacher = clipping(context.teacher(self.teacher).clone())
        refuse(model, teacher)
        self.refuse_heads(model, teacher)
        weight = self._weight(teacher)
        identity = {"guidance": weight, "teacher": teacher.id}
        guide = Guide(teacher.denoiser, teacher.sampler, weight)
        data = conditioned(context.data, model)
        student, seen = self._seeing(model.clone(), guide, data, context, identity)
        times: Clock = student.denoiser.schedule.time
        if self.method == "multistep_consistency":
            times = clock(student.denoiser, teacher.denoiser)
            loss = self.loss(student.denoiser, guide, data, context.seed)
        else:
            loss = self.regression(student.denoiser, self._trajectories(teacher, weight, context), context.seed)
        record = train(
            student.module,
            loss,
            self,
            seed=context.seed,
            name="distill",
            identity=identity,
            checkpoints=context.checkpoints,
            progress=context.progress,
            device=context.device,
        )
        about = {"method": self.method, "nfe": self.nfe, "guidance": weight, "teacher": self.teacher, **seen}
        return replace(student, sampler=self.sampler(student, weight, times)), {**about, **record}

    def reads_as_v(self, denoiser: Denoiser) -> bool:
        """Whether a student's output changes its meaning to v before it is taught."""
        prediction = denoiser.parameterization.prediction
        if self.head == "v":
            return prediction != "v"
        return self.head == "auto" and self._blind(denoiser)

    def _blind(self, denoiser: Denoiser) -> bool:
        return self.nfe <= blind_up_to(denoiser.parameterization.prediction, denoiser.schedule)

    def _seeing(
        self, student: Model, guide: Guide, data: Data, context: Context, identity: Any
    ) -> tuple[Model, dict[str, Any]]:
        """The student with a head that sees, and what the record says of it."""
        if not self.reads_as_v(student.denoiser):
            if self._blind(student.denoiser):
                log.warning("distill.head: keep given, and %s", jumps(student.denoiser.schedule, self.nfe))
            return student, {}
        fields = {name: getattr(self, name) for name in TrainingConfig.model_fields}
        config = TrainingConfig(**{**fields, "steps": self.reread_steps})
        made, record = reread(student, guide, data, config, context, identity)
        return made, {"head": f"{record['from']} re-read as v", "reread": record}

    def refuse_heads(self, model: Model, teacher: Model) -> None:
        """Raise UserError where the student's output, or the teacher's, cannot be taught or teach, with what can."""
        for denoiser in (model.denoiser, teacher.denoiser):
            alpha = float(denoiser.schedule.alpha(denoiser.schedule.noisiest))
            if denoiser.parameterization.prediction == "epsilon" and alpha < SIGNAL_MIN:
                raise UserError(
                    f"distill: the model predicts the noise, and at the noisiest time no signal is left (alpha {alpha:.1e}, "
                    f"allowed >= {SIGNAL_MIN:g}): nothing can be read from it there. Give the schedule it was trained with."
                )
        about = model.denoiser
        if self.reads_as_v(about) and about.schedule.kind != "vp":
            raise UserError(
                f'distill.head: "{self.head}" given, but v needs a variance-preserving schedule, and this one is '
                f"{about.schedule.kind} (head {about.parameterization.prediction}). Set head: keep."
            )
        if self.method == "trajectory_regression" and teacher.sampler.clip is None:
            self._refuse_trajectories(teacher.denoiser)

    def _refuse_trajectories(self, teacher: Denoiser) -> None:
        """Raise UserError where the steps of unclipped trajectories are too wide for the teacher's head."""
        steps, blind = self.trajectory_steps, blind_up_to(teacher.parameterization.prediction, teacher.schedule)
        if steps <= blind:
            more = f"{blind + 1} or more, " if blind < NFE_MAX else ""
            raise UserError(
                f"distill.trajectory_steps: {steps} given, and {jumps(teacher.schedule, steps)} Give {more}sampler.clip, "
                "or method: multistep_consistency."
            )

    def _weight(self, teacher: Model) -> float:
        return (teacher.sampler.guidance.cfg or 0.0) if self.guidance is None else self.guidance

    def sampler(self, student: Model, weight: float, times: Clock | None = None) -> Sampler:
        """DDIM at the segments' beginnings, the times the student was trained for."""
        from optimize.diffusion.sampling import Guidance, Sampler
        from optimize.training.objectives import segment_grid

        called = (times or student.denoiser.schedule.time)(segment_grid(self.nfe))
        folded = Guidance(folded=weight) if weight else Guidance()
        return Sampler(solver="ddim", steps=self.nfe, timesteps=tuple(called.tolist()), guidance=folded)

    def loss(self, student: Denoiser, guide: Guide, data: Data, seed: int) -> Loss:
        """The loss of one step (Heek et al., algorithm 1): w |x^ - x_target|, a norm per sample, not squared.

        The paper trains hundreds of thousands of steps and anneals its teacher from 64 to 1280 steps. In hundreds of
        steps what is learned has no time to travel through so many: in trials of 120 steps on the digits, few large
        ones came closer to the teacher's endpoints, and so did w = sqrt(SNR + 1), which favours clean times less.
        """
        from optimize.diffusion.network import TorchNetwork
        from optimize.training import objectives as ops

        times = clock(student, guide.denoiser)

        def loss(module: nn.Module, step: int, share: Share) -> Tensor:
            import torch

            batch = draw(data, self.batch, share, "distill", seed, step)
            teacher_steps = ops.annealed_steps(step, self.steps, *self.teacher_steps, segments=self.nfe)
            u = ops.segment_times(batch.uniform, self.nfe, teacher_steps)
            learner = student.with_network(TorchNetwork(module, student.network.inputs))
            level = Levels(student, batch.x.double(), times)
            (t, at_t), (s, at_s), (_, at_step) = level(u.t), level(u.s), level(u.step)
            z_t = at_t[0] * batch.x.double() + at_t[1] * batch.eps.double()

            def from_s(z_s: Tensor) -> Tensor:
                return learner(z_s, s, batch.condition)[0]

            with torch.no_grad():
                ends = level.expand(u.s == u.step)
                x_teacher = taught(guide, student, z_t, t, batch, at_t)
                target = ops.consistency_target(z_t, x_teacher, from_s, at_t, at_s, at_step, ends)
            squared = (learner(z_t, t, batch.condition)[0] - target).square().flatten(1).sum(1)
            distance = ops.pseudo_huber(squared, ops.huber_width(target[0].numel()))
            power = 0.5 if self.weighting == "v_norm" else 1.0
            return (ops.snr_plus_one(*at_t).flatten() ** power * distance).mean()

        return loss

    def regression(self, student: Denoiser, pool: Trajectories, seed: int) -> Loss:
        """The loss of one step: at the segments' beginnings, |x^ - x| for the x whose DDIM step lands where the
        teacher's trajectory does, weighted to the norm of v's error."""
        from optimize import rng
        from optimize.diffusion.network import TorchNetwork
        from optimize.training import objectives as ops

        u = (*ops.segment_grid(self.nfe), 0.0)

        def loss(module: nn.Module, step: int, share: Share) -> Tensor:
            import numpy as np
            import torch

            part = share.of(self.batch)
            segment = torch.arange(self.batch)[part] % self.nfe
            key = ("distill", seed, step, "trajectory")
            index = torch.from_numpy(rng.integers(0, pool.states.shape[1], (self.batch,), *key)[part])
            z_t, z_s = (pool.states[segment + i, index].to(share.device).double() for i in (0, 1))
            condition = moved(pool.condition(index), share.device)
            level = Levels(student, z_t, student.schedule.time)
            (t, at_t), (_, at_s) = (level(np.take(u, segment.numpy() + i)) for i in (0, 1))
            target = ops.inv_ddim(z_s, z_t, *at_s, *at_t)
            learner = student.with_network(TorchNetwork(module, student.network.inputs))
            squared = (learner(z_t, t, condition)[0] - target).square().flatten(1).sum(1)
            distance = ops.pseudo_huber(squared, ops.huber_width(target[0].numel()))
            return (ops.snr_plus_one(*at_t).flatten() ** 0.5 * distance).mean()

        return loss

    def _trajectories(self, teacher: Model, weight: float, context: Context) -> Trajectories:
        """Drawn once; kept beside the checkpoints, so that a killed run finds them again."""
        from optimize.training.loop import kept

        folder = context.checkpoints / "trajectories" if context.checkpoints else None
        key = {"config": self.to_json(), "seed": context.seed, "teacher": teacher.id, "weight": weight}
        sampler = self._teacher_sampler(teacher, weight)
        tensors = kept(folder, key, lambda: draw_trajectories(teacher, sampler, self, context))
        told = teacher.condition if teacher.denoiser.conditioning.kind == "tensors" else None
        return Trajectories(tensors["states"], tensors.get("labels"), told)

    def _teacher_sampler(self, teacher: Model, weight: float) -> Sampler:
        import numpy as np

        steps = self.trajectory_steps
        times = tuple(teacher.denoiser.schedule.time(np.arange(steps, 0, -1) / steps).tolist())
        guidance = teacher.sampler.guidance.model_copy(update={"cfg": weight or None})
        changed = {"solver": "dpmpp_2m", "steps": steps, "timesteps": times, "guidance": guidance}
        return teacher.sampler.model_copy(update=changed)

    @staticmethod
    def restore(module: nn.Module, record: dict[str, Any]) -> nn.Module:
        """Weights only: the skeleton stays as it is."""
        return module


def clipping(teacher: Model) -> Model:
    """The teacher with what its scheduler's own loop clips to, where it is sampled by that, said in its sampler."""
    from optimize.diffusion.followed import clip_of

    clip = clip_of(teacher.sampler, teacher.denoiser.schedule)
    return replace(teacher, sampler=teacher.sampler.model_copy(update={"clip": clip}))


def refuse(model: Model, teacher: Model) -> None:
    """Raise UserError where distillation of `model` from `teacher` cannot work, saying why and what does."""
    guidance = model.sampler.guidance
    if guidance.folded is not None:
        raise UserError(
            f"distill: the model already has guidance {guidance.folded:g} folded in; folding it again would amplify the "
            "condition twice. Distil the model from before that pass, with the nfe you want."
        )
    if teacher.sampler.guidance.folded is not None:
        raise UserError(
            "distill.teacher: the teacher is a folded student; name the untouched model, teacher: baseline."
        )


@dataclass(frozen=True)
class Trajectories:
    """The guided teacher's states at the ends of all segments, (nfe+1, N, C, H, W) float32, noise first; labels (N,), or
    `told`, which gives the condition of the trajectories of these numbers."""

    states: Tensor
    labels: Tensor | None
    told: Callable[[Sequence[int]], Any] | None = None

    def condition(self, rows: Tensor) -> Any:
        """What the trajectories in `rows` (B,) were conditioned on."""
        if self.told is not None:
            return self.told(rows.tolist())
        return None if self.labels is None else self.labels[rows]


def draw_trajectories(teacher: Model, sampler: Sampler, config: Distill, context: Context) -> dict[str, Tensor]:
    """`states` and, for a conditional teacher, `labels` of `config.trajectories` seeded trajectories, on the CPU."""
    import torch

    from optimize import rng
    from optimize.diffusion.sampling import Step, trajectory

    about, count, stride = teacher.denoiser.conditioning, config.trajectories, sampler.steps // config.nfe
    drawn = {}
    if about.kind == "class":
        numbers = rng.integers(0, about.classes, (count,), "distill", context.seed, "labels")
        drawn["labels"] = torch.tensor([about.label(int(number)) for number in numbers])
    teacher.module.to(context.device)
    parts = []
    with torch.inference_mode(), context.progress("teacher trajectories", count) as advance:
        for start in range(0, count, config.batch):
            seeds = range(start, min(start + config.batch, count))
            z = torch.stack(
                [torch.from_numpy(rng.normal(teacher.shape, "distill", context.seed, "z", i)) for i in seeds]
            )
            given = drawn["labels"][start : seeds.stop] if drawn else teacher.condition(seeds)
            path = trajectory(sampler, teacher.denoiser, z.to(context.device), moved(given, context.device))
            states = [(s.z if isinstance(s, Step) else s).float().cpu() for s in path]
            parts.append(torch.stack(states[::stride]))
            advance(len(seeds))
    return {"states": torch.cat(parts, dim=1), **drawn}
