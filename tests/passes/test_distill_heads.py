"""Distill: heads that are blind for few calls are read as v first; what is kept, forced and refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from support.linear_model import gaussian_data, gaussian_model, read
from support.restored import saved

from optimize.architectures.artifact import load_model, sampler_json
from optimize.diffusion.context import Context, Data
from optimize.diffusion.model import Model
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.diffusion.schedule import Schedule, from_diffusers
from optimize.errors import UserError
from optimize.passes.distill import Distill, clipping
from optimize.training.reread import even

SHORT = Distill(
    steps=2, reread_steps=2, batch=4, learning_rate=1e-3, warmup=0, ema=0.0, precision="fp32", checkpoint_s=0
)
STABLE = from_diffusers({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
DEFAULT = from_diffusers({"_class_name": "DDPMScheduler", "beta_schedule": "linear"})


def context(model: Model, data: Data | None, **more: Any) -> Context:
    return Context(seed=0, data=data, teacher=lambda name: model, **more)


def same(a: Model, b: Model) -> bool:
    return all(torch.equal(v, b.module.state_dict()[k]) for k, v in a.module.state_dict().items())


@pytest.fixture
def linear() -> Model:
    """A linear network that predicts the noise, with diffusers' default betas and clipping."""
    return gaussian_model(DEFAULT, clip=1.0)


@pytest.fixture
def few() -> Data:
    return gaussian_data(16)


@pytest.fixture
def ddpm(tiny_model: Model) -> Model:
    """As diffusers trains by default: the noise is predicted, betas are linear, x^ is clipped."""
    return read(tiny_model, DEFAULT)


def test_a_blind_head_is_read_as_v_and_the_record_and_the_artifact_say_so(
    ddpm: Model, tiny_data: Data, tmp_path: Path
) -> None:
    before = ddpm.clone()
    student, record = SHORT.apply(ddpm, context(ddpm, tiny_data))
    assert student.denoiser.parameterization == Parameterization("v") and student.nfe == 2
    assert record["head"] == "epsilon re-read as v" and record["steps"] == 2
    assert student.sampler.timesteps == tuple(even(DEFAULT)(np.array([1.0, 0.5])))
    found = record["reread"]
    assert (found["from"], found["to"], found["steps"]) == ("epsilon", "v", 2) and found["losses"]["last"] > 0
    assert json.loads(json.dumps(record)) == record
    assert same(before, ddpm) and ddpm.denoiser.parameterization.prediction == "epsilon"
    again = load_model(saved(student, tmp_path / "student"))
    assert again.denoiser.parameterization == student.denoiser.parameterization
    assert torch.equal(again.sample([1, 2]), student.sample([1, 2]))
    kept = replace(student, denoiser=replace(student.denoiser, parameterization=Parameterization("epsilon")))
    assert sampler_json(kept) != sampler_json(student)  # what an artifact is known by tells the heads apart


@pytest.mark.parametrize(
    ("schedule", "nfe", "head", "expected"),
    [
        (DEFAULT, 3, "auto", "v"),
        (DEFAULT, 8, "auto", "v"),
        (STABLE, 1, "auto", "v"),
        (STABLE, 2, "auto", "epsilon"),
        (STABLE, 2, "v", "v"),
        (DEFAULT, 2, "keep", "epsilon"),
    ],
)
def test_the_head_is_decided_by_the_signal_left_and_the_number_of_calls_or_by_the_recipe(
    schedule: Schedule, few: Data, nfe: int, head: str, expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    linear = gaussian_model(schedule, clip=1.0)
    config = SHORT.model_copy(update={"nfe": nfe, "head": head, "steps": 1, "reread_steps": 1})
    with caplog.at_level(logging.WARNING):
        student, record = config.apply(linear, context(linear, few))
    assert student.denoiser.parameterization.prediction == expected
    assert ("reread" in record) == ("head" in record) == (expected == "v")
    said = "distill.head: keep given, and in 2 steps an error of the predicted noise comes in 43.2 times (allowed 10)."
    assert (said in caplog.text) == (head == "keep")


@pytest.mark.parametrize(
    ("prediction", "head", "reread"), [("v", "v", False), ("sample", "auto", False), ("sample", "v", True)]
)
def test_other_heads_are_read_as_v_on_demand_only(few: Data, prediction: str, head: str, reread: bool) -> None:
    model = gaussian_model(DEFAULT, prediction)
    config = SHORT.model_copy(update={"head": head, "steps": 1, "reread_steps": 1})
    student, record = config.apply(model, context(model, few))
    assert student.denoiser.parameterization.prediction == ("v" if reread else prediction)
    assert ("reread" in record) == reread


def test_trajectories_teach_a_re_read_student_as_well(linear: Model, few: Data) -> None:
    config = SHORT.model_copy(update={"method": "trajectory_regression", "trajectories": 4, "trajectory_steps": 4})
    student, record = config.apply(linear, context(linear, few))
    assert student.denoiser.parameterization.prediction == "v" and record["reread"]["steps"] == 2
    assert student.sampler.timesteps == (999.0, 499.0)  # where its teacher's trajectories were stored
    assert torch.isfinite(student.sample([0, 1])).all()


def test_a_second_student_of_fewer_calls_is_v_already(linear: Model, few: Data) -> None:
    config = SHORT.model_copy(update={"nfe": 2, "guidance": 0.0, "steps": 1, "reread_steps": 1})
    first, _ = config.apply(linear, context(linear, few))
    second, record = config.model_copy(update={"nfe": 1}).apply(first, context(linear, few))
    assert second.nfe == 1 and second.denoiser.parameterization.prediction == "v" and "reread" not in record


@pytest.mark.parametrize("name", ["dit", "sd"])
def test_learned_variances_and_tensor_conditions_stay_with_a_re_read_head(name: str) -> None:
    sampler = Sampler(steps=4, guidance=Guidance(cfg=1.0))
    model = read(networks.model(networks.TINY[name], sampler), DEFAULT, clip=None)
    labels = torch.arange(4) if model.denoiser.conditioning.kind == "class" else None
    student, record = SHORT.apply(model, context(model, Data(torch.randn(4, *model.shape), labels)))
    about = student.denoiser.parameterization
    assert about == replace(model.denoiser.parameterization, prediction="v") and "reread" in record
    assert about.learned_variance == (name == "dit")
    assert student.sample([0]).shape == (1, *model.shape) and torch.isfinite(student.sample([0])).all()


class Killed(Exception):
    pass


class Mortal:
    """A progress that dies in task `name` after so many steps."""

    def __init__(self, name: str, steps: int) -> None:
        self.name, self.left, self.seen = name, steps, []

    def __call__(self, description: str, total: float) -> Any:
        self.seen.append(description)
        return Advance(self, description)


class Advance:
    def __init__(self, mortal: Mortal, description: str) -> None:
        self.mortal, self.description = mortal, description

    def __enter__(self) -> Advance:
        return self

    def __exit__(self, *rest: object) -> None:
        return None

    def __call__(self, n: float = 1, note: str = "") -> None:
        if note and self.description == self.mortal.name:
            self.mortal.left -= 1
            if self.mortal.left == 0:
                raise Killed


@pytest.mark.parametrize("name", ["re-read as v", "distill"])
def test_a_run_killed_in_either_training_goes_on_to_the_same_bits(
    linear: Model, few: Data, tmp_path: Path, name: str
) -> None:
    whole = SHORT.apply(linear, context(linear, few))
    with pytest.raises(Killed):
        SHORT.apply(linear, context(linear, few, checkpoints=tmp_path, progress=Mortal(name, 1)))
    assert (tmp_path / "reread").is_dir() and (len(list(tmp_path.iterdir())) == (2 if name == "distill" else 1))
    watching = Mortal("", 0)
    resumed = SHORT.apply(linear, context(linear, few, checkpoints=tmp_path, progress=watching))
    assert same(resumed[0], whole[0]) and resumed[1] == whole[1]
    assert watching.seen == ["re-read as v", "distill"]


def test_noise_predicted_without_any_signal_is_refused_with_the_reason(linear: Model, few: Data) -> None:
    bar = (*DEFAULT.alpha_bar[:-1], 0.0)
    silent = read(linear, Schedule(kind="vp", alpha_bar=bar))
    with pytest.raises(UserError, match=r"no signal is left \(alpha .*e-17, allowed >= 1e-06\)"):
        SHORT.apply(silent, context(silent, few))
    with pytest.raises(UserError, match="Give the schedule it was trained with"):
        SHORT.apply(read(silent, silent.denoiser.schedule, "v"), context(silent, few))  # the teacher's


@pytest.mark.parametrize(("kind", "prediction", "head"), [("flow", "flow", "v"), ("ve", "epsilon", "auto")])
def test_v_needs_a_variance_preserving_schedule(
    linear: Model, few: Data, kind: str, prediction: str, head: str
) -> None:
    model = read(linear, Schedule(kind=kind), prediction)  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=rf'distill.head: "{head}" given, but v needs .* this one is {kind} \(head {prediction}\)'
    ):
        SHORT.model_copy(update={"head": head}).apply(model, context(model, few))


def test_trajectories_of_a_teacher_that_is_blind_for_their_steps_are_refused(linear: Model, few: Data) -> None:
    config = SHORT.model_copy(update={"method": "trajectory_regression", "trajectory_steps": 2})
    model = read(linear, DEFAULT, clip=None)
    with pytest.raises(UserError) as caught:
        config.apply(model, context(model, few))
    said = "distill.trajectory_steps: 2 given, and in 2 steps an error of the predicted noise comes in 43.2 times"
    assert str(caught.value).startswith(said)
    assert str(caught.value).endswith("Give 4 or more, sampler.clip, or method: multistep_consistency.")
    cosine = gaussian_model(from_diffusers({"beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(UserError, match=r"\(allowed 10\)\. Give sampler.clip, or method: multistep_consistency\."):
        config.apply(cosine, context(cosine, few))
    config.model_copy(update={"trajectories": 4, "steps": 1, "reread_steps": 1}).apply(linear, context(linear, few))


def test_the_fields_of_the_head_are_checked() -> None:
    for wrong in ({"head": "epsilon"}, {"reread_steps": 0}, {"reread_steps": -3}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Distill(**wrong)


def test_a_teacher_that_its_schedulers_own_loop_clips_is_clipped_while_it_teaches(linear: Model, few: Data) -> None:
    for config, clip in (
        ({"clip_sample": True, "clip_sample_range": 0.8}, 0.8),
        ({"clip_sample": False, "thresholding": True}, 1.0),
        ({"clip_sample": False}, None),
    ):
        schedule = from_diffusers({"_class_name": "DDPMScheduler", **config})
        own = replace(read(linear, schedule), sampler=Sampler(solver="scheduler", spacing="scheduler", steps=4))
        assert clipping(own).sampler.clip == clip
        assert clipping(read(linear, schedule, clip=0.5)).sampler.clip == 0.5  # what the recipe says
    config = SHORT.model_copy(update={"method": "trajectory_regression", "trajectory_steps": 2, "trajectories": 4})
    with pytest.raises(UserError, match="Give 4 or more, sampler"):
        config.apply(own, context(own, few))
