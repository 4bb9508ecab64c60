"""Distill: the student's sampler, the loss on exact denoisers, refusals, determinism and resume."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from optimize.diffusion.context import Context, Data
from optimize.diffusion.denoiser import Conditioning, Denoiser
from optimize.diffusion.model import Model
from optimize.diffusion.network import TorchNetwork
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import Guidance, Sampler, sample
from optimize.errors import UserError
from optimize.passes.distill import Distill
from optimize.registry import PASSES
from optimize.training.loop import Share
from optimize.training.teacher import Guide

SHORT = Distill(steps=2, batch=4, learning_rate=1e-3, warmup=0, ema=0.0, precision="fp32", checkpoint_s=0)
WIDTH = 0.5


def context(model: Model, data: Data | None, **more: Any) -> Context:
    return Context(seed=0, data=data, teacher=lambda name: model, **more)


def same(a: Model, b: Model) -> bool:
    return all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())


def with_head(model: Model, head: str) -> Model:
    return replace(model, denoiser=replace(model.denoiser, parameterization=Parameterization(head)))  # type: ignore[arg-type]


def test_it_is_registered_and_comes_before_quantization() -> None:
    assert PASSES.get("distill") is Distill
    assert "distilled" in Distill.provides and Distill.requires == {"data"}
    assert set(Distill.refuses_after) == {"quantized"}


@pytest.mark.parametrize("nfe", [1, 2, 4])
def test_the_student_samples_in_nfe_calls_with_guidance_folded_in(tiny_model: Model, tiny_data: Data, nfe: int) -> None:
    config = SHORT.model_copy(update={"nfe": nfe, "steps": 1})
    before = tiny_model.clone()
    student, record = config.apply(tiny_model, context(tiny_model, tiny_data))
    assert student.nfe == nfe == record["nfe"]
    assert student.sampler.guidance == Guidance(folded=0.5) and record["guidance"] == 0.5
    assert same(before, tiny_model) and not same(student, tiny_model)
    assert student.sampler.timesteps == tuple(tiny_model.denoiser.schedule.grid(nfe)[:-1])  # trailing
    assert torch.isfinite(student.sample(range(3))).all()


def test_guidance_may_be_chosen_or_left_out(tiny_model: Model, tiny_data: Data) -> None:
    for weight, expected in ((1.5, Guidance(folded=1.5)), (0.0, Guidance())):
        config = SHORT.model_copy(update={"guidance": weight, "steps": 1})
        assert config.apply(tiny_model, context(tiny_model, tiny_data))[0].sampler.guidance == expected


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny_model: Model, tiny_data: Data) -> None:
    runs = [SHORT.apply(tiny_model, replace(context(tiny_model, tiny_data), seed=s))[0] for s in (0, 0, 1)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_resuming_gives_the_same_bits(tiny_model: Model, tiny_data: Data, tmp_path: Path) -> None:
    whole = SHORT.apply(tiny_model, context(tiny_model, tiny_data))

    class Killed(Exception):
        pass

    class Dying:
        def __enter__(self) -> Any:
            return self

        def __exit__(self, *rest: object) -> None:
            return None

        def __call__(self, n: float = 1, note: str = "") -> None:
            if note:
                raise Killed

    with pytest.raises(Killed):
        SHORT.apply(tiny_model, context(tiny_model, tiny_data, checkpoints=tmp_path, progress=lambda d, n: Dying()))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
    resumed = SHORT.apply(tiny_model, context(tiny_model, tiny_data, checkpoints=tmp_path))
    assert same(resumed[0], whole[0]) and resumed[1] == whole[1]


def test_the_teacher_is_guided_with_both_branches_in_one_call(tiny_model: Model) -> None:
    from optimize.diffusion.sampling import predict

    z = tiny_model.noise(range(3)).double()
    labels = tiny_model.labels(range(3))
    expected, _ = predict(tiny_model.sampler, tiny_model.denoiser, z, 400.0, labels)
    guide = Guide(tiny_model.denoiser, tiny_model.sampler, 0.5)
    assert torch.allclose(guide(z, torch.full((3,), 400.0).double(), labels), expected, atol=1e-5)


def test_outside_the_guidance_interval_and_beyond_the_clip_the_teacher_is_as_in_its_sampler(
    tiny_model: Model,
) -> None:
    from optimize.diffusion.sampling import predict

    sampler = Sampler(clip=0.2, guidance=Guidance(cfg=2.0, interval=(0, 300)))
    z, labels = tiny_model.noise(range(2)).double(), tiny_model.labels(range(2))
    guide = Guide(tiny_model.denoiser, sampler, 2.0)
    for t in (100.0, 700.0):
        expected, _ = predict(sampler, tiny_model.denoiser, z, t, labels)
        assert torch.allclose(guide(z, torch.full((2,), t).double(), labels), expected, atol=1e-5)


class GaussianFlow(torch.nn.Module):
    """v of the x that one DDIM step needs to land on the exact flow of N(0, WIDTH²) data at the segment's end;
    as `segments` grows it becomes the optimal denoiser. `segments=None` is that denoiser."""

    def __init__(self, denoiser: Denoiser, segments: int | None) -> None:
        super().__init__()
        self.schedule, self.segments = denoiser.schedule, segments
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
        t = timestep.double().numpy()
        a, b = (self._shaped(f(t)) for f in (self.schedule.alpha, self.schedule.sigma))
        z = sample.double()
        if self.segments is None:
            x = z * a * WIDTH**2 / (a**2 * WIDTH**2 + b**2)
        else:
            n = len(self.schedule.alpha_bar)
            end = np.ceil((t + 1) / n * self.segments - 1e-6) - 1  # the segment of t, its noisy end included
            u = self.schedule.time(end / self.segments)
            c, d = (self._shaped(f(u)) for f in (self.schedule.alpha, self.schedule.sigma))
            spread = [torch.sqrt(p**2 * WIDTH**2 + q**2) for p, q in ((a, b), (c, d))]
            x = (z * spread[1] / spread[0] - d / b * z) / (c - a * d / b)
        return (a * z - x) / b + self.unused

    def _shaped(self, value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(value).view(-1, 1, 1, 1)


def gaussian_data(model: Model) -> Data:
    images = torch.from_numpy(np.random.default_rng(0).standard_normal((256, *model.shape))).float() * WIDTH
    return Data(images)


def exact(model: Model, segments: int | None) -> Denoiser:
    module = GaussianFlow(model.denoiser, segments)
    network = TorchNetwork(module, model.inputs)
    return Denoiser(network, Parameterization("v"), model.denoiser.schedule, Conditioning())


def test_the_exact_student_of_gaussian_data_lands_on_the_flow_and_beats_the_optimal_denoiser(
    tiny_model: Model,
) -> None:
    """Closed form: with the optimal denoiser as teacher, the exact consistency function has nearly no loss left."""
    teacher = exact(tiny_model, None)
    config = Distill(nfe=2, batch=256, steps=100, teacher_steps=(1024, 1024), precision="fp32")
    data = gaussian_data(tiny_model)
    losses = {}
    for segments in (2, None):
        student = exact(tiny_model, segments)
        guide = Guide(teacher, Sampler(), 0.0)
        losses[segments] = float(config.loss(student, guide, data, 0)(student.network.module, 0, Share()).detach())  # type: ignore[attr-defined]
    assert losses[2] < 0.1 * losses[None]
    noise = tiny_model.noise(range(2))
    x = sample(config.sampler(tiny_model, 0.0), exact(tiny_model, 2), noise)
    alpha, sigma = (float(f(999.0)) for f in (tiny_model.denoiser.schedule.alpha, tiny_model.denoiser.schedule.sigma))
    flow = noise.double() * WIDTH / np.sqrt(alpha**2 * WIDTH**2 + sigma**2)
    assert torch.allclose(x, flow, atol=1e-3)


def test_a_folded_student_is_not_distilled_again(tiny_model: Model, tiny_data: Data) -> None:
    folded = replace(tiny_model, sampler=Sampler(steps=2, guidance=Guidance(folded=0.5)))
    with pytest.raises(UserError, match=r"already has guidance 0.5 folded in.*Distil the model from before that pass"):
        SHORT.apply(folded, context(tiny_model, tiny_data))
    with pytest.raises(UserError, match="the teacher is a folded student; name the untouched model"):
        SHORT.apply(tiny_model, context(folded, tiny_data))


def test_without_data_or_teacher_it_says_what_to_do(tiny_model: Model, tiny_data: Data) -> None:
    with pytest.raises(UserError, match="distill: training data is needed and none was given"):
        SHORT.apply(tiny_model, context(tiny_model, None))
    with pytest.raises(UserError, match=r"distill.teacher: no teacher is there"):
        SHORT.apply(tiny_model, Context(data=tiny_data))


def test_guidance_without_a_null_class_is_refused(tiny_model: Model) -> None:
    bare = replace(tiny_model.denoiser, conditioning=Conditioning("class", 10, None))
    with pytest.raises(UserError, match=r"the teacher has no null class. Set it to 0"):
        Guide(bare, Sampler(), 0.5)(tiny_model.noise([0]), torch.zeros(1), torch.zeros(1, dtype=torch.int64))


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"nfe": 0}, {"teacher_steps": (64, 8)}, {"guidance": -1}, {"method": "magic"}, {"step": 3}):
        with pytest.raises(ValidationError):
            Distill(**wrong)


REGRESSION = SHORT.model_copy(update={"method": "trajectory_regression", "trajectories": 8, "trajectory_steps": 4})


def test_stored_trajectories_are_the_guided_teachers_states_at_the_segments_ends(
    tiny_model: Model, tiny_data: Data
) -> None:
    pool = REGRESSION._trajectories(tiny_model, 0.5, context(tiny_model, tiny_data))
    assert pool.states.shape == (3, 8, *tiny_model.shape) and pool.labels is not None
    solver = Sampler(solver="dpmpp_2m", steps=4, guidance=Guidance(cfg=0.5))
    expected = sample(solver, tiny_model.denoiser, pool.states[0], pool.labels)
    assert torch.allclose(pool.states[2].double(), expected, atol=1e-4)


def test_a_student_that_makes_the_teachers_jumps_has_no_regression_loss(tiny_model: Model, tiny_data: Data) -> None:
    """The exact student of Gaussian data on exact states: one DDIM step a segment lands on the flow."""
    from optimize.passes.distill import Trajectories

    schedule = tiny_model.denoiser.schedule
    noise = tiny_model.noise(range(16)).double()
    spread = [
        float(np.hypot(schedule.alpha(t) * WIDTH, schedule.sigma(t))) for t in schedule.time(np.array([1.0, 0.5, 0.0]))
    ]
    pool = Trajectories(torch.stack([noise * s / spread[0] for s in spread]).float(), None)
    config = REGRESSION.model_copy(update={"batch": 16})
    losses = []
    for segments in (2, None):
        student = exact(tiny_model, segments)
        loss = config.regression(student, pool, 0)(student.network.module, 0, Share())  # type: ignore[attr-defined]
        losses.append(float(loss.detach()))
    assert losses[0] < 1e-3 < losses[1]


def test_trajectories_are_kept_for_a_killed_run(tiny_model: Model, tiny_data: Data, tmp_path: Path) -> None:
    whole = REGRESSION.apply(tiny_model, context(tiny_model, tiny_data))
    first = REGRESSION.apply(tiny_model, context(tiny_model, tiny_data, checkpoints=tmp_path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "trajectories"]
    seen: list[str] = []

    def watching(description: str, total: float) -> Any:
        from optimize.progress import silent

        seen.append(description)
        return silent(description, total)

    again = REGRESSION.apply(tiny_model, context(tiny_model, tiny_data, checkpoints=tmp_path, progress=watching))
    assert seen == ["distill"]  # the trajectories were found
    assert same(whole[0], first[0]) and same(first[0], again[0])


def test_trajectory_steps_must_divide_into_the_segments() -> None:
    with pytest.raises(ValidationError, match="trajectory_steps: 8 given, allowed are multiples of nfe 3"):
        Distill(method="trajectory_regression", nfe=3)
