"""What a diffusers scheduler config says: which family of noise its class is of, and how its pipeline samples.

`known(config)` is the whole reading: the class is understood or refused by name, every field that its class takes is
checked, and a field that no class takes is refused unless it is off. Fields of other classes are ignored, as diffusers
ignores them. Torch-free; classes and fields as in diffusers 0.42 (a test compares them with the installed one).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optimize.errors import UserError, did_you_mean

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

_Flag = bool | None
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Between = Annotated[float, Field(gt=0, lt=1)]
_Spacing = Literal["linspace", "leading", "trailing"]


class _Fields(BaseModel):
    """The values that fields may have, whichever class they are of."""

    model_config = ConfigDict(extra="ignore", strict=False, protected_namespaces=())

    num_train_timesteps: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 1000
    beta_start: _Between = 1e-4
    beta_end: _Between = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[Annotated[float, Field(gt=0, le=1)]] | None = None
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] = "epsilon"
    timestep_spacing: _Spacing = "linspace"
    steps_offset: Annotated[int, Field(ge=0, le=1000, strict=True)] = 0
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    interpolation_type: Literal["linear", "log_linear"] = "linear"
    timestep_type: Literal["discrete", "continuous"] = "discrete"
    sigma_schedule: Literal["karras", "exponential"] = "karras"
    time_shift_type: Literal["exponential", "linear"] = "exponential"
    sigma_min: _Positive | None = None
    sigma_max: _Positive | None = None
    sigma_data: _Positive = 0.5
    rho: _Positive = 7.0
    s_noise: _Positive = 1.0
    clip_sample_range: _Positive | None = 1.0
    sample_max_value: _Positive | None = 1.0
    dynamic_thresholding_ratio: Annotated[float, Field(ge=0, le=1)] | None = 0.995
    shift: _Positive | None = 1.0
    flow_shift: _Positive | None = 1.0
    base_shift: Annotated[float, Field(allow_inf_nan=False)] | None = 0.5
    max_shift: Annotated[float, Field(allow_inf_nan=False)] | None = 1.15
    base_image_seq_len: Annotated[int, Field(ge=1)] | None = 256
    max_image_seq_len: Annotated[int, Field(ge=1)] | None = 4096
    shift_terminal: Annotated[float, Field(ge=0, lt=1)] | None = None
    original_inference_steps: Annotated[int, Field(ge=1)] = 50
    solver_order: Annotated[int, Field(ge=1, le=3)] = 2
    clip_sample: _Flag = False
    thresholding: _Flag = False
    clip_denoised: _Flag = True
    set_alpha_to_one: _Flag = True
    skip_prk_steps: _Flag = False
    rescale_betas_zero_snr: _Flag = False
    use_karras_sigmas: _Flag = False
    use_exponential_sigmas: _Flag = False
    use_beta_sigmas: _Flag = False
    use_lu_lambdas: _Flag = False
    use_flow_sigmas: _Flag = False
    use_dynamic_shifting: _Flag = False
    stochastic_sampling: _Flag = False
    invert_sigmas: _Flag = False
    lower_order_final: _Flag = True
    euler_at_final: _Flag = False


ORDINARY = Known("vp", frozenset(_Fields.model_fields) | frozenset((_LCM + _DPM).split()))  # of a config without a class
_ALL = ORDINARY.fields.union(*(entry.fields for entry in KNOWN.values()))


def known(config: Any) -> Known:
    """The class of a config, whose fields have been checked.

    Raises UserError for a class that is not read, a field that no class takes and that is not off, and a value that is
    not allowed.
    """
    if not isinstance(config, dict):
        raise UserError(f"{FILE}: a JSON object is needed, this is a {type(config).__name__}.")
    entry = _entry(config.get("_class_name"))
    taken = {k: v for k, v in config.items() if k in entry.fields}
    _check_unknown(config, entry)
    try:
        _Fields.model_validate(taken)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"{FILE}: {name}: given {first['input']!r:.80}. {first['msg']}.") from None
    _check_together(config, entry)
    return entry


def _entry(name: Any) -> Known:
    if name is None:
        return ORDINARY
    if not isinstance(name, str) or name not in KNOWN:
        why = WHY.get(name) if isinstance(name, str) else None
        said = f": {why}" if why else ""
        near = did_you_mean(name, KNOWN) if isinstance(name, str) and not why else ""
        raise UserError(
            f'{FILE}: _class_name "{name!s:.80}" is not read{said}. Allowed: {", ".join(sorted(KNOWN))}.{near}'
        )
    return KNOWN[name]


def _check_unknown(config: dict[str, Any], entry: Known) -> None:
    for name, value in config.items():
        if name.startswith("_") or name in entry.fields or value is None or value is False:
            continue
        if name in _ALL or _at_default(str(config.get("_class_name", "")), name, value):
            continue  # of another class, which diffusers ignores here as well
        raise UserError(
            f"{FILE}: {name!s:.80}: given {value!r:.80}, and this field is not known, so that it might change the schedule. "
            f"Remove it, or set it to false.{did_you_mean(name, entry.fields)}"
        )


def _at_default(class_name: str, name: str, value: Any) -> bool:
    """Whether the installed diffusers, which may be newer, has this field of the class at this very default."""
    import inspect

    import diffusers

    found = getattr(diffusers, class_name, None)
    parameter = inspect.signature(found.__init__).parameters.get(name) if found is not None else None
    return parameter is not None and bool(parameter.default == value)


def _check_together(config: dict[str, Any], entry: Known) -> None:
    chosen = [name for name in SIGMAS if name in entry.fields and config.get(name)]
    if len(chosen) > 1:
        raise UserError(f"{FILE}: {', '.join(chosen)}: only one of them can be true.")
    low, high = value(config, "sigma_min"), value(config, "sigma_max")
    if low is not None and high is not None and not low < high:
        raise UserError(f"{FILE}: sigma_min: {low:g} given with sigma_max {high:g}; it must be smaller.")
    n, betas = int(value(config, "num_train_timesteps", 1000)), value(config, "trained_betas")
    if betas is not None and len(betas) != n:
        raise UserError(f"{FILE}: trained_betas: {len(betas)} numbers, num_train_timesteps says {n}.")
    if betas is None and entry.family == "vp" and value(config, "beta_start", 1e-4) > value(config, "beta_end", 0.02):
        raise UserError(f"{FILE}: beta_start is larger than beta_end. Noise must grow with time.")
    if value(config, "invert_sigmas"):
        raise UserError(f"{FILE}: invert_sigmas is not supported: its time runs from data to noise. Set it to false.")
    few, many = value(config, "base_image_seq_len", 256), value(config, "max_image_seq_len", 4096)
    if value(config, "use_dynamic_shifting") and not few < many:
        raise UserError(f"{FILE}: base_image_seq_len: {few} given with max_image_seq_len {many}; it must be smaller.")


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
