"""What the fields of a scheduler config may be.

`known(config)` is the whole reading: the class is understood or refused by name, every field that its class takes is
checked, and a field that no class takes is refused unless it is off, since it might change the schedule.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optimize.diffusion.scheduler_config.classes import FILE, KNOWN, ORDINARY, SIGMAS, WHY, Known, value
from optimize.errors import UserError, did_you_mean

_Flag = bool | None
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Between = Annotated[float, Field(gt=0, lt=1)]
_Spacing = Literal["linspace", "leading", "trailing"]


class Fields(BaseModel):
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


_ALL = frozenset(Fields.model_fields).union(ORDINARY.fields, *(entry.fields for entry in KNOWN.values()))


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
        Fields.model_validate(taken)
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
    for name, given in config.items():
        if name.startswith("_") or name in entry.fields or given is None or given is False:
            continue
        if name in _ALL or _at_default(str(config.get("_class_name", "")), name, given):
            continue  # of another class, which diffusers ignores here as well
        raise UserError(
            f"{FILE}: {name!s:.80}: given {given!r:.80}, and this field is not known, so that it might change the schedule. "
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
    low, high = value(config, "sigma_min"), value(config, "sigma_max", 80.0 if entry.family == "edm" else None)
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
