"""Quantizers as data: a JSON table says which modules are quantized and how; modelopt's modules are built from it.

The same `insert` serves the pass and the loading of an artifact, on real or meta modules, so nothing pickled is
needed. Weights of quantized layers are held rounded, in float32; on disk they are INT8 or FP8 codes, and what is kept
in high precision is 16 bit: `store_compactly` translates both ways without changing a bit of the network's output.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from optimize.errors import EnvironmentLacks
from optimize.plain.shapes import Shape, Size
from optimize.quantization.codes import Bits, from_codes, to_codes

if TYPE_CHECKING:
    from torch import Tensor, nn

# [{"module": path, "weight": {bits, axis, shape}, "input": {bits, axis, shape} or None for narrow weights alone}];
# bits are 7 or 8 (INT8 codes) or "e4m3" (FP8)
Table = list[dict[str, Any]]


class Codes(Shape):
    """How one tensor of a layer is quantized."""

    bits: Annotated[int, Field(ge=2, le=8)] | Literal["e4m3"]
    axis: int | list[int] | None
    shape: list[Size] | None = None


class Quantized(Shape):
    """A row of the table."""

    module: str
    weight: Codes
    input: Codes | None


class Record(Shape):
    """What a quantized network is built again from."""

    quantizers: list[Quantized]
    kept_dtype: Literal["fp16", "bf16", "fp32"]


E4M3 = (4, 3)  # modelopt's name for it
DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def insert(module: nn.Module, table: Table) -> nn.Module:
    """Turn the modules that `table` names into modelopt's fake-quantizing ones, with empty `_amax` of its shapes.

    Works in place and on the meta device. Raises EnvironmentLacks where modelopt is missing.
    """
    import torch

    library = modelopt()
    for entry in table:
        parent, _, name = entry["module"].rpartition(".")
        target = module.get_submodule(entry["module"])
        device = target.weight.device
        quantized = library.nn.QuantModuleRegistry.convert(target)
        setattr(module.get_submodule(parent), name, quantized)
        for kind in ("weight", "input"):
            quantizer, spec = getattr(quantized, f"{kind}_quantizer"), entry[kind]
            if spec is None:
                quantizer.disable()
                continue
            bits = E4M3 if spec["bits"] == "e4m3" else spec["bits"]
            quantizer.set_from_attribute_config({"num_bits": bits, "axis": spec["axis"], "enable": True})
            if spec.get("shape") is not None:
                quantizer.amax = torch.empty(spec["shape"], device=device)
    return module


def modelopt() -> Any:
    """`modelopt.torch.quantization`, imported quietly."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import modelopt.torch.quantization as library
    except ImportError as error:
        raise EnvironmentLacks(
            f"quantize: nvidia-modelopt cannot be imported ({error}). Install it: pip install 'nvidia-modelopt==0.47.*' requests"
        ) from error
    return library


def formats(table: Iterable[dict[str, Any]]) -> dict[str, str]:
    """Format of each module that computes in 8 bits, by path; codes of 7 bits run as INT8."""
    return {r["module"]: format_of(r["weight"]["bits"]) for r in table if r["input"] is not None}


def format_of(bits: Bits) -> str:
    """Name of the format that codes are stored in: "int8", "fp8" (or "int4")."""
    if bits == "e4m3":
        return "fp8"
    return "int8" if int(bits) > 4 else "int4"


def bits_of(quantizer: Any) -> Bits:
    """Bits of a modelopt quantizer as the table says them."""
    return "e4m3" if quantizer.num_bits == E4M3 else quantizer.num_bits


def entry(path: str, module: nn.Module) -> dict[str, Any]:
    """The table's row of a calibrated quantized module."""
    row: dict[str, Any] = {"module": path}
    for kind in ("weight", "input"):
        quantizer = getattr(module, f"{kind}_quantizer")
        spec = {"bits": bits_of(quantizer), "axis": quantizer.axis}
        row[kind] = {**spec, "shape": list(quantizer.amax.shape)} if quantizer.is_enabled else None
    return row


def float_copy(module: nn.Module, table: Table) -> nn.Module:
    """A module without quantizers that shares the weights, the rounded ones, with the given one: do not train it."""
    plain = copy.deepcopy(module, {id(p): p for p in module.parameters()})
    for row in table:
        parent, _, name = row["module"].rpartition(".")
        layer = plain.get_submodule(row["module"]).export()  # copies the weight
        layer.weight = dict(module.get_submodule(row["module"]).named_parameters())["weight"]
        setattr(plain.get_submodule(parent), name, layer)
    for key in [k for k, hook in plain._state_dict_hooks.items() if getattr(hook, "func", None) is _pack]:
        del plain._state_dict_hooks[key]  # it has no codes to give, and the older exporter reads the state
    return plain


@contextmanager
def unquantized(module: nn.Module, table: Table) -> Iterator[None]:
    """Inside the block the quantizers of `table` let everything pass."""
    switch(module, table, on=False)
    try:
        yield
    finally:
        switch(module, table, on=True)


def switch(module: nn.Module, table: Table, on: bool) -> None:
    """Turn the quantizers of `table` on or off."""
    for quantizer in quantizers(module, table):
        quantizer.enable_quant() if on else quantizer.disable_quant()


def quantizers(module: nn.Module, table: Table) -> list[Any]:
    """All quantizers of `table`, weights' and inputs'."""
    layers = [module.get_submodule(row["module"]) for row in table]
    both = [q for layer in layers for q in (layer.weight_quantizer, layer.input_quantizer)]
    return [q for q in both if q.is_enabled]


def store_compactly(module: nn.Module, table: Table, kept: str) -> nn.Module:
    """Make `state_dict` give codes for quantized weights and `kept` ("fp16", ..) for all other floats but scales,
    and `load_state_dict` take them back as float32. The values must already be rounded: see `round_weights`."""
    bits: dict[str, Bits] = {row["module"]: row["weight"]["bits"] for row in table}
    module.register_state_dict_post_hook(partial(_pack, bits=bits, kept=kept, exact=_exact(module)))
    module.register_load_state_dict_pre_hook(partial(_unpack, bits=bits))
    return module


def round_weights(module: nn.Module, table: Table, kept: str) -> None:
    """Replace every weight, and every buffer that is stored, by the value that its stored form has."""
    import torch

    layers = {f"{row['module']}.weight": module.get_submodule(row["module"]).weight_quantizer for row in table}
    stored, exact = module.state_dict(keep_vars=True), _exact(module)
    with torch.no_grad():
        for name, tensor in stored.items():
            if name in layers:
                amax, bits = layers[name].amax, bits_of(layers[name])
                tensor.data = from_codes(to_codes(tensor.data, amax, bits), amax, bits)
            elif tensor.is_floating_point() and not name.endswith("._amax") and name not in exact:
                tensor.data = tensor.data.to(getattr(torch, DTYPES[kept])).float()


def _pack(
    module: Any,
    state: dict[str, Tensor],
    prefix: str,
    metadata: Any,
    *,
    bits: dict[str, Bits],
    kept: str,
    exact: set[str],
) -> None:
    import torch

    packed = {f"{prefix}{name}.weight": n for name, n in bits.items()}
    for key, value in state.items():
        if key in packed:
            state[key] = to_codes(value.detach(), state[_amax_of(key)], packed[key])
        elif value.is_floating_point() and not key.endswith("._amax") and key.removeprefix(prefix) not in exact:
            state[key] = value.detach().to(getattr(torch, DTYPES[kept]))


def _unpack(module: Any, state: dict[str, Tensor], prefix: str, *rest: Any, bits: dict[str, Bits]) -> None:
    import torch

    for name, n in bits.items():
        key = f"{prefix}{name}.weight"
        if key in state and _amax_of(key) in state and state[key].dtype in (torch.int8, torch.float8_e4m3fn):
            state[key] = from_codes(state[key], state[_amax_of(key)], n)
    for key, value in state.items():
        if value.dtype in (torch.float16, torch.bfloat16):
            state[key] = value.float()


def _exact(module: nn.Module) -> set[str]:
    """Names of tensors that stay float32: a Fourier projection's frequencies, which multiply a time of up to 999, so that
    a part in 2000 is another angle altogether."""
    found = (path for path, m in module.named_modules() if "Fourier" in type(m).__name__)
    return {f"{path}.{name}" if path else name for path in found for name in module.get_submodule(path).state_dict()}


def _amax_of(key: str) -> str:
    return f"{key}_quantizer._amax"
