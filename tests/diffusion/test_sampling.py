"""Solvers against closed forms and against diffusers; guidance, clipping and NFE."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from optimize import rng
from optimize.diffusion.denoiser import Denoiser
from optimize.diffusion.model import Model
from optimize.diffusion.network import TensorSpec
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import SOLVERS, Guidance, Sampler, sample, trajectory
from optimize.diffusion.schedule import Schedule, from_diffusers

COSINE = from_diffusers({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000})
LINEAR = from_diffusers({"beta_schedule": "linear", "num_train_timesteps": 1000})
S = 0.5  # standard deviation of the Gaussian data


class GaussianNetwork:
    """The optimal network for data N(0, S² I): x^ = z alpha S² / (alpha² S² + sigma²), in any parameterization."""

    inputs = (TensorSpec("sample", ("B", 1, 2, 2)), TensorSpec("timestep", ("B",)))

    def __init__(self, schedule: Schedule, parameterization: Parameterization) -> None:
        self.schedule, self.parameterization = schedule, parameterization

    def __call__(self, sample: torch.Tensor, timestep: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
        z, t = sample.double(), timestep[0].item()
        alpha, sigma = float(self.schedule.alpha(t)), float(self.schedule.sigma(t))
        x = z * alpha * S**2 / (alpha**2 * S**2 + sigma**2)
        return self.parameterization.target(x, (z - alpha * x) / sigma, alpha, sigma)


class Exact(Denoiser):
    """Feeds the network in float64, so that a solver's order is not hidden by rounding."""

    def feed(self, z: torch.Tensor, t: float, labels: torch.Tensor | None) -> dict[str, torch.Tensor]:
        return {"sample": z, "timestep": torch.full((z.shape[0],), t, dtype=torch.float64)}


def gaussian(schedule: Schedule, prediction: str = "v") -> Denoiser:
    parameterization = Parameterization(prediction)
    return Exact(GaussianNetwork(schedule, parameterization), parameterization, schedule)


def exact_flow(schedule: Schedule, z: torch.Tensor, t: float) -> torch.Tensor:
    """The probability flow of N(0, S²) scales z by the ratio of marginal standard deviations."""
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return z * S / math.sqrt(alpha**2 * S**2 + sigma**2)


def error(solver: str, steps: int, schedule: Schedule, prediction: str = "v", power: float = 1) -> float:
    z = torch.linspace(-2, 2, 8, dtype=torch.float64).view(2, 1, 2, 2)
    grid = 600 * np.linspace(1, 0, steps + 1)[:-1] ** power
    sampler = Sampler(solver=solver, steps=steps, timesteps=tuple(grid))
    got = sample(sampler, gaussian(schedule, prediction), z)
    return float((got - exact_flow(schedule, z, 600.0)).abs().max())


@pytest.mark.parametrize("solver, order, power", [("ddim", 1, 1), ("heun", 2, 3)])
def test_solvers_converge_with_their_order_to_the_closed_form_flow(solver: str, order: int, power: float) -> None:
    """A grid that is dense near clean data (power 3) keeps the last, first-order step out of Heun's error."""
    coarse, fine = (error(solver, n, LINEAR, power=power) for n in (40, 160))
    assert fine < coarse / 4 ** (order - 0.5)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ipndm"])
def test_multistep_solvers_are_more_accurate_than_ddim_at_equal_evaluations(solver: str) -> None:
    assert error(solver, 40, LINEAR) < error("ddim", 40, LINEAR) / 3


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_every_head_gives_the_same_trajectory(solver: str, prediction: str) -> None:
    assert error(solver, 20, LINEAR, prediction) == pytest.approx(error(solver, 20, LINEAR), rel=1e-6)


def test_flow_and_ve_models_need_no_special_case() -> None:
    z = torch.randn(2, 1, 2, 2, dtype=torch.float64)
    flow = sample(Sampler(solver="heun", steps=200), gaussian(Schedule("flow"), "flow"), z)
    assert float((flow - exact_flow(Schedule("flow"), z, 1.0)).abs().max()) < 1e-2
    ve = Schedule("ve", sigma_max=10.0)
    got = sample(Sampler(solver="heun", steps=200), gaussian(ve, "sample"), z)
    assert float((got - exact_flow(ve, z * 10, 10.0)).abs().max()) < 1e-2


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ipndm"])
def test_multistep_solvers_start_where_there_is_no_signal(solver: str) -> None:
    """A flow's first time has alpha = 0, an infinite distance in ln SNR."""
    z, schedule = torch.randn(2, 1, 2, 2, dtype=torch.float64), Schedule("flow")
    errors = [
        float((sample(Sampler(solver=s, steps=80), gaussian(schedule, "flow"), z) - z * S).abs().max())
        for s in (solver, "ddim")
    ]
    assert errors[0] < errors[1] < 0.05


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_ddim_equals_diffusers(tiny_model: Model, steps: int, spacing: str) -> None:
    from diffusers import DDIMScheduler

    if spacing == "linspace" and steps == 1:
        pytest.skip("one linspace step starts at index 0")
    config = tiny_model.denoiser.schedule.diffusers
    theirs = DDIMScheduler.from_config(config, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(steps)
    times = tuple(float(t) for t in theirs.timesteps)
    ours = Sampler(steps=steps, spacing=spacing)
    assert tuple(ours.times(tiny_model.denoiser.schedule)[:-1]) == times
    if spacing != "trailing":
        return  # diffusers steps back by a constant stride from these grids; only the grid is comparable
    z, labels = tiny_model.noise(range(3)), tiny_model.labels(range(3))
    got = sample(ours, tiny_model.denoiser, z, labels)
    with torch.no_grad():
        for t in theirs.timesteps:
            z = theirs.step(tiny_model.module(z, t, labels).sample, t, z).prev_sample
    assert torch.allclose(got.float(), z, atol=2e-5)


def test_dpm_solver_equals_diffusers(tiny_model: Model) -> None:
    from diffusers import DPMSolverMultistepScheduler

    config = tiny_model.denoiser.schedule.diffusers
    theirs = DPMSolverMultistepScheduler.from_config(config, timestep_spacing="trailing", final_sigmas_type="zero")
    theirs.set_timesteps(6)
    z, labels = tiny_model.noise(range(3)), tiny_model.labels(range(3))
    got = sample(Sampler(solver="dpmpp_2m", steps=6), tiny_model.denoiser, z, labels)
    with torch.no_grad():
        for t in theirs.timesteps:
            z = theirs.step(tiny_model.module(z, t, labels).sample, t, z).prev_sample
    assert torch.allclose(got.float(), z, atol=2e-3)


def test_guidance_of_zero_weight_changes_nothing_and_batched_equals_separate(tiny_model: Model) -> None:
    z, labels = tiny_model.noise(range(4)), tiny_model.labels(range(4))

    def images(**guidance: object) -> torch.Tensor:
        return sample(Sampler(steps=3, guidance=Guidance(**guidance)), tiny_model.denoiser, z, labels)

    assert torch.equal(images(cfg=0.0), images())
    assert torch.allclose(images(cfg=1.5), images(cfg=1.5, batched=False), atol=1e-4)
    assert not torch.allclose(images(cfg=1.5), images(), atol=1e-3)
    assert torch.equal(images(folded=1.5), images())


def test_clipping_recomputes_the_noise_estimate(tiny_model: Model) -> None:
    schedule = tiny_model.denoiser.schedule
    steps = list(
        trajectory(
            Sampler(steps=3, clip=0.1), tiny_model.denoiser, tiny_model.noise(range(2)), tiny_model.labels(range(2))
        )
    )
    for step in steps[:-1]:
        assert float(step.x.abs().max()) <= 0.1
        rebuilt = float(schedule.alpha(step.t)) * step.x + float(schedule.sigma(step.t)) * step.e
        assert torch.allclose(rebuilt, step.z, atol=1e-9)


def test_nfe_counts_both_branches_and_both_heun_calls() -> None:
    assert Sampler(steps=50, guidance=Guidance(cfg=0.5)).nfe(COSINE) == 100
    assert Sampler(steps=2, guidance=Guidance(folded=0.5)).nfe(COSINE) == 2
    assert Sampler(steps=10, solver="heun").nfe(COSINE) == 19
    assert Sampler(steps=4, guidance=Guidance(cfg=1.0, interval=(0, 600))).nfe(COSINE) == 6


def test_folded_and_cfg_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="keep one"):
        Guidance(cfg=1.0, folded=1.0)


def test_timesteps_must_fall() -> None:
    with pytest.raises(ValidationError, match="decreasing"):
        Sampler(steps=2, timesteps=(10.0, 20.0))


@given(st.integers(0, 10**6), st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_a_sample_depends_on_its_own_seed_alone(seed: int, others: int) -> None:
    from optimize import rng

    alone = rng.noise([seed], (1, 4, 4))[0]
    together = rng.noise([*range(others), seed], (1, 4, 4))[-1]
    assert (alone == together).all()


@given(st.floats(-1, 999))
@settings(max_examples=50, deadline=None)
def test_a_vp_schedule_preserves_variance_at_any_fractional_time(t: float) -> None:
    assert float(COSINE.alpha(t) ** 2 + COSINE.sigma(t) ** 2) == pytest.approx(1.0, abs=1e-12)


def test_schedules_equal_diffusers() -> None:
    from diffusers import DDPMScheduler

    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        theirs = DDPMScheduler(beta_schedule=name)
        ours = from_diffusers(dict(theirs.config))
        assert np.allclose(ours.alpha_bar, theirs.alphas_cumprod.numpy(), rtol=2e-4, atol=1e-7)
        assert Schedule.from_json(ours.to_json()) == ours


def test_initial_noise_is_one_keyed_draw_a_seed_however_the_batch_is_cut() -> None:
    whole = rng.noise(range(5), (1, 4, 4))
    assert all(np.array_equal(row, rng.normal((1, 4, 4), "sample", i)) for i, row in enumerate(whole))
    assert np.array_equal(whole[[3, 1]], rng.noise([3, 1], (1, 4, 4)))
    assert whole.dtype == np.float32 and rng.noise([], (1, 4, 4)).shape == (0, 1, 4, 4)
