"""Cleaning drops only what changes no number: a graph for each rule, and for each way that a rule was wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimize.onnx.clean import simplify
from optimize.onnx.graph import array, narrow_doubles

FLOAT = TensorProto.FLOAT
node = helper.make_node


def constant(name: str, value: Any, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value, dtype), name)


def graph(nodes: list[Any], constants: list[Any], shape: list[int], kind: int = FLOAT) -> onnx.ModelProto:
    """x -> y of these nodes."""
    ends = [helper.make_tensor_value_info("x", kind, shape)], [helper.make_tensor_value_info("y", FLOAT, None)]
    made = helper.make_graph(nodes, "g", *ends, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def outcome(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def both(model: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """What the graph computes as it is and cleaned, and the operators that are left."""
    cleaned = ir.from_proto(model)
    simplify(cleaned)
    return outcome(model, x), outcome(ir.to_proto(cleaned), x), [n.op_type for n in cleaned.graph]


X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
WIDE = (
    np.concatenate([X.ravel(), [0, -0.0, 1e-30, -1e-30, 1e30, np.inf, -np.inf, np.nan]])
    .astype(np.float32)
    .reshape(5, 4)
)


@pytest.mark.parametrize(
    ("op", "value"),
    [
        ("Add", 1e-15), ("Add", 1e-9), ("Add", 1e-38), ("Add", -1e-12), ("Add", 0.0),
        ("Sub", 1e-15), ("Sub", 9e-9), ("Sub", -0.0),
        ("Mul", 1 + 1.2e-7), ("Mul", 1 - 6e-8), ("Mul", 1.00001), ("Mul", -1.0),
        ("Div", 1 + 1.2e-7), ("Div", 0.99999),
    ],
)  # fmt: skip
@pytest.mark.parametrize("order", ["xc", "cx"])
def test_a_constant_near_the_neutral_one_stays(op: str, value: float, order: str) -> None:
    model = graph([node(op, list(order), ["y"])], [constant("c", value)], [5, 4])
    before, after, kinds = both(model, WIDE)
    assert kinds == [op] and before.tobytes() == after.tobytes()


@pytest.mark.parametrize(
    ("op", "value", "orders"), [("Mul", 1, "xc cx"), ("Div", 1, "xc"), ("Sub", 0, "xc"), ("Add", -0.0, "xc cx")]
)
def test_what_is_exactly_neutral_goes(op: str, value: float, orders: str) -> None:
    for order in orders.split():
        nodes = [
            node("Neg", ["x"], ["n"]),
            node(op, [{"x": "n"}.get(o, o) for o in order], ["m"]),
            node("Neg", ["m"], ["y"]),
        ]
        before, after, kinds = both(graph(nodes, [constant("c", value)], [5, 4]), WIDE)
        assert op not in kinds and before.tobytes() == after.tobytes()


def test_integers_lose_a_zero_of_either_side() -> None:
    nodes = [
        node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        node("Add", ["i", "c"], ["s"]),
        node("Cast", ["s"], ["y"], to=FLOAT),
    ]
    before, after, kinds = both(graph(nodes, [constant("c", 0, np.int64)], [3, 4]), X * 10)
    assert "Add" not in kinds and np.array_equal(before, after)


def test_an_epsilon_keeps_a_quotient_of_zeros_a_number() -> None:
    nodes = [node("Relu", ["x"], ["r"]), node("Add", ["r", "c"], ["d"]), node("Div", ["r", "d"], ["y"])]
    before, after, _ = both(graph(nodes, [constant("c", 1e-15)], [3, 4]), X)
    assert np.isfinite(after).all() and (after == 0).any() and np.array_equal(before, after)


def slice_inputs(*ends: int) -> list[TensorProto]:
    return [constant(n, [v], np.int64) for n, v in zip("seat", ends, strict=True)]


SHAPE = constant("shape", [2, 6], np.int64)
RULES: dict[str, tuple[list[Any], list[Any], list[int], set[str]]] = {
    # what must be gone: the rule is there and holds
    "cast of a filled tensor": ([node("Shape", ["x"], ["s"]), node("ConstantOfShape", ["s"], ["f"], value=constant("v", [2.7])), node("Cast", ["f"], ["i"], to=TensorProto.INT64), node("Cast", ["i"], ["g"], to=FLOAT), node("Add", ["x", "g"], ["y"])], [], [3, 4], set()),
    "slice of everything": ([node("Slice", ["x", "s", "e", "a", "t"], ["m"]), node("Neg", ["m"], ["y"])], slice_inputs(0, 2**63 - 1, 0, 1), [3, 4], {"Slice"}),
    "slice to its own size": ([node("Slice", ["x", "s", "e", "a", "t"], ["m"]), node("Neg", ["m"], ["y"])], slice_inputs(0, 4, 1, 1), [3, 4], {"Slice"}),
    "two relus": ([node("Relu", ["x"], ["m"]), node("Relu", ["m"], ["y"])], [], [3, 4], set()),
    "cast to its own type": ([node("Cast", ["x"], ["m"], to=FLOAT), node("Neg", ["m"], ["y"])], [], [3, 4], {"Cast"}),
    "expand to its own shape": ([node("Expand", ["x", "c"], ["m"]), node("Neg", ["m"], ["y"])], [constant("c", [3, 4], np.int64)], [3, 4], {"Expand"}),
    "two reshapes": ([node("Reshape", ["x", "c"], ["m"]), node("Reshape", ["m", "shape"], ["y"])], [constant("c", [4, 3], np.int64), SHAPE], [3, 4], set()),
    "no transpose": ([node("Transpose", ["x"], ["m"], perm=[0, 1]), node("Neg", ["m"], ["y"])], [], [3, 4], {"Transpose"}),
    "two transposes": ([node("Transpose", ["x"], ["m"], perm=[1, 0]), node("Transpose", ["m"], ["n"], perm=[1, 0]), node("Neg", ["n"], ["y"])], [], [3, 4], {"Transpose"}),
    "two unsqueezes": ([node("Unsqueeze", ["x", "c"], ["m"]), node("Unsqueeze", ["m", "d"], ["y"])], [constant("c", [1], np.int64), constant("d", [0], np.int64)], [3, 4], set()),
    # what was wrong: it must be right, whatever is left
    "clips whose bounds cross": ([node("Clip", ["x", "a", "b"], ["m"]), node("Clip", ["m", "c", "d"], ["y"])], [constant(n, v) for n, v in zip("abcd", (0, 1, 2, 3))], [3, 4], set()),
    "relu of a clip below zero": ([node("Clip", ["x", "a", "b"], ["m"]), node("Relu", ["m"], ["y"])], [constant("a", -3), constant("b", -1)], [3, 4], set()),
    "clip of a relu, below zero": ([node("Relu", ["x"], ["m"]), node("Clip", ["m", "a", "b"], ["y"])], [constant("a", -3), constant("b", -1)], [3, 4], set()),
    "minima of one tensor": ([node("Min", ["x", "a"], ["m"]), node("Min", ["m", "b"], ["p"]), node("Min", ["x", "c"], ["n"]), node("Min", ["n", "d"], ["q"]), node("Sub", ["p", "q"], ["y"])], [constant(n, v) for n, v in zip("abcd", (0.5, 0.4, -0.5, -0.4))], [3, 4], set()),
    "maxima of one tensor": ([node("Max", ["x", "a"], ["m"]), node("Max", ["m", "b"], ["p"]), node("Max", ["x", "c"], ["n"]), node("Max", ["n", "d"], ["q"]), node("Sub", ["p", "q"], ["y"])], [constant(n, v) for n, v in zip("abcd", (0.5, 0.4, -0.5, -0.4))], [3, 4], set()),
    "bounds with more dims": ([node("Max", ["x", "a"], ["m"]), node("Min", ["m", "b"], ["y"])], [constant("a", [[[-0.5]]]), constant("b", 0.5)], [3, 4], set()),
    "scatter that adds": ([node("ScatterND", ["x", "i", "u"], ["y"], reduction="add")], [constant("i", [[0], [1], [2]], np.int64), constant("u", np.ones((3, 4)))], [3, 4], set()),
    "flattened twice": ([node("Flatten", ["x"], ["p"], axis=0), node("Flatten", ["x"], ["q"], axis=2), node("ReduceSum", ["p"], ["s"], keepdims=0), node("Mul", ["q", "s"], ["y"])], [], [3, 4], set()),
    "products of what is cut otherwise": ([node("Reshape", ["x", "c"], ["p"]), node("Sin", ["x"], ["n"]), node("Reshape", ["n", "c"], ["q"]), node("MatMul", ["p", "q"], ["m"]), node("Reshape", ["m", "o"], ["y"])], [constant("c", [1, 2, 2], np.int64), constant("o", [4, 1, 1], np.int64)], [4, 1, 1], set()),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_cleaned_graph_gives_the_same_bits(name: str) -> None:
    nodes, constants, shape, gone = RULES[name]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    before, after, kinds = both(graph(nodes, constants, shape), x)
    assert before.shape == after.shape and before.tobytes() == after.tobytes()
    assert not gone & set(kinds) and len(kinds) <= len(nodes)


def test_two_casts_round_twice() -> None:
    """To float32 first, then to FP16: at once it would be rounded up."""
    nodes = [
        node("Cast", ["x"], ["m"], to=FLOAT),
        node("Cast", ["m"], ["n"], to=TensorProto.FLOAT16),
        node("Cast", ["n"], ["y"], to=FLOAT),
    ]
    x = np.array([2**24 + 1, 2049 * 2**20 + 1, 2049], np.int64)
    before, after, _ = both(graph(nodes, [], [3], TensorProto.INT64), x)
    assert before.tobytes() == after.tobytes()


def test_zeros_around_a_picture_become_the_convolutions_own() -> None:
    nodes = [node("Pad", ["x", "p"], ["m"]), node("Conv", ["m", "w"], ["y"])]
    weight = np.random.default_rng(2).normal(size=(2, 1, 3, 3))
    constants = [constant("p", [0, 0, 0, 0, 0, 0, 1, 1], np.int64), constant("w", weight)]
    x = np.random.default_rng(3).normal(size=(1, 1, 6, 6)).astype(np.float32)
    before, after, kinds = both(graph(nodes, constants, [1, 1, 6, 6]), x)
    assert kinds == ["Conv"]
    np.testing.assert_allclose(after, before, atol=1e-6)


@pytest.mark.parametrize(("bias", "left"), [(0.0, 2), (1e-15, 3)])
def test_only_a_bias_of_zeros_goes(bias: float, left: int) -> None:
    weight = np.random.default_rng(2).normal(size=(2, 1, 3, 3))
    model = graph(
        [node("Conv", ["x", "w", "b"], ["y"])], [constant("w", weight), constant("b", [bias, 0])], [1, 1, 6, 6]
    )
    cleaned = ir.from_proto(model)
    simplify(cleaned)
    assert sum(v is not None for v in cleaned.graph[0].inputs) == left


def test_doubles_that_float32_does_not_hold_stay_what_they_are_for() -> None:
    values = np.array([1e-300, -1e-50, 0.0, 1e300, -np.inf, 1.5])
    made = ir.from_proto(
        graph([node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE), node("Add", ["d", "c"], ["e"]), node("Cast", ["e"], ["y"], to=FLOAT)], [constant("c", values, np.float64)], [6])
    )  # fmt: skip
    narrow_doubles(made)
    found = array(made.graph.initializers["c"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found != 0, values != 0)
    np.testing.assert_array_equal(np.isinf(found), np.isinf(values))
    np.testing.assert_array_equal(np.sign(found), np.sign(values))
    assert found[5] == 1.5 and abs(found[0]) >= np.finfo(np.float32).tiny
