"""ONNX files spoiled: what a model says of itself, of its inputs, nodes and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Change = Callable[[Any], object]


def model(change: Change) -> Callable[[Path], None]:
    """The parsed model is changed and written again."""

    def spoil(path: Path) -> None:
        import onnx

        found = onnx.ModelProto()
        found.ParseFromString(path.read_bytes())
        change(found)
        path.unlink()
        path.write_bytes(found.SerializeToString())

    return spoil


def weight(found: Any) -> Any:
    """The initializer of most bytes."""
    return max(found.graph.initializer, key=lambda t: (len(t.raw_data), t.name))


def outside(location: str, **more: str) -> Change:
    """The largest weight's data are in another file."""

    def change(found: Any) -> None:
        tensor = weight(found)
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        for key, value in {"location": location, **more}.items():
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def _set(place: Callable[[Any], Any], field: str, value: Any) -> Change:
    return lambda found: setattr(place(found), field, value)


def _node(found: Any) -> Any:
    return next(n for n in found.graph.node if n.op_type == "Conv")


def _value(value: float) -> Change:
    def change(found: Any) -> None:
        tensor = weight(found)
        values = np.frombuffer(tensor.raw_data, np.float32).copy()
        values[len(values) // 2] = value
        tensor.raw_data = values.tobytes()

    return change


def _input_dims(*dims: int | str) -> Change:
    def change(found: Any) -> None:
        shape = found.graph.input[0].type.tensor_type.shape
        del shape.dim[:]
        for dim in dims:
            added = shape.dim.add()
            setattr(added, "dim_param" if isinstance(dim, str) else "dim_value", dim)

    return change


def _nested(found: Any) -> None:
    """Subgraphs within subgraphs."""
    import onnx

    graph = onnx.helper.make_graph([], "g", [], [])
    for _ in range(20):
        node = onnx.helper.make_node("If", ["c"], ["r"], then_branch=graph, else_branch=onnx.GraphProto())
        graph = onnx.helper.make_graph([node], "g", [], [])
    found.graph.node.extend(graph.node)


def _cycle(found: Any) -> None:
    _node(found).input[0] = found.graph.output[0].name


SPOILED: dict[str, Callable[[Path], None]] = {
    "IR version 99": model(lambda m: setattr(m, "ir_version", 99)),
    "IR version 0": model(lambda m: setattr(m, "ir_version", 0)),
    "opset 999": model(lambda m: setattr(m.opset_import[0], "version", 999)),
    "opset 1": model(lambda m: setattr(m.opset_import[0], "version", 1)),
    "no opset": model(lambda m: m.ClearField("opset_import")),
    "operators of elsewhere": model(
        lambda m: m.opset_import.add(domain="evil", version=1) and _set(_node, "domain", "evil")(m)
    ),
    "an unknown operator": model(_set(_node, "op_type", "Convolve")),
    "no graph": model(lambda m: m.ClearField("graph")),
    "no nodes": model(lambda m: m.graph.ClearField("node")),
    "no inputs": model(lambda m: m.graph.ClearField("input")),
    "no outputs": model(lambda m: m.graph.ClearField("output")),
    "no weights": model(lambda m: m.graph.ClearField("initializer")),
    "one input less": model(lambda m: m.graph.input.pop()),
    "an input twice": model(lambda m: m.graph.input.append(m.graph.input[0])),
    "an input by another name": model(_set(lambda m: m.graph.input[0], "name", "other")),
    "an input of doubles": model(_set(lambda m: m.graph.input[0].type.tensor_type, "elem_type", 11)),
    "an input of texts": model(_set(lambda m: m.graph.input[0].type.tensor_type, "elem_type", 8)),
    "an input without a type": model(lambda m: m.graph.input[0].ClearField("type")),
    "an input of another rank": model(_input_dims("B", 1, 16)),
    "an input of another size": model(_input_dims("B", 3, 32, 32)),
    "an input of a negative size": model(_input_dims("B", -4, 16, 16)),
    "an input of an enormous size": model(_input_dims(2**40, 1, 2**40, 16)),
    "an output of nothing": model(_set(lambda m: m.graph.output[0], "name", "nothing")),
    "a node that reads nothing": model(lambda m: _node(m).input.__setitem__(0, "nothing")),
    "a node without inputs": model(lambda m: _node(m).ClearField("input")),
    "nodes in a circle": model(_cycle),
    "nodes backwards": model(
        lambda m: (list_ := list(m.graph.node)) and (m.graph.ClearField("node"), m.graph.node.extend(list_[::-1]))
    ),
    "subgraphs nested": model(_nested),
    "weights above the folder": model(outside("../../../../../etc/passwd")),
    "weights at an absolute path": model(outside("/etc/passwd")),
    "weights that are not there": model(outside("gone.data")),
    "weights of a folder": model(outside(".")),
    "weights of an empty name": model(outside("")),
    "weights behind the end": model(outside("model.onnx", offset="999999999", length="16")),
    "weights at a negative place": model(outside("model.onnx", offset="-5", length="16")),
    "weights at no number": model(outside("model.onnx", offset="x", length="y")),
    "weights of 400 digits": model(outside("model.onnx", offset="9" * 400, length="8")),
    "a weight of another type": model(lambda m: setattr(weight(m), "data_type", 7)),
    "a weight of an unknown type": model(lambda m: setattr(weight(m), "data_type", 99)),
    "a weight of negative sides": model(lambda m: weight(m).dims.__setitem__(0, -3)),
    "a weight of enormous sides": model(lambda m: weight(m).dims.__setitem__(0, 2**62)),
    "a weight of other sides": model(lambda m: weight(m).dims.__setitem__(0, weight(m).dims[0] + 1)),
    "a weight cut short": model(lambda m: setattr(weight(m), "raw_data", weight(m).raw_data[:-7])),
    "a value that is no number": model(_value(float("nan"))),
    "a value that is infinite": model(_value(float("inf"))),
    "a model of a function that calls itself": model(
        lambda m: m.functions.add(name="f", domain="local").node.add(op_type="f", domain="local")
    ),
}
