"""The scheduler classes of diffusers that are read, with their fields, and why the others are not.

`value(config, name)` is a field as its class reads it. Fields of other classes are ignored, as diffusers ignores them.
Torch-free; classes and fields as in diffusers 0.42 (a test compares them with the installed one).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Family = Literal["vp", "flow", "edm", "consistency"]
FILE = "scheduler_config.json"
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
_BETAS = "num_train_timesteps beta_start beta_end beta_schedule trained_betas prediction_type "
_SPACED = _BETAS + "timestep_spacing steps_offset "
_THRESHOLD = "thresholding dynamic_thresholding_ratio sample_max_value "
_CLIP = "clip_sample clip_sample_range "
_DDIM = _SPACED + _CLIP + "set_alpha_to_one rescale_betas_zero_snr "
_CONVERTED = "use_karras_sigmas use_exponential_sigmas use_beta_sigmas "
_MULTISTEP = _SPACED + _THRESHOLD + _CONVERTED + "solver_order algorithm_type solver_type lower_order_final "
_AS_FLOW = "use_flow_sigmas flow_shift "
_DYNAMIC = "use_dynamic_shifting time_shift_type "
_LCM = _DDIM + _THRESHOLD + "original_inference_steps timestep_scaling "
_DPM = _MULTISTEP + _AS_FLOW + "lambda_min_clipped variance_type final_sigmas_type "
_FLOW = (
    "num_train_timesteps shift base_shift max_shift base_image_seq_len max_image_seq_len invert_sigmas shift_terminal "
    + _CONVERTED
    + _DYNAMIC
)
_EDM = "num_train_timesteps sigma_min sigma_max sigma_data sigma_schedule prediction_type rho final_sigmas_type "
_LATENT = {"beta_start": 0.00085, "beta_end": 0.012}
_LATENT_SCALED = {**_LATENT, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Known:
    """A class that is understood: its fields, and those defaults of it that are not the ordinary ones.

    `scaled`: its state is z / alpha, which it scales down before the network sees it. `noisy`: it adds noise at every
    step, so that a solver without noise takes its place; `consistency`: it renoises, and nothing else draws its images.
    """

    family: Family
    fields: frozenset[str]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    scaled: bool = False
    noisy: bool = False
    consistency: bool = False


def _class(family: Family, fields: str, defaults: Mapping[str, Any] | None = None, **more: bool) -> Known:
    return Known(family, frozenset(fields.split()), defaults or {}, **more)


CLIPPED = {"clip_sample": True, "timestep_spacing": "leading"}
KNOWN = {
    "DDIMScheduler": _class("vp", _DDIM + _THRESHOLD, CLIPPED),
    "DDIMParallelScheduler": _class("vp", _DDIM + _THRESHOLD, CLIPPED),
    "DDPMScheduler": _class(
        "vp", _SPACED + _CLIP + _THRESHOLD + "variance_type rescale_betas_zero_snr", CLIPPED, noisy=True
    ),
    "DDPMParallelScheduler": _class(
        "vp", _SPACED + _CLIP + _THRESHOLD + "variance_type rescale_betas_zero_snr", CLIPPED, noisy=True
    ),
    "PNDMScheduler": _class(
        "vp", _SPACED + "skip_prk_steps set_alpha_to_one", {"timestep_spacing": "leading", "set_alpha_to_one": False}
    ),
    "EulerDiscreteScheduler": _class(
        "vp",
        _SPACED
        + _CONVERTED
        + "interpolation_type sigma_min sigma_max timestep_type rescale_betas_zero_snr final_sigmas_type",
        scaled=True,
    ),
    "EulerAncestralDiscreteScheduler": _class("vp", _SPACED + "rescale_betas_zero_snr", scaled=True, noisy=True),
    "HeunDiscreteScheduler": _class("vp", _SPACED + _CONVERTED + _CLIP, _LATENT, scaled=True),
    "LMSDiscreteScheduler": _class("vp", _SPACED + _CONVERTED, scaled=True),
    "KDPM2DiscreteScheduler": _class("vp", _SPACED + _CONVERTED, _LATENT, scaled=True),
    "KDPM2AncestralDiscreteScheduler": _class("vp", _SPACED + _CONVERTED, _LATENT, scaled=True, noisy=True),
    "DPMSolverMultistepScheduler": _class(
        "vp", _DPM + _DYNAMIC + "euler_at_final use_lu_lambdas rescale_betas_zero_snr"
    ),
    "DPMSolverSinglestepScheduler": _class(
        "vp", " ".join(f for f in (_DPM + _DYNAMIC).split() if f not in ("timestep_spacing", "steps_offset"))
    ),
    "DEISMultistepScheduler": _class("vp", _MULTISTEP + _AS_FLOW + _DYNAMIC, {"algorithm_type": "deis"}),
    "UniPCMultistepScheduler": _class(
        "vp",
        _SPACED
        + _THRESHOLD
        + _CONVERTED
        + _AS_FLOW
        + _DYNAMIC
        + "solver_order predict_x0 solver_type lower_order_final disable_corrector solver_p final_sigmas_type "
        + "rescale_betas_zero_snr sigma_min sigma_max shift_terminal",
    ),
    "SASolverScheduler": _class(
        "vp",
        _SPACED
        + _THRESHOLD
        + _CONVERTED
        + _AS_FLOW
        + "predictor_order corrector_order tau_func algorithm_type lower_order_final lambda_min_clipped variance_type",
        noisy=True,
    ),
    "LCMScheduler": _class("vp", _LCM, {**_LATENT_SCALED, "timestep_spacing": "leading"}, consistency=True),
    "TCDScheduler": _class("vp", _LCM, {**_LATENT_SCALED, "timestep_spacing": "leading"}, consistency=True),
    "FlowMatchEulerDiscreteScheduler": _class("flow", _FLOW + "stochastic_sampling"),
    "FlowMatchHeunDiscreteScheduler": _class("flow", "num_train_timesteps shift"),
    "FlowMatchLCMScheduler": _class("flow", _FLOW + "scale_factors upscale_mode", consistency=True),
    "EDMEulerScheduler": _class("edm", _EDM),
    "EDMDPMSolverMultistepScheduler": _class(
        "edm", _EDM + _THRESHOLD + "solver_order algorithm_type solver_type lower_order_final euler_at_final"
    ),
    "CMStochasticIterativeScheduler": _class(
        "consistency", "num_train_timesteps sigma_min sigma_max sigma_data s_noise rho clip_denoised", consistency=True
    ),
}
WHY = {  # classes of diffusers that are not read, and why
    **dict.fromkeys(
        ("AmusedScheduler", "BlockRefinementScheduler", "DiscreteDDIMScheduler", "EntropyBoundScheduler",
         "VQDiffusionScheduler"), "it denoises discrete tokens"),
    **dict.fromkeys(
        ("DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler", "RePaintScheduler"),
        "it runs towards noise, to edit a given image"),
    **dict.fromkeys(
        ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler", "HeliosScheduler", "HeliosDMDScheduler",
         "LTXEulerAncestralRFScheduler", "MiniMaxH3Scheduler"), "it belongs to one model of video"),
    **dict.fromkeys(
        ("ScoreSdeVeScheduler", "ScoreSdeVpScheduler", "KarrasVeScheduler", "CosineDPMSolverMultistepScheduler",
         "DPMSolverSDEScheduler", "SCMScheduler", "IPNDMScheduler", "ConsistencyDecoderScheduler",
         "DDPMWuerstchenScheduler", "UnCLIPScheduler", "FlowMapEulerDiscreteScheduler", "PiflowScheduler",
         "RFD4ProteinaScheduler"), "how its network is fed and read is not known here"),
}  # fmt: skip

ORDINARY = Known(  # of a config without a class
    "vp", frozenset((_LCM + _DPM + "euler_at_final use_lu_lambdas skip_prk_steps final_sigmas_type").split())
)


def value(config: Mapping[str, Any], name: str, default: Any = None) -> Any:
    """A field as its class reads it: given, or the class's own default, or `default`; None where the class has no such
    field."""
    entry = KNOWN.get(str(config.get("_class_name", "")), ORDINARY)
    if name not in entry.fields:
        return default if entry is ORDINARY else None
    found = config.get(name)
    if name in config and (found is not None or name not in entry.defaults):
        return default if found is None else found
    return entry.defaults.get(name, default)


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether z = (1 - t) x + t eps: a flow scheduler, or a multistep one told to use flow sigmas."""
    return _family(config) == "flow" or bool(value(config, "use_flow_sigmas"))


def _family(config: Mapping[str, Any]) -> Family:
    return KNOWN.get(str(config.get("_class_name", "")), ORDINARY).family


def is_edm(config: Mapping[str, Any]) -> bool:
    """Whether the network is preconditioned as EDM's: an EDM scheduler, or Euler's with continuous time and a v head."""
    return _family(config) == "edm" or _continuous(config)


def is_consistency(config: Mapping[str, Any]) -> bool:
    """Whether the network is a consistency model in EDM's preconditioning."""
    return _family(config) == "consistency"


def _continuous(config: Mapping[str, Any]) -> bool:
    return value(config, "timestep_type") == "continuous" and value(config, "prediction_type") == "v_prediction"


def endless(number: Any) -> bool:
    """Infinity or NaN, which JSON does not have: diffusers writes lambda_min_clipped, a bound that nothing is beyond, so."""
    return isinstance(number, float) and not math.isfinite(number)
