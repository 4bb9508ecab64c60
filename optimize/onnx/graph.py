"""Graph surgery on an exported network: nodes, initializers, weights stored small (cleaning: see `clean.py`).

The graph is onnx_ir's. Weights are turned and narrowed one at a time, when they are written.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPE = "scope"  # a node's own note of the module it comes from
NOTE = "optimize.computes_in"  # a 16-bit graph's own note


def narrow_doubles(model: ir.Model) -> int:
    """Float64 becomes float32, in place; returns how many values. Networks compute positions in it, out of caution: no
    GPU runtime takes it, and positions of a picture are far from needing it. A constant that is not zero stays so, and a
    finite one finite: epsilons and masks are such."""
    import onnx_ir as ir

    double, single = ir.DataType.DOUBLE, ir.DataType.FLOAT
    values = [v for node in model.graph for v in node.outputs if v.dtype == double]
    for value in values:
        value.type = ir.TensorType(single)
    for value in [v for v in model.graph.initializers.values() if v.dtype == double]:
        numbers = _single(array(value))
        value.const_value, value.type = ir.tensor(numbers, name=value.name), ir.TensorType(single)
    for node in model.graph:
        to, given = node.attributes.get("to"), node.attributes.get("value")
        if node.op_type == "Cast" and to is not None and to.as_int() == int(double):
            node.attributes["to"] = ir.AttrInt64("to", int(single))
        if given is not None and given.type == ir.AttributeType.TENSOR and given.as_tensor().dtype == double:
            numbers = _single(given.as_tensor().numpy())
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(numbers))
    return len(values)


def _single(x: np.ndarray) -> np.ndarray:
    """The nearest float32 numbers that are normal; zero, infinite or NaN only where the double is."""
    about = np.finfo(np.float32)
    size = np.where((x != 0) & np.isfinite(x), np.abs(x).clip(float(about.tiny), float(about.max)), np.abs(x))
    return np.asarray(np.copysign(size, x), np.float32)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """Inside the block the named loggers say nothing below an error."""
    before = {name: logging.getLogger(name).level for name in names}
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)


def store_16_bit(model: ir.Model, dtype: str, smallest: int = 16) -> int:
    """Store float32 initializers of at least `smallest` elements as "fp16" or "bf16" followed by a Cast; returns how many.
    Scales stay, and what 16 bits do not hold exactly: kept weights are rounded already, a table of frequencies is not."""
    import onnx_ir as ir

    kind = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[dtype]
    count = 0
    for value in list(model.graph.initializers.values()):
        if (
            value.dtype != ir.DataType.FLOAT
            or ".scale" in (value.name or "")
            or not _fits(array(value), kind, smallest)
        ):
            continue
        users = list(value.uses())
        narrow = narrowed(model, value, kind, f"{value.name}.{dtype}")
        wide = put(model, "Cast", [narrow], f"{value.name}.float", to=int(ir.DataType.FLOAT))
        for node, index in users:
            node.replace_input_with(index, wide)
        count += 1
    drop_unused(model)
    return count


def _fits(x: np.ndarray, kind: ir.DataType, smallest: int) -> bool:
    """Whether at least `smallest` numbers are all held exactly by a narrower type."""
    return x.size >= smallest and np.array_equal(_narrowed(x, kind).astype(np.float32), x)


def _narrowed(x: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    return x.astype(dtype.numpy(), order="C")


def put(
    model: ir.Model,
    op: str,
    inputs: list[ir.Value],
    name: str,
    before: ir.Node | None = None,
    **attributes: Any,
) -> ir.Value:
    """Add a node (at the front, or before another) and return its output, called `name`."""
    import onnx_ir as ir

    node = ir.node(op, inputs, attributes=attributes, name=f"{op}.{name}")
    node.outputs[0].name = name
    if before is None:
        model.graph.insert_before(model.graph[0], node)
    else:
        model.graph.insert_before(before, node)
    return node.outputs[0]


def initializer(model: ir.Model, name: str, value: np.ndarray | np.generic) -> ir.Value:
    """The initializer called `name`, registered with `value` if it is new."""
    import onnx_ir as ir

    if name not in model.graph.initializers:
        tensor = ir.tensor(np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value), name=name)
        model.graph.register_initializer(
            ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(np.shape(value)))
        )
    return model.graph.initializers[name]


def later(
    model: ir.Model, name: str, make: Callable[[], np.ndarray], dtype: ir.DataType, shape: Sequence[Any]
) -> ir.Value:
    """The initializer called `name`, whose numbers are made anew whenever they are read: weights need no second copy."""
    import onnx_ir as ir

    if name not in model.graph.initializers:
        size = ir.Shape(shape)
        tensor = ir.LazyTensor(lambda: _in_order()(make(), name=name), dtype, size, name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(dtype), shape=size)
        model.graph.register_initializer(value)
    return model.graph.initializers[name]


@cache
def _in_order() -> type[ir.Tensor]:
    """onnx_ir's tensor, written at once: numpy writes what is not contiguous number by number."""
    import onnx_ir as ir

    class InOrder(ir.Tensor):
        def tofile(self, file: Any) -> None:
            ir.Tensor(np.ascontiguousarray(self.numpy()), dtype=self.dtype).tofile(file)

    return InOrder


def narrow_in_place(value: ir.Value, kind: ir.DataType) -> None:
    """Give an initializer a narrower type; its numbers are narrowed when they are read."""
    import onnx_ir as ir

    wide: Any = value.const_value
    assert wide is not None
    make = partial(_narrowed_tensor, wide, kind)
    value.const_value = ir.LazyTensor(make, kind, ir.Shape(list(wide.shape)), name=value.name)
    value.type = ir.TensorType(kind)


def _narrowed_tensor(wide: Any, kind: ir.DataType) -> Any:
    import onnx_ir as ir

    return ir.tensor(_narrowed(wide.numpy(), kind))


def narrowed(model: ir.Model, value: ir.Value, kind: ir.DataType, name: str) -> ir.Value:
    """An initializer with the numbers of another one in a narrower type."""
    tensor: Any = value.const_value
    assert tensor is not None
    return later(model, name, lambda: _narrowed(tensor.numpy(), kind), kind, list(tensor.shape))


def array(value: ir.Value) -> np.ndarray:
    """The numbers of an initializer."""
    assert value.const_value is not None
    return value.const_value.numpy()


def drop_unused(model: ir.Model) -> None:
    """Remove initializers and nodes that nothing uses."""
    import onnx_ir.passes.common as passes

    passes.RemoveUnusedNodesPass()(model)


def forget_origins(model: ir.Model) -> None:
    """Remove stack traces, doc strings and whatever else says where the graph came from."""
    graph = model.graph
    model.doc_string, graph.doc_string, graph.name = None, None, "network"
    for holder in (model, graph, *graph, *(v for node in graph for v in node.outputs)):
        holder.metadata_props.clear()
    for node in graph:
        node.doc_string = None
    for value in [*graph.inputs, *graph.initializers.values(), *graph.outputs]:
        value.metadata_props.clear()


def anonymize(model: ir.Model) -> None:
    """Remove origins, intermediate names and shapes and everything else that is not the computation, so that equal
    networks give equal bytes."""
    forget_origins(model)
    graph = model.graph
    outputs = {id(v) for v in graph.outputs}
    for number, node in enumerate(graph):
        node.name = f"{node.op_type}_{number}"
        for index, value in enumerate(node.outputs):
            if id(value) not in outputs:
                value.name, value.shape, value.type = (
                    f"v{number}_{index}" if index else f"v{number}",
                    None,
                    None,
                )
    numbered = [v for v in graph.initializers.values() if re.fullmatch(r"val_\d+", v.name or "")]
    for number, value in enumerate(numbered):  # the exporter's own constants, numbered by how it got there
        value.name = f"c{number}"
