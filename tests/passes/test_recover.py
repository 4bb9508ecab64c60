"""Recover: what it learns from, what it refuses, and that a killed run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from optimize.diffusion.context import Context, Data
from optimize.diffusion.model import Model
from optimize.diffusion.schedule import Schedule, from_diffusers
from optimize.errors import UserError
from optimize.passes.recover import Recover, training_times
from optimize.registry import PASSES
from optimize.training.loop import Share

SHORT = Recover(steps=3, batch=4, learning_rate=1e-3, warmup=0, ema=0.0, precision="fp32", checkpoint_s=0)


def context(model: Model, data: Data | None, **more: object) -> Context:
    return Context(seed=0, data=data, teacher=lambda name: model, **more)  # type: ignore[arg-type]


def same(a: Model, b: Model) -> bool:
    return all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())


def damaged(model: Model, scale: float = 0.1) -> Model:
    """A copy with its weights disturbed, as after pruning."""
    copy = model.clone()
    for i, p in enumerate(copy.module.parameters()):
        p.data += scale * p.data.std().nan_to_num() * torch.randn(p.shape, generator=torch.Generator().manual_seed(i))
    return copy


def test_it_is_registered_and_needs_data_before_any_quantization() -> None:
    assert PASSES.get("recover") is Recover
    assert Recover.provides == {"trained"} and Recover.requires == {"data"}
    assert set(Recover.refuses_after) == {"quantized", "distilled"}


def test_training_changes_the_copy_and_leaves_model_and_teacher(tiny_model: Model, tiny_data: Data) -> None:
    before = tiny_model.clone()
    trained, record = SHORT.apply(tiny_model, context(tiny_model, tiny_data))
    assert same(before, tiny_model) and not same(trained, tiny_model)
    assert record["steps"] == 3 and record["teacher"] == "baseline"
    assert trained.structure == tiny_model.structure and trained.sampler == tiny_model.sampler


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny_model: Model, tiny_data: Data) -> None:
    runs = [SHORT.apply(tiny_model, replace(context(tiny_model, tiny_data), seed=s))[0] for s in (0, 0, 1)]
    assert same(runs[0], runs[1]) and not same(runs[0], runs[2])


def test_a_killed_run_goes_on_to_the_same_bits(tiny_model: Model, tiny_data: Data, tmp_path: Path) -> None:
    whole = SHORT.apply(tiny_model, context(tiny_model, tiny_data))

    class Killed(Exception):
        pass

    def dying(name: str, total: float):  # type: ignore[no-untyped-def]
        from contextlib import contextmanager

        @contextmanager
        def progress():  # type: ignore[no-untyped-def]
            done = [0.0]

            def advance(n: float = 1, note: str = "") -> None:
                done[0] += n
                if done[0] >= 2:
                    raise Killed

            yield advance

        return progress()

    with pytest.raises(Killed):
        SHORT.apply(tiny_model, context(tiny_model, tiny_data, checkpoints=tmp_path, progress=dying))
    assert list(tmp_path.glob("step-*"))
    resumed = SHORT.apply(tiny_model, context(tiny_model, tiny_data, checkpoints=tmp_path))
    assert same(resumed[0], whole[0]) and resumed[1] == whole[1]


def test_a_student_equal_to_its_teacher_has_no_distillation_loss(tiny_model: Model, tiny_data: Data) -> None:
    config = SHORT.model_copy(update={"denoising": 0.0})
    loss = config.loss(tiny_model.denoiser, tiny_model.denoiser, tiny_data, seed=0)
    assert float(loss(tiny_model.module, 0, Share())) < 1e-8
    worse = damaged(tiny_model)
    assert float(config.loss(worse.denoiser, tiny_model.denoiser, tiny_data, 0)(worse.module, 0, Share())) > 1e-4


def test_the_denoising_loss_is_that_of_the_head(tiny_model: Model, tiny_data: Data) -> None:
    """With a network that answers 0, the loss is the mean square of v."""
    config = SHORT.model_copy(update={"output_distillation": 0.0, "batch": 64})

    class Zero(torch.nn.Module):
        def forward(self, sample: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(sample)

    found = float(config.loss(tiny_model.denoiser, None, tiny_data, 0)(Zero(), 0, Share()))
    second_moment = float(tiny_data.images.square().mean())
    assert abs(found - (1 + second_moment) / 2) < 0.1  # E v² = E alpha² + E sigma² x²; the cosine's halves are equal


def test_labels_are_dropped_to_the_null_class_at_the_asked_rate(tiny_model: Model, tiny_data: Data) -> None:
    seen: list[torch.Tensor] = []

    class Watching(torch.nn.Module):
        def forward(self, sample: torch.Tensor, class_labels: torch.Tensor, **rest: torch.Tensor) -> torch.Tensor:
            seen.append(class_labels)
            return torch.zeros_like(sample)

    config = Recover(batch=64, condition_dropout=0.25, output_distillation=0)
    for step in range(8):
        config.loss(tiny_model.denoiser, None, tiny_data, 0)(Watching(), step, Share())
    labels = torch.cat(seen)
    assert 0.2 < float((labels == 10).double().mean()) < 0.3
    assert set(labels.tolist()) == set(range(11))


@pytest.mark.slow
def test_a_disturbed_network_comes_closer_to_its_teacher(tiny_model: Model, tiny_data: Data) -> None:
    config = Recover(steps=60, batch=16, learning_rate=1e-3, precision="fp32", denoising=0.0)
    _, record = config.apply(damaged(tiny_model, 0.5), context(tiny_model, tiny_data))
    assert record["loss"]["last"] < 0.5 * record["loss"]["first"]


def test_without_data_or_teacher_it_says_what_to_do(tiny_model: Model, tiny_data: Data) -> None:
    with pytest.raises(UserError, match="recover: training data is needed and none was given"):
        SHORT.apply(tiny_model, context(tiny_model, None))
    with pytest.raises(UserError, match=r"recover.output_distillation: it needs a teacher.*Set it to 0"):
        SHORT.apply(tiny_model, Context(data=tiny_data))


def test_training_times_are_those_of_each_schedule() -> None:
    u = np.array([0.0, 0.5, 0.9999])
    vp = from_diffusers({"beta_schedule": "linear", "num_train_timesteps": 1000})
    assert training_times(vp, u).tolist() == [0, 500, 999]
    assert training_times(Schedule(kind="flow"), u)[1] == 0.5
    assert training_times(Schedule(kind="ve"), u)[0] == pytest.approx(0.002)
