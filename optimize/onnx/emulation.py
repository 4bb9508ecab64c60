"""A 16-bit graph for a machine that has no 16-bit kernels: every operator in float32, its result rounded to 16 bits.

ONNX Runtime's CPU has few FP16 kernels and no BF16 convolution; left to itself it computes FP16 in float32 without
rounding in between, which hides every overflow. Here a value that overflows FP16 becomes infinite, as on a GPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimize.onnx.precision import infer_types

if TYPE_CHECKING:
    import onnx_ir as ir


def emulate(model: ir.Model) -> int:
    """Rewrite in place; returns the number of values that are rounded to 16 bits. Inputs and outputs keep their types.

    Constants stay stored as they are and are widened where they are read: run it without constant folding.
    """
    import onnx_ir as ir

    infer_types(model)
    halves = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    nodes = list(model.graph)
    outputs = {id(v) for v in model.graph.outputs}
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        if value.dtype in halves:
            _widen(model, value, None)
    rounded = 0
    for node in nodes:
        for value in [v for v in node.outputs if v.dtype in halves]:
            rounded += 1
            _round(model, node, value, id(value) in outputs)
    return rounded


def _round(model: ir.Model, node: ir.Node, value: ir.Value, is_output: bool) -> None:
    """The node gives float32, followed by a cast to 16 bits and one back."""
    import onnx_ir as ir

    kind = value.dtype
    assert kind is not None
    at = node
    if node.op_type != "Cast":
        _give_float(node, value)
        cast = ir.node("Cast", [value], attributes={"to": int(kind)})
        value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=is_output)
        cast.replace_input_with(0, value)
        cast.outputs[0].type, cast.outputs[0].shape = ir.TensorType(kind), value.shape
        cast.outputs[0].name, value.name = value.name, f"{value.name}.exact"
        model.graph.insert_after(node, cast)
        at, value = cast, cast.outputs[0]
    if list(value.uses()):
        _widen(model, value, at)


def _give_float(node: ir.Node, value: ir.Value) -> None:
    """The node's output becomes float32; a constant it is filled with as well."""
    import numpy as np
    import onnx_ir as ir

    value.type = ir.TensorType(ir.DataType.FLOAT)
    if node.op_type == "ConstantOfShape":
        number = node.attributes["value"].as_tensor().numpy().astype(np.float32)
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number))


def _widen(model: ir.Model, value: ir.Value, after: ir.Node | None) -> None:
    """Whoever reads the value reads it in float32; casts take it as it is."""
    import onnx_ir as ir

    readers = [(u.node, u.idx) for u in value.uses() if u.node.op_type != "Cast"]
    if not readers:
        return
    cast = ir.node("Cast", [value], attributes={"to": int(ir.DataType.FLOAT)})
    cast.outputs[0].name, cast.outputs[0].type = f"{value.name}.wide", ir.TensorType(ir.DataType.FLOAT)
    if after is None:
        model.graph.insert_before(model.graph[0], cast)
    else:
        model.graph.insert_after(after, cast)
    for node, index in readers:
        node.replace_input_with(index, cast.outputs[0])
