"""Every scheduler class of diffusers: drawn as its own loop draws, over a random U-Net and the exact Gaussian, or refused."""

from __future__ import annotations

import inspect
import json
from typing import Any

import diffusers
import pytest
import torch

from optimize.architectures.assembled import assembled
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Sampler, sample
from optimize.diffusion.scheduler_config import classes, fields
from optimize.errors import UserError

UNET = {
    "sample_size": 8, "in_channels": 2, "out_channels": 2, "block_out_channels": [8, 16], "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "norm_num_groups": 4,
}  # fmt: skip
NOISY = {name for name, entry in classes.KNOWN.items() if entry.noisy}
RENOISED = {name for name, entry in classes.KNOWN.items() if entry.consistency}
SETTINGS: list[tuple[str, dict[str, Any], int]] = [
    *((name, {}, steps) for name in sorted(set(classes.KNOWN) - NOISY - RENOISED) for steps in (1, 7)),
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
        return (sample * torch.sigmoid(t / 300 + 0.3),)


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
        assert (
            far(getattr(diffusers, name)(**about), network, steps) < 1e-4
        )  # clipping and thresholding, in float32 there, amplify rounding


@pytest.mark.parametrize("name", sorted(NOISY))
def test_a_solver_without_noise_takes_the_place_of_one_with_and_it_is_said(
    name: str, unet: torch.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    made = model(getattr(diffusers, name)(), unet, steps=5)
    assert made.sampler.solver == "ddim"
    assert f"{name} adds noise at every step; ddim, which adds none" in caplog.text
    assert made.source["notes"] and torch.isfinite(made.sample([0])).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted((NOISY | RENOISED) - {"FlowMatchLCMScheduler"}))
def test_the_own_loop_adds_noise_that_depends_on_each_seed_alone(name: str, unet: torch.nn.Module) -> None:
    made = model(getattr(diffusers, name)(), unet, steps=4, solver="scheduler")
    together, alone = made.sample([3, 4]), made.sample([4])
    assert torch.allclose(together[1], alone[0], atol=1e-4) and torch.equal(made.sample([4]), alone)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_every_class_of_diffusers_is_read_or_refused_by_name() -> None:
    found = {n for n in dir(diffusers) if n.endswith("Scheduler") and inspect.isclass(getattr(diffusers, n))}
    assert found - {"KarrasDiffusionSchedulers"} <= set(classes.KNOWN) | set(classes.WHY)
    assert not set(classes.KNOWN) & set(classes.WHY)


@pytest.mark.parametrize("name", sorted(classes.KNOWN))
def test_the_fields_and_unusual_defaults_of_a_class_are_those_of_diffusers(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    entry, ordinary = classes.KNOWN[name], fields.Fields.model_fields
    assert entry.fields == set(parameters) - {"self", "kwargs"}
    assert all(parameters[field].default == value for field, value in entry.defaults.items())
    reads = {
        f: ordinary[f].default
        for f in (
            "beta_start",
            "beta_end",
            "beta_schedule",
            "clip_sample",
            "set_alpha_to_one",
            "timestep_spacing",
            "sigma_data",
        )
    }
    for field, default in reads.items():
        if field in entry.fields:
            assert classes.value({"_class_name": name}, field, default) == parameters[field].default


@pytest.mark.parametrize("name", [*sorted(classes.WHY), "NoSuchScheduler", "EulerDiscreteSchedule"])
def test_other_classes_are_refused_by_name(name: str, unet: torch.nn.Module) -> None:
    with pytest.raises(UserError, match=f'scheduler_config.json: _class_name "{name}" is not read.* Allowed: .*DDIM'):
        assembled("UNet2DModel", UNET, {"_class_name": name}, Sampler(), module=unet)


DDIM = {"_class_name": "DDIMScheduler"}
WRONG = [
    ({"my_new_sigmas": True}, "my_new_sigmas: given True, and this field is not known"),
    ({"beta_start": -0.1}, "beta_start: given -0.1"),
    ({"beta_end": 1.5}, "beta_end: given 1.5"),
    ({"beta_start": float("nan")}, "beta_start: given nan"),
    ({"beta_start": 0.5}, "beta_start is larger than beta_end"),
    ({"trained_betas": [0.1, 2.0], "num_train_timesteps": 2}, "trained_betas.1: given 2.0"),
    ({"trained_betas": [0.1]}, "trained_betas: 1 numbers, num_train_timesteps says 1000"),
    ({"num_train_timesteps": 10**9}, "num_train_timesteps: given 1000000000"),
    ({"num_train_timesteps": "many"}, "num_train_timesteps: given 'many'"),
    ({"beta_schedule": "sigmoid"}, "beta_schedule: given 'sigmoid'"),
    ({"prediction_type": "score"}, "prediction_type: given 'score'"),
    ({"prediction_type": "flow_prediction"}, '"flow_prediction" needs use_flow_sigmas'),
    ({"timestep_spacing": "random"}, "timestep_spacing: given 'random'"),
    ({"clip_sample_range": 0}, "clip_sample_range: given 0"),
    ({"rescale_betas_zero_snr": True}, '"epsilon" given with zero terminal SNR'),
    ({"trained_betas": [0.1, 1.0], "num_train_timesteps": 2}, '"epsilon" given with zero terminal SNR'),
    ({"_class_name": "EulerDiscreteScheduler", "rescale_betas_zero_snr": True}, '"epsilon" given with zero terminal SNR'),
    ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "use_beta_sigmas": True}, "only one of them"),
    ({"_class_name": "EDMEulerScheduler", "sigma_min": 90.0}, "sigma_min: 90 given with sigma_max 80"),
    ({"_class_name": "EDMEulerScheduler", "sigma_data": -1.0}, "sigma_data: given -1.0"),
    ({"_class_name": "EDMEulerScheduler", "prediction_type": "flow_prediction"}, "of an EDM scheduler"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True}, "invert_sigmas is not supported"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": float("inf")}, "shift: given inf"),
    ({"_class_name": ["DDIMScheduler"]}, "is not read"),
]  # fmt: skip


@pytest.mark.parametrize("about, said", WRONG, ids=lambda v: str(v)[:60])
def test_wrong_values_and_unknown_fields_are_refused(about: dict[str, Any], said: str, unet: torch.nn.Module) -> None:
    with pytest.raises(UserError, match=said) as error:
        assembled("UNet2DModel", UNET, {**DDIM, **about}, Sampler(), module=unet)
    assert len(str(error.value)) < 2000


def test_what_a_class_does_not_read_is_ignored_as_diffusers_ignores_it(unet: torch.nn.Module) -> None:
    """Stable Diffusion's own PNDM config says clip_sample, which PNDM does not have; and false switches no change."""
    about = {
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "clip_sample": True,
        "new_switch": False,
        "use_karras_sigmas": True,
    }
    found = assembled("UNet2DModel", UNET, about, Sampler(steps=4), module=unet).sampler
    assert (found.solver, found.spacing, found.clip) == ("pndm", "leading", None) and found.steps == 4


def test_what_the_recipe_says_is_kept(unet: torch.nn.Module) -> None:
    config = {**DDIM, "clip_sample": True, "timestep_spacing": "leading"}

    def sampler(**said: Any) -> Sampler:
        return assembled("UNet2DModel", UNET, config, Sampler(**said), module=unet).sampler

    assert (sampler().clip, sampler().use_clipped_model_output, sampler().spacing) == (1.0, False, "scheduler")
    assert sampler(clip=None).clip is None and sampler(clip=2.0).clip == 2.0
    assert (sampler(spacing="trailing").spacing, sampler(spacing="trailing").clip) == ("trailing", 1.0)
    assert (sampler(solver="dpmpp_2m").spacing, sampler(solver="dpmpp_2m").use_clipped_model_output) == (
        "leading",
        True,
    )
    with pytest.raises(UserError, match=r'sampler\.clip: given with solver "scheduler"'):
        sampler(solver="scheduler", clip=1.0)
    with pytest.raises(UserError, match=r"sampler\.spacing: .* lays its own grid"):
        sampler(solver="scheduler", spacing="trailing")


def test_thresholding_is_followed_by_the_own_loop_and_refused_with_another_solver(unet: torch.nn.Module) -> None:
    config = {**DDIM, "thresholding": True}
    assert assembled("UNet2DModel", UNET, config, Sampler(steps=3), module=unet).sampler.solver == "scheduler"
    with pytest.raises(UserError, match="thresholding is done by the scheduler's own loop alone"):
        assembled("UNet2DModel", UNET, config, Sampler(solver="ddim"), module=unet)
    assert assembled("UNet2DModel", UNET, config, Sampler(solver="ddim", clip=1.0), module=unet).sampler.clip == 1.0


@pytest.mark.parametrize("name, about, steps", [
    ("PNDMScheduler", {"skip_prk_steps": True}, 6), ("PNDMScheduler", {}, 6), ("HeunDiscreteScheduler", {}, 5),
    ("UniPCMultistepScheduler", {}, 5), ("KDPM2DiscreteScheduler", {}, 5), ("DDIMScheduler", {"timestep_spacing": "trailing"}, 61),
])  # fmt: skip
def test_evaluations_are_counted_as_they_are_made(
    name: str, about: dict[str, Any], steps: int, unet: torch.nn.Module
) -> None:
    made, calls = model(getattr(diffusers, name)(**about), unet, steps=steps), []
    counted = made.with_network(Counting(made.denoiser.network, calls))
    counted.sample([0])
    assert len(calls) == made.nfe


class Counting:
    """A network that notes its calls."""

    def __init__(self, network: Any, calls: list[int]) -> None:
        self.network, self.inputs, self.calls = network, network.inputs, calls

    def __call__(self, **tensors: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(tensors))
        return self.network(**tensors)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_a_whole_edm_denoiser_of_gaussian_data_draws_its_standard_deviation(name: str) -> None:
    """Head "sample" of an EDM scheduler: the network is D(z; sigma) itself, fed z and sigma."""

    class Perfect(torch.nn.Module):
        def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            return sample * 0.25 / (0.25 + timestep.reshape(-1, 1, 1, 1) ** 2)

    config = {"_class_name": name, "prediction_type": "sample"}
    made = assembled("UNet2DModel", UNET, config, Sampler(steps=200), module=Perfect())
    drawn = sample(made.sampler, made.denoiser, made.noise(range(64)))
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.03)
