"""A Q/DQ graph for a backend that does not fuse it: activations pass unrounded, INT8 weights are widened at load.

The numbers are then nearer to the float network than the quantized one's, by the size of the activations' rounding
error; what a runner rewrites it says in `describe()`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimize.onnx_graph import array, drop_unused, initializer

if TYPE_CHECKING:
    import onnx_ir as ir


def widen(model: ir.Model) -> list[str]:
    """Rewrite in place; returns a sentence saying what was changed, or nothing for a graph without Q/DQ.

    The weights are written out in FP32 since ONNX Runtime does not fold DequantizeLinear, and lays out only constants.
    """
    layers = 0
    for node in [n for n in model.graph if n.op_type == "DequantizeLinear"]:
        source, result = node.inputs[0], node.outputs[0]
        assert source is not None
        before = source.producer()
        if before is not None and before.op_type == "QuantizeLinear":
            x = before.inputs[0]
            assert x is not None
            layers += len(list(result.uses()))
            result.replace_all_uses_with(x)
        elif source.name in model.graph.initializers:
            result.replace_all_uses_with(initializer(model, f"{source.name}.fp32", _decoded(node)))
    drop_unused(model)
    return [f"activations of {layers} INT8 layers not rounded, INT8 weights widened to FP32 at load"] if layers else []


def _decoded(node: ir.Node) -> np.ndarray:
    """float32 values of a stored weight: codes times step sizes along the node's axis."""
    codes, steps = (array(v) for v in node.inputs[:2] if v is not None)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    shape = [-1 if i == axis else 1 for i in range(codes.ndim)] if steps.ndim else []
    return codes.astype(np.float32) * steps.reshape(shape)
