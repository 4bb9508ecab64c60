"""A Q/DQ graph for a backend that does not fuse it: activations pass unrounded, 8-bit weights are widened at load.

The numbers are then nearer to the float network than the quantized one's, by the size of the activations' rounding
error; what a runner rewrites it says in `describe()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimize.onnx.graph import array, drop_unused, initializer

if TYPE_CHECKING:
    import onnx_ir as ir

NAMES = {"INT8": "INT8", "FLOAT8E4M3FN": "FP8"}


def widen(model: ir.Model) -> list[str]:
    """Rewrite in place; returns a sentence saying what was changed, or nothing for a graph without Q/DQ.

    The weights are written out as the scales are typed, since ONNX Runtime does not fold DequantizeLinear, and lays out
    only constants.
    """
    layers: dict[str, int] = {}
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear"]:
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        before = source.producer()
        if before is not None and before.op_type == "QuantizeLinear":
            x = before.inputs[0]
            assert x is not None
            name = NAMES[_dtype(node).name]
            layers[name] = layers.get(name, 0) + len(list(result.uses()))
            result.replace_all_uses_with(x)
        elif source.name in model.graph.initializers:
            result.replace_all_uses_with(initializer(model, f"{source.name}.wide", _decoded(node)))
    drop_unused(model)
    return [
        f"activations of {n} {name} layers not rounded, {name} weights widened at load" for name, n in layers.items()
    ]


def _dtype(node: ir.Node) -> ir.DataType:
    """What a DequantizeLinear reads: the type of its zero point."""
    zero = node.inputs[2]
    assert zero is not None and zero.dtype is not None
    return zero.dtype


def _decoded(node: ir.Node) -> np.ndarray:
    """Values of a stored weight in the dtype of its scale: codes times step sizes along the node's axis."""
    codes, steps = (array(v) for v in node.inputs[:2] if v is not None)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    shape = [-1 if i == axis else 1 for i in range(codes.ndim)] if steps.ndim else []
    return (codes.astype(np.float32) * steps.astype(np.float32).reshape(shape)).astype(steps.dtype)
