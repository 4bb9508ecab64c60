"""Every scheduler class of diffusers: drawn as its own loop draws, over a random U-Net and the exact Gaussian, or refused."""

from __future__ import annotations

import inspect
import json
from typing import Any

import diffusers
import pytest
import torch

from optimize.architectures.assembled import assembled
from optimize.diffusion import schedulers
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Sampler, sample
from optimize.errors import UserError

UNET = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": [8, 16], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": 4,
}  # fmt: skip
NOISY = {name for name, entry in schedulers.KNOWN.items() if entry.noisy}
RENOISED = {name for name, entry in schedulers.KNOWN.items() if entry.consistency}
SETTINGS: list[tuple[str, dict[str, Any], int]] = [
    *((name, {}, steps) for name in sorted(set(schedulers.KNOWN) - NOISY - RENOISED) for steps in (1, 7)),
    *(("DDIMScheduler", about, 10) for about in (
        {"clip_sample": False}, {"clip_sample_range": 0.5}, {"thresholding": True, "sample_max_value": 1.5},
        {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}, {"set_alpha_to_one": False, "steps_offset": 1},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"prediction_type": "sample"}, {"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.01] * 40, "num_train_timesteps": 40})),
    ("DDIMScheduler", {"timestep_spacing": "trailing"}, 30),
    *(("PNDMScheduler", {"skip_prk_steps": True, **about}, 6) for about in (
        {}, {"steps_offset": 1}, {"timestep_spacing": "trailing"}, {"set_alpha_to_one": True})),
    ("PNDMScheduler", {"skip_prk_steps": True}, 2),
    *(("EulerDiscreteScheduler", about, 9) for about in (
        {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading", "steps_offset": 1}, {"use_karras_sigmas": True},
        {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}, {"final_sigmas_type": "sigma_min"},
        {"interpolation_type": "log_linear"}, {"use_karras_sigmas": True, "sigma_min": 0.01, "sigma_max": 40.0},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0},
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {"timestep_type": "continuous"})),
    *(("HeunDiscreteScheduler", about, 6) for about in (
        {"use_karras_sigmas": True}, {"clip_sample": True, "clip_sample_range": 0.7}, {"beta_schedule": "squaredcos_cap_v2"})),
    *(("DPMSolverMultistepScheduler", about, 8) for about in (
        {"use_karras_sigmas": True}, {"use_lu_lambdas": True}, {"use_beta_sigmas": True}, {"use_exponential_sigmas": True},
        {"solver_order": 1}, {"solver_order": 3}, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
        {"solver_type": "heun"}, {"final_sigmas_type": "sigma_min"}, {"euler_at_final": True}, {"lower_order_final": False},
        {"timestep_spacing": "trailing"}, {"timestep_spacing": "leading"}, {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}, {"thresholding": True},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"})),
    ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, 40),
    *(("DPMSolverSinglestepScheduler", about, 8) for about in ({"use_karras_sigmas": True}, {"solver_order": 3})),
    *(("UniPCMultistepScheduler", about, 8) for about in (
        {"use_karras_sigmas": True}, {"solver_order": 3}, {"use_flow_sigmas": True, "flow_shift": 5.0, "prediction_type": "flow_prediction"})),
    *(("FlowMatchEulerDiscreteScheduler", about, 7) for about in (
        {"shift": 3.0}, {"shift_terminal": 0.1}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True},
        {"use_beta_sigmas": True}, {"use_dynamic_shifting": True}, {"use_dynamic_shifting": True, "time_shift_type": "linear"})),
    ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 5),
    *((name, about, 8) for name in ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler") for about in (
        {"sigma_schedule": "exponential"}, {"prediction_type": "v_prediction"}, {"sigma_data": 1.0, "sigma_max": 20.0, "rho": 5.0},
        {"final_sigmas_type": "sigma_min"})),
    *(("EDMDPMSolverMultistepScheduler", {"solver_order": order}, 8) for order in (1, 3)),
    ("CMStochasticIterativeScheduler", {}, 1), ("LCMScheduler", {}, 1), ("TCDScheduler", {}, 1),
]  # fmt: skip


class GaussianNetwork(torch.nn.Module):
    """A smooth function of input and time, near the optimal epsilon for normal data."""

    def forward(self, sample: torch.Tensor, timestep: Any, **_: Any) -> Any:
        t = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1, 1, 1)
        return (sample * torch.sigmoid(t / 300 + 0.3), )


@pytest.fixture(scope="module")
def unet() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DModel.from_config(UNET).eval()


def model(scheduler: Any, network: torch.nn.Module, **sampler: Any) -> Model:
    config = json.loads(json.dumps(dict(scheduler.config)))
    config["_class_name"] = type(scheduler).__name__
    return assembled("UNet2DModel", UNET, config, Sampler(**sampler), module=network)


def theirs(scheduler: Any, network: Any, z: torch.Tensor, steps: int, mu: float | None = None) -> torch.Tensor:
    """diffusers' own loop, as its pipelines have it."""
    scheduler.set_timesteps(steps, **({} if mu is None else {"mu": mu}))
    x = z * getattr(scheduler, "init_noise_sigma", 1.0)
    with torch.no_grad():
        for t in scheduler.timesteps:
            seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(seen, t, return_dict=False)[0], t, x).prev_sample
    return x


def far(scheduler: Any, network: Any, steps: int) -> float:
    z = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    made = model(scheduler, network, steps=steps)
    mu = None
    if scheduler.config.get("use_dynamic_shifting"):
        shift = made.denoiser.schedule.shift
        mu = shift if scheduler.config.time_shift_type == "linear" else float(torch.tensor(shift).double().log())
    got = sample(made.sampler, made.denoiser, z)
    wanted = theirs(scheduler, network, z, steps, mu)
    assert torch.isfinite(wanted).all()
    return float((got - wanted).norm() / wanted.norm())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, about, steps", SETTINGS, ids=str)
def test_a_model_is_drawn_as_the_loop_of_its_own_scheduler_draws_it(
    name: str, about: dict[str, Any], steps: int, unet: torch.nn.Module
) -> None:
    if name == "PNDMScheduler" and not about and steps < 4:
        pytest.skip("its Runge-Kutta start takes four steps")
    for network in (unet, GaussianNetwork()):
        assert far(getattr(diffusers, name)(**about), network, steps) < 1e-4  # clipping and thresholding, in float32 there, amplify rounding
