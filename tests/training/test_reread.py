"""Re-reading a blind head: which heads are, what teaches where the teacher sees nothing, and that v is recovered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.linear_model import INPUTS, Table, exact, gaussian_data, gaussian_model, levels

from optimize import rng
from optimize.diffusion.context import Context
from optimize.diffusion.network import TorchNetwork
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import Sampler
from optimize.diffusion.schedule import Schedule, from_diffusers
from optimize.diffusion.solvers import ddim, split
from optimize.training import objectives as ops
from optimize.training.loop import Share, TrainingConfig, draw
from optimize.training.reread import (
    ALPHA_MIN,
    GAIN_MAX,
    blind_up_to,
    clock,
    even,
    gain,
    jumps,
    regression,
    reread,
    signal,
    taught,
    wide_up_to,
)  # fmt: skip
from optimize.training.teacher import Guide

DEFAULT = from_diffusers({"_class_name": "DDPMScheduler", "beta_schedule": "linear"})
STABLE = from_diffusers({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012})
COSINE = from_diffusers({"beta_schedule": "squaredcos_cap_v2"})
TIMES = 8


def test_the_gain_is_what_a_students_step_makes_of_an_error_in_the_predicted_noise() -> None:
    """One DDIM step from pure noise, with and without an error of 1e-3 in the head's output."""
    z = torch.from_numpy(rng.normal((4,), "z")).double()
    for nfe in (1, 2, 4):
        t, s = (float(DEFAULT.time(u)) for u in (1.0, 1 - 1 / nfe))
        at_t = float(DEFAULT.alpha(t)), float(DEFAULT.sigma(t))
        states = [ddim(DEFAULT, z, *split("epsilon", z + off, z, *at_t), s) for off in (0.0, 1e-3)]
        assert float((states[1] - states[0]).abs().max()) == pytest.approx(1e-3 * gain(DEFAULT, nfe), rel=1e-6)
        read = [ddim(DEFAULT, z, *split("v", z + off, z, *at_t), s) for off in (0.0, 1e-3)]
        assert float((read[1] - read[0]).abs().max()) <= 1e-3 + 1e-12  # v amplifies nothing


def test_a_gain_counts_in_units_of_the_states_scale() -> None:
    """A variance-exploding schedule of the same angles has the same gain."""
    t, s = (np.tan(1.5), np.tan(0.9))
    one = ops.jump_gain((np.cos(1.5), np.sin(1.5)), (np.cos(0.9), np.sin(0.9)))
    assert ops.jump_gain((1.0, t), (1.0, s)) == pytest.approx(one) == pytest.approx(np.sin(0.6) / np.cos(1.5))
    assert gain(Schedule(kind="ve", sigma_max=80.0), 1) == pytest.approx(80.0)


@pytest.mark.parametrize(
    ("schedule", "prediction", "calls", "wide"),
    [
        (DEFAULT, "epsilon", 64, 3),
        (STABLE, "epsilon", 1, 1),
        (COSINE, "epsilon", 64, 64),
        (DEFAULT, "v", 0, 0),
        (COSINE, "sample", 0, 0),
        (Schedule(kind="flow"), "flow", 0, 0),
        (Schedule(kind="ve"), "epsilon", 64, 7),
    ],
)
def test_which_heads_are_blind_depends_on_the_signal_left_and_the_number_of_calls(
    schedule: Schedule, prediction: str, calls: int, wide: int
) -> None:
    assert (blind_up_to(prediction, schedule), wide_up_to(prediction, schedule)) == (calls, wide)
    if prediction == "epsilon":
        assert gain(schedule, wide) > GAIN_MAX and (wide == 64 or gain(schedule, wide + 1) <= GAIN_MAX)
        assert (signal(schedule) < ALPHA_MIN) == (calls == 64)


def test_what_makes_a_head_blind_is_told_in_numbers() -> None:
    assert jumps(DEFAULT, 1) == "in 1 step an error of the predicted noise comes in 157 times (allowed 10)."
    assert jumps(DEFAULT, 8) == "only 0.0064 of the signal is left at the noisiest time (allowed 0.05)."
    assert jumps(DEFAULT, 2).startswith("in 2 steps an error of the predicted noise comes in 43.2 times")


def test_sight_fades_from_one_to_nothing_and_is_half_at_the_largest_gain() -> None:
    angle = np.arctan(GAIN_MAX)
    assert ops.sight(np.cos(angle), np.sin(angle), GAIN_MAX) == pytest.approx(0.5)
    assert ops.sight(1.0, 0.0, GAIN_MAX) == 1.0 and ops.sight(0.0, 1.0, GAIN_MAX) == 0.0
    assert ops.sight(0.00635, 1.0, GAIN_MAX) == pytest.approx(1 / (1 + 15.748**2), rel=1e-3)


def test_even_times_lay_the_noise_levels_evenly_and_the_ends_where_they_were() -> None:
    for schedule in (DEFAULT, STABLE, COSINE):
        times = even(schedule)(np.linspace(0, 1, 9))
        angles = np.arctan2(schedule.sigma(times), schedule.alpha(times))
        assert np.allclose(np.diff(angles), angles[-1] / 8, atol=1e-9)
        assert times[0] == schedule.clean and times[-1] == schedule.noisiest
    assert np.abs(even(COSINE)(0.5) - COSINE.time(0.5)) < 10  # squared cosines lie evenly in both ways
    assert even(DEFAULT)(0.5) < 260 < DEFAULT.time(0.5)  # the default betas do not


def test_only_a_re_read_student_is_called_evenly_in_noise_level() -> None:
    heads = {head: gaussian_model(DEFAULT, head).denoiser for head in ("epsilon", "v")}
    u = np.array([1.0, 0.5])
    assert clock(heads["v"], heads["epsilon"])(u)[1] == even(DEFAULT)(u)[1]
    for head, denoiser in heads.items():
        assert clock(denoiser, denoiser)(u).tolist() == DEFAULT.time(u).tolist(), head


def ending(end: float) -> Schedule:
    """TIMES noise levels, the last with `end` of the signal."""
    return Schedule(kind="vp", alpha_bar=tuple(np.cos(np.linspace(0.3, np.arccos(end), TIMES)) ** 2))


@pytest.mark.parametrize("end", [0.3, 0.005])
def test_the_regression_recovers_v_of_a_linear_network_exactly(end: float) -> None:
    """Closed form: the optimal v of Gaussian data, from the weights that were the optimal noise, blind end included."""
    teacher = gaussian_model(ending(end))
    guide = Guide(teacher.denoiser, teacher.sampler, 0.0)
    config = TrainingConfig(steps=160, batch=64, learning_rate=0.05, ema=0.9, precision="fp32", warmup=0)
    student, record = reread(teacher.clone(), guide, gaussian_data(), config, Context(data=gaussian_data()))
    schedule = teacher.denoiser.schedule
    apart = np.abs(exact(schedule, "epsilon") - exact(schedule, "v"))
    left = np.abs(student.module.weight.detach().numpy() - exact(schedule, "v"))
    assert apart.max() > 0.5 and left.max() < 0.03
    assert student.denoiser.parameterization == replace(teacher.denoiser.parameterization, prediction="v")
    assert (record["from"], record["to"], record["steps"]) == ("epsilon", "v", 160)
    assert record["losses"]["last"] < record["losses"]["first"]
    assert np.allclose(teacher.module.weight.detach().numpy(), exact(schedule, "epsilon"))  # the teacher is as it was


def test_v_itself_has_no_loss_where_the_teacher_sees() -> None:
    teacher, student = gaussian_model(ending(0.9)), gaussian_model(ending(0.9), "v")
    guide = Guide(teacher.denoiser, teacher.sampler, 0.0)
    right = float(regression(student.denoiser, guide, gaussian_data(), 64, 0)(student.module, 0, Share()).detach())
    as_v = replace(teacher.denoiser, parameterization=Parameterization("v"))
    wrong = float(regression(as_v, guide, gaussian_data(), 64, 0)(teacher.module, 0, Share()).detach())
    assert right < 1e-4 * wrong


def test_where_an_epsilon_teacher_is_blind_the_data_teaches_and_elsewhere_it_does() -> None:
    model = gaussian_model(ending(0.005))
    batch = draw(gaussian_data(), 4, Share(), "t")
    z = torch.zeros_like(batch.x).double()
    wild = replace(model.denoiser, network=TorchNetwork(Table(np.full(TIMES, 3.0)), INPUTS))
    guide = Guide(wild, Sampler(clip=0.7), 0.0)
    v = replace(model.denoiser, parameterization=Parameterization("v"))
    for t, share in ((0, 1.0), (TIMES - 1, 0.0)):
        alpha, sigma = (float(part[t]) for part in levels(model.denoiser.schedule))
        times = torch.full((4,), float(t))
        z = torch.full_like(batch.x, 2.0).double()
        found = taught(guide, v, z, times, batch, (alpha, sigma))
        blind, seen = batch.x.double(), guide(z, times, None)
        assert torch.allclose(found, share * seen + (1 - share) * blind, atol=6e-3)
        assert float(seen.abs().max()) <= 0.7  # clipped as its sampler clips
        assert torch.equal(taught(guide, model.denoiser, z, times, batch, (alpha, sigma)), seen)  # epsilon to epsilon
        other = Guide(v, Sampler(), 0.0)
        assert torch.equal(taught(other, v, z, times, batch, (alpha, sigma)), other(z, times, None))  # v sees all


def test_a_regression_killed_at_any_step_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    teacher = gaussian_model(ending(0.005))
    guide = Guide(teacher.denoiser, teacher.sampler, 0.0)
    config = TrainingConfig(steps=6, batch=8, precision="fp32", warmup=0, ema=0.5, checkpoint_s=0)

    class Killed(Exception):
        pass

    calls = []

    def dying(z: Any, t: Any, condition: Any) -> Any:
        calls.append(t)
        if len(calls) == 4:
            raise Killed
        return guide(z, t, condition)

    whole = reread(teacher.clone(), guide, gaussian_data(), config, Context())
    context = Context(checkpoints=tmp_path)
    mortal = type("Mortal", (), {"denoiser": guide.denoiser, "__call__": staticmethod(dying)})()
    with pytest.raises(Killed):
        reread(teacher.clone(), mortal, gaussian_data(), config, context)
    assert [p.name for p in tmp_path.glob("*/*")] == ["step-00000003"]
    resumed = reread(teacher.clone(), guide, gaussian_data(), config, context)
    assert torch.equal(resumed[0].module.weight, whole[0].module.weight) and resumed[1] == whole[1]
