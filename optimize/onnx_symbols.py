"""Symbolic dims of a network: sizes to trace it with, what the traced graph kept, and the symbols' names put back."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optimize.network import example_inputs

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from optimize.network import TensorSpec

BATCH = 3
ODD = (3, 5, 7, 9, 11, 13)  # sizes to trace with are these times the network's multiple: no two dims look alike


def symbols(inputs: tuple[TensorSpec, ...]) -> set[str]:
    """Every symbol in the inputs' dims; "H/2" holds H."""
    return {d.partition("/")[0] for spec in inputs for d in spec.dims if isinstance(d, str)}


def sizes_of(inputs: tuple[TensorSpec, ...]) -> dict[str, int]:
    """The network's own sizes of its symbols, with a batch of 1."""
    return {"B": 1} | {symbol: size for spec in inputs for symbol, size in spec.sizes}


def opened(inputs: tuple[TensorSpec, ...], asked: tuple[str, ...]) -> tuple[TensorSpec, ...]:
    """The inputs with height and width, or length, of the first one symbolic where `asked` names them and the
    architecture gives numbers: many networks take other sizes than the one they were trained at."""
    first, *rest = inputs
    names = {4: ("H", "W"), 3: ("L",)}.get(len(first.dims), ())
    free = {i: s for i, s in enumerate(names, start=2) if s in asked and isinstance(first.dims[i], int)}
    dims = tuple(free.get(i, d) for i, d in enumerate(first.dims))
    sizes = (*first.sizes, *((s, int(first.dims[i])) for i, s in free.items()))
    return (replace(first, dims=dims, sizes=sizes), *rest)


def multiple(module: nn.Module) -> int:
    """What height, width and length should be multiples of: every block of a U-Net but the last halves them."""
    config = getattr(module, "config", {})
    blocks = config.get("block_out_channels") if hasattr(config, "get") else None
    return max(8, 2 ** len(blocks)) if blocks else 8


def example(inputs: tuple[TensorSpec, ...], wanted: set[str], module: nn.Module) -> dict[str, Tensor]:
    """Tensors to trace with: the symbols in `wanted` at sizes of their own, the others at the network's."""
    free = dict(zip(sorted(wanted - {"B"}), (n * multiple(module) for n in ODD)))
    own = {s: n for s, n in sizes_of(inputs).items() if s != "B"}
    return example_inputs(inputs, BATCH if "B" in wanted else 1, **(own | free))


def lost(model: ir.Model, inputs: tuple[TensorSpec, ...], wanted: set[str]) -> set[str]:
    """The symbols in `wanted` that are a number in the graph, at any place where the inputs have them."""
    shapes = {v.name: v.shape for v in model.graph.inputs}
    gone = set()
    for spec in inputs:
        for i, dim in enumerate(spec.dims):
            symbol = dim.partition("/")[0] if isinstance(dim, str) else ""
            shape = shapes.get(spec.name)
            if symbol in wanted and shape is not None and isinstance(shape[i], int):
                gone.add(symbol)
    return gone


def rename(model: ir.Model, inputs: tuple[TensorSpec, ...], wanted: set[str]) -> None:
    """Call the dims of inputs and outputs as the inputs' specs do, instead of by the exporter's numbers."""
    import onnx_ir as ir

    names: dict[str, str] = {}
    shapes = {v.name: v for v in model.graph.inputs}
    for spec in inputs:
        value = shapes.get(spec.name)
        for i, dim in enumerate(spec.dims if value is not None and value.shape is not None else ()):
            old = _name(value, i)
            if isinstance(dim, str) and old and dim.isidentifier():
                names.setdefault(old, dim)
    for value in (*(shapes[s.name] for s in inputs if s.name in shapes), *model.graph.outputs):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(value, i, names) for i in range(len(value.shape))])


def _name(value: Any, i: int) -> str | None:
    dim = value.shape[i]
    return None if isinstance(dim, int) else dim.value


def _renamed(value: ir.Value, i: int, names: dict[str, str]) -> int | str | None:
    """A dim with the new names, simplified to a symbol where the expression is one for every size in use."""
    assert value.shape is not None
    dim, old = value.shape[i], _name(value, i)
    if isinstance(dim, int) or old is None:
        return dim if isinstance(dim, int) else None
    written = re.sub(r"[A-Za-z_]\w*", lambda m: names.get(m[0], m[0]), old)
    return next((s for s in names.values() if _equal(written, s)), written)


def _equal(written: str, symbol: str) -> bool:
    """Whether an expression equals its only symbol at multiples of 64, which every network here takes."""
    used = set(re.findall(r"[A-Za-z_]\w*", written))
    if used != {symbol} or not re.fullmatch(r"[\w\s()+*/-]+", written):
        return written == symbol
    import sympy

    own = sympy.Symbol(symbol, integer=True, positive=True)
    try:
        found = sympy.sympify(written, locals={symbol: own})
    except (sympy.SympifyError, TypeError):
        return False
    return all(found.subs(own, n) == n for n in (64, 192, 320))
