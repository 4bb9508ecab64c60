"""Symbolic dims of a network: sizes to trace it with, what the traced graph kept, and the symbols' names put back."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optimize.diffusion.network import example_inputs

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from optimize.diffusion.network import TensorSpec

BATCH = 3
TIMES = (3, 4, 5)  # spatial dims are traced at these times the network's multiple: no two dims look alike


def symbols(inputs: tuple[TensorSpec, ...]) -> set[str]:
    """Every symbol in the inputs' dims; "H/2" holds H."""
    return {d.partition("/")[0] for spec in inputs for d in spec.dims if isinstance(d, str)}


def sizes_of(inputs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """The network's own sizes of its symbols, with a batch of 1."""
    return {"B": 1} | {symbol: size for spec in inputs for symbol, size in spec.sizes}


def opened(inputs: tuple[TensorSpec, ...], asked: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    """The inputs with height and width of the first one symbolic where `asked` names them and the architecture gives
    numbers: many networks take other sizes than the one they were trained at."""
    first, *rest = inputs
    names = ("H", "W") if len(first.dims) == 4 else ()
    free = {i: s for i, s in enumerate(names, start=2) if s in asked and isinstance(first.dims[i], int)}
    dims = tuple(free.get(i, d) for i, d in enumerate(first.dims))
    sizes = (*first.sizes, *((s, int(first.dims[i])) for i, s in free.items()))
    return (replace(first, dims=dims, sizes=sizes), *rest)


def spatial(inputs: tuple[TensorSpec, ...]) -> set[str]:
    """Symbols behind the channels of the first input: height, width, length, which a network halves again and again."""
    return {d.partition("/")[0] for d in inputs[0].dims[2:] if isinstance(d, str)}


def multiple(inputs: tuple[TensorSpec, ...], module: nn.Module) -> int:
    """What spatial dims are taken to be multiples of: 8, or more for a deeper U-Net, but never what the network's own
    sizes are not multiples of."""
    config = getattr(module, "config", {})
    blocks = config.get("block_out_channels") if hasattr(config, "get") else None
    most = max(8, 2 ** (len(blocks) - 1)) if blocks else 8
    return math.gcd(most, *(n for s, n in sizes_of(inputs).items() if s in spatial(inputs)))


def example(inputs: tuple[TensorSpec, ...], wanted: set[str], module: nn.Module) -> dict[str, Tensor]:
    """Tensors to trace with: the symbols in `wanted` at sizes that no two of them share, the others at the network's."""
    step, own = multiple(inputs, module), sizes_of(inputs)
    free = dict(zip(sorted(wanted & spatial(inputs)), (n * step for n in TIMES)))
    free |= {s: own.get(s, 8) + 3 + i for i, s in enumerate(sorted(wanted - spatial(inputs) - {"B"}))}
    sizes = {s: n for s, n in (own | free).items() if s != "B"}
    return example_inputs(inputs, BATCH if "B" in wanted else 1, **sizes)


def dims(inputs: tuple[TensorSpec, ...], wanted: set[str], step: int | None) -> tuple[dict[int, Any], ...]:
    """torch.export's dims of every input. With a `step`, equal symbols are one dim, and spatial ones are multiples of it,
    which keeps sizes inside the network simple; None: whatever the exporter finds out by itself."""
    from torch.export import Dim

    # diffusers' upsampling copies memory from a batch of 64 on, a branch that bounds the trace but not the graph
    made: dict[str, Any] = {s: Dim(s, min=1, max=63) if s == "B" else Dim(_whole(s)) for s in sorted(wanted)}

    def dim(written: str) -> Any:
        symbol, _, divisor = written.partition("/")
        if step is None:
            return Dim.AUTO
        times = step // int(divisor or 1) if symbol in spatial(inputs) else 1
        return made[symbol] if times <= 1 else times * made[symbol]

    return tuple(
        {i: dim(d) for i, d in enumerate(spec.dims) if isinstance(d, str) and d.partition("/")[0] in wanted}
        for spec in inputs
    )


def alike(inputs: tuple[TensorSpec, ...], wanted: set[str]) -> list[list[tuple[int, int]]]:
    """(input, dim) of every symbol in `wanted` that stands in more than one place."""
    places: dict[str, list[tuple[int, int]]] = {}
    for i, spec in enumerate(inputs):
        for d, dim in enumerate(spec.dims):
            if isinstance(dim, str) and dim.partition("/")[0] in wanted:
                places.setdefault(dim, []).append((i, d))
    return [found for found in places.values() if len(found) > 1]


def _whole(symbol: str) -> str:
    """Name of what a symbol is so many times of."""
    return f"_{symbol}"


def lost(model: ir.Model, inputs: tuple[TensorSpec, ...], wanted: set[str]) -> set[str]:
    """The symbols in `wanted` that are a number in the graph, at any place where the inputs have them."""
    values = {v.name: v for v in model.graph.inputs if v.shape is not None}
    return {
        dim.partition("/")[0]
        for spec in inputs
        for i, dim in enumerate(spec.dims if spec.name in values else ())
        if isinstance(dim, str) and dim.partition("/")[0] in wanted and _is_number(values[spec.name], i)
    }


def _is_number(value: ir.Value, i: int) -> bool:
    """Whether a dim is a number, written as one or, as the exporter does with what it found to be constant, as text."""
    return (_written(value, i) or "0").isdecimal()


def rename(model: ir.Model, inputs: tuple[TensorSpec, ...]) -> None:
    """Call the dims of inputs and outputs as the inputs' specs do, instead of by the exporter's names and multiples."""
    import onnx_ir as ir
    import sympy

    values = {v.name: v for v in model.graph.inputs}
    known: dict[str, Any] = {}  # the exporter's name -> what it is, in our symbols
    for spec in inputs:
        value = values.get(spec.name)
        for i, dim in enumerate(spec.dims if value is not None and value.shape is not None else ()):
            old = _written(value, i)
            found = re.fullmatch(r"(?:(\d+)\*)?([A-Za-z_]\w*)", old or "")
            if isinstance(dim, str) and dim.isidentifier() and found:
                known.setdefault(found[2], _symbol(dim) / int(found[1] or 1))
    for value in (*(values[s.name] for s in inputs if s.name in values), *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(value, i, known, sympy) for i in range(len(value.shape))])


def _symbol(name: str) -> Any:
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)


def _written(value: Any, i: int) -> str | None:
    dim = value.shape[i]
    return None if isinstance(dim, int) else dim.value


def _renamed(value: ir.Value, i: int, known: dict[str, Any], sympy: Any) -> int | str | None:
    """A dim in our symbols: one of them where the expression equals it at multiples of 64, which every network takes."""
    assert value.shape is not None
    dim, old = value.shape[i], _written(value, i)
    if isinstance(dim, int) or old is None:
        return dim if isinstance(dim, int) else None
    if not re.fullmatch(r"[\w\s()+*/-]+", old):
        return old
    try:
        found = sympy.sympify(old, locals=known)
    except (sympy.SympifyError, TypeError, AttributeError):
        return old
    used = found.free_symbols
    if len(used) == 1:
        (symbol,) = used
        if all(found.subs(symbol, n) == n for n in (64, 192, 320)):
            return str(symbol)
    return str(found)
