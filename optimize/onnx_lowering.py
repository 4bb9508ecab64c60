"""One graph, several backends: rewrites of a Q/DQ graph for a backend that does not fuse it as it stands.

`integer`: Conv between Q/DQ becomes ConvInteger on the INT8 codes, then one scale and the bias: the same numbers as the
Q/DQ graph up to rounding order. `float`: activations are no longer rounded and weights expand to FP32 at load: nearer
to the float network, other numbers than the quantized one (a change of the order of the quantization error).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.onnx_graph import array, drop_unused, initializer

if TYPE_CHECKING:
    import onnx_ir as ir


def lower(model: ir.Model, how: str) -> list[str]:
    """Rewrite in place as `integer` or `float`; returns sentences saying what was changed."""
    if how == "integer":
        count = sum(_integer(model, node) for node in list(model.graph) if node.op_type == "Conv")
        said = [f"{count} INT8 convolutions as ConvInteger"]
    else:
        count = sum(_float(node) for node in list(model.graph))
        said = [f"activations of {count} INT8 layers not rounded, INT8 weights expanded to FP32 at load"]
    drop_unused(model)
    return said if count else []


def _decoded(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes `value`, if one does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _rounded(value: ir.Value | None) -> ir.Node | None:
    """The QuantizeLinear behind `value` if it is x -> Q -> DQ."""
    node = _decoded(value)
    before = node.inputs[0].producer() if node is not None and node.inputs[0] is not None else None
    return before if before is not None and before.op_type == "QuantizeLinear" else None


def _float(node: ir.Node) -> bool:
    rounded = _rounded(node.inputs[0]) if node.inputs and node.op_type in ("Conv", "Gemm", "MatMul") else None
    if rounded is None:
        return False
    node.replace_input_with(0, rounded.inputs[0])
    return True


def _integer(model: ir.Model, conv: ir.Node) -> bool:
    """x -> Q(uint8, zero point 128) -> ConvInteger -> Cast -> Mul(step_x step_w) -> Add(bias)."""
    rounded, weight = _rounded(conv.inputs[0]), _decoded(conv.inputs[1])
    if rounded is None or weight is None:
        return False
    step_x, step_w = rounded.inputs[1], weight.inputs[1]
    assert step_x is not None and step_w is not None
    shape = (1, -1, *(1 for _ in range(array(weight.inputs[0]).ndim - 2)))  # type: ignore[arg-type]
    zero = initializer(model, "zero.uint8", np.uint8(128))
    name = conv.outputs[0].name
    step = initializer(model, f"{name}.step", (array(step_x) * array(step_w)).astype(np.float32).reshape(shape))
    codes = _add(model, conv, "QuantizeLinear", [rounded.inputs[0], step_x, zero])
    sums = _add(model, conv, "ConvInteger", [codes, weight.inputs[0], zero], conv.attributes)
    result = _add(model, conv, "Mul", [_add(model, conv, "Cast", [sums], {"to": 1}), step])
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        bias = initializer(model, f"{name}.bias", _constant(conv.inputs[2]).reshape(shape))
        result = _add(model, conv, "Add", [result, bias])
    conv.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
    model.graph.remove(conv, safe=True)
    return True


def _constant(value: ir.Value) -> np.ndarray:
    """float32 numbers of an initializer, looking through the Cast of a 16-bit one."""
    node = value.producer()
    source = node.inputs[0] if node is not None else value
    assert source is not None
    return array(source).astype(np.float32)


def _add(model: ir.Model, before: ir.Node, op: str, inputs: list[Any], attributes: Any = None) -> ir.Value:
    import onnx_ir as ir

    plain = {k: (v.value if hasattr(v, "value") else v) for k, v in dict(attributes or {}).items()}
    node = ir.node(op, inputs, attributes=plain)
    model.graph.insert_before(before, node)
    return node.outputs[0]
