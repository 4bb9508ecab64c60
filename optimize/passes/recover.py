"""Recover a pruned network: finetune on the data with the denoising loss plus output distillation from the original.

Kim et al. 2023 (BK-SDM, arXiv 2305.15798): task loss and output distillation; conditions are dropped to the null class
as in training (Ho & Salimans, arXiv 2207.12598), so that guidance keeps working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from optimize.diffusion.context import conditioned
from optimize.errors import UserError
from optimize.registry import PASSES
from optimize.training.loop import TrainingConfig, draw, train

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from optimize.diffusion.context import Context, Data
    from optimize.diffusion.denoiser import Denoiser
    from optimize.diffusion.model import Model
    from optimize.diffusion.schedule import Schedule
    from optimize.training.loop import Loss, Share

AFTER_QUANTIZED = "training would change weights whose scales are fixed already; put recover before quantize"
AFTER_DISTILLED = "the denoising loss would undo the few-step student; put recover before distill"


@PASSES.register("recover")
class Recover(TrainingConfig):
    """Finetune on the data, with the untouched model as teacher."""

    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """AdamW's peak rate."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.98
    """Decay of the averaged weights that are kept; 0 is off."""
    denoising: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the denoising loss against the data."""
    output_distillation: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the distance to the teacher's output; 0 needs no teacher."""
    condition_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of labels replaced by the null class."""
    teacher: str = "baseline"
    """Which model teaches: baseline, the untouched one."""

    requires: ClassVar[frozenset[str]] = frozenset({"data"})
    provides: ClassVar[frozenset[str]] = frozenset({"trained"})
    refuses_after: ClassVar[dict[str, str]] = {"quantized": AFTER_QUANTIZED, "distilled": AFTER_DISTILLED}

    def apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        """The finetuned model and the record of its losses; structure and sampler stay. Raises UserError without data."""
        if context.data is None:
            raise UserError("recover: training data is needed and none was given. Name it in the recipe (data: path).")
        student = model.clone()
        teacher = self._teacher(context)
        record = train(
            student.module,
            self.loss(student.denoiser, teacher, conditioned(context.data, model), context.seed),
            self,
            seed=context.seed,
            name="recover",
            checkpoints=context.checkpoints,
            progress=context.progress,
            device=context.device,
        )
        return student, {**record, "teacher": self.teacher if teacher is not None else None}

    def _teacher(self, context: Context) -> Denoiser | None:
        if self.output_distillation == 0:
            return None
        if context.teacher is None:
            raise UserError("recover.output_distillation: it needs a teacher and none is there. Set it to 0.")
        return context.teacher(self.teacher).clone().denoiser

    def loss(self, student: Denoiser, teacher: Denoiser | None, data: Data, seed: int) -> Loss:
        """The loss of one step: mean squared errors of the raw output, to the data and to the teacher's prediction."""
        from optimize import rng
        from optimize.diffusion.denoiser import coefficients
        from optimize.diffusion.network import TorchNetwork

        def loss(module: nn.Module, step: int, share: Share) -> Tensor:
            import torch

            key = ("recover", seed, step)
            batch = draw(data, self.batch, share, *key)
            drop = rng.uniform((self.batch,), *key, "dropout")[share.of(self.batch)] < self.condition_dropout
            condition = student.dropped(batch.condition, torch.from_numpy(drop))
            t = torch.from_numpy(training_times(student.schedule, batch.uniform)).to(share.device)
            alpha, sigma = coefficients(student.schedule, t, batch.x)
            z = alpha * batch.x + sigma * batch.eps
            network, about = TorchNetwork(module, student.network.inputs), student.parameterization
            raw = about.mean(network(**student.feed(z, t, condition))).float()
            total = self.denoising * (raw - about.target(batch.x, batch.eps, alpha, sigma)).square().mean()
            if teacher is not None:
                taught = about.target(*_teach(teacher, z, t, condition), alpha, sigma)
                total = total + self.output_distillation * (raw - taught).square().mean()
            return total

        return loss

    @staticmethod
    def restore(module: nn.Module, record: dict[str, Any]) -> nn.Module:
        """Weights only: the skeleton stays as it is."""
        return module


def training_times(schedule: Schedule, uniform_B: np.ndarray) -> np.ndarray:
    """Native times (B,) float64 of uniforms: whole indices (VP), flow time, or ln sigma uniform (VE)."""
    import numpy as np

    if schedule.kind == "vp":
        return np.floor(uniform_B * len(schedule.alpha_bar))
    if schedule.kind == "flow":
        return uniform_B.clip(1e-3, 1 - 1e-3)
    low, high = np.log(schedule.sigma_min), np.log(schedule.sigma_max)
    return np.exp(low + uniform_B * (high - low))


def _teach(teacher: Denoiser, z: Tensor, t: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
    """The teacher's unguided (x^, e^) without gradients, on the device of `z`."""
    import torch

    teacher.network.module.to(z.device)  # type: ignore[attr-defined]
    with torch.no_grad():
        return teacher(z, t, condition)
