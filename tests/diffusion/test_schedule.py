"""Grids of schedules against diffusers' schedulers: offsets, ends, shifts."""

from __future__ import annotations

import json
import math

import networks
import numpy as np
import pytest

from optimize.diffusion.schedule import Schedule, from_diffusers

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}


def test_leading_steps_have_diffusers_offset_and_end_where_it_ends() -> None:
    from diffusers import DDIMScheduler

    schedule = from_diffusers(networks.STABLE)
    reference = DDIMScheduler.from_config({**networks.STABLE, "timestep_spacing": "leading"})
    reference.set_timesteps(7)
    assert schedule.grid(7, "leading").tolist() == [*reference.timesteps.tolist(), 0.0]
    assert float(schedule.alpha(schedule.end)) ** 2 == pytest.approx(float(reference.final_alpha_cumprod))
    assert from_diffusers({**networks.STABLE, "set_alpha_to_one": True}).end == -1.0


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_grids_are_those_of_diffusers_scheduler(shift: float) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    schedule, reference = from_diffusers({**FLOW, "shift": shift}), FlowMatchEulerDiscreteScheduler(shift=shift)
    reference.set_timesteps(6)
    assert np.allclose(schedule.grid(6, "linspace"), reference.sigmas, atol=1e-6)
    reference.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6).tolist())
    assert np.allclose(schedule.grid(6), reference.sigmas, atol=1e-6)


def test_a_dynamic_shift_grows_with_the_number_of_positions() -> None:
    config = {**FLOW, "use_dynamic_shifting": True}
    assert from_diffusers(config, 256).shift == pytest.approx(math.exp(0.5))
    assert from_diffusers(config, 4096).shift == pytest.approx(math.exp(1.15))


def test_a_shifted_schedule_survives_json() -> None:
    for schedule in (from_diffusers({**FLOW, "use_dynamic_shifting": True}, 1024), Schedule("flow", shift=2.0)):
        assert Schedule.from_json(schedule.to_json()) == schedule and schedule.shift != 1.0
    assert "shift" not in from_diffusers(networks.STABLE).to_json()


def test_a_linear_dynamic_shift_is_mu_itself() -> None:
    config = {**FLOW, "use_dynamic_shifting": True, "time_shift_type": "linear"}
    assert from_diffusers(config, 256).shift == pytest.approx(0.5)


def test_a_bound_at_infinity_is_left_out_of_what_is_stored() -> None:
    """diffusers writes DPM-Solver's lambda_min_clipped as -Infinity, which is no JSON."""
    from diffusers import DPMSolverMultistepScheduler

    config = dict(DPMSolverMultistepScheduler().config)
    assert config["lambda_min_clipped"] == -float("inf")
    found = from_diffusers(config)
    stored = json.dumps(found.to_json(), allow_nan=False)
    assert "lambda_min_clipped" not in stored and Schedule.from_json(json.loads(stored)) == found
