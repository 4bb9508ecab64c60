"""A 16-bit graph computed in FP32 and rounded after every operator: the same numbers as numpy's own 16-bit arithmetic."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from optimize.onnx.emulation import emulate

KINDS = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}


def run(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], x: np.ndarray, kind: int) -> np.ndarray:
    """Emulated result of `nodes`, which make y (16 bit) from x (float32) by way of h (16 bit)."""
    import onnxruntime

    first = helper.make_node("Cast", ["x"], ["h"], to=kind)
    last = helper.make_node("Cast", ["y"], ["out"], to=TensorProto.FLOAT)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, x.shape) for n in ("x", "out")]
    weights = [helper.make_tensor(k, kind, v.shape, v.astype(np.float32)) for k, v in constants.items()]
    graph = helper.make_graph([first, *nodes, last], "g", ends[:1], ends[1:], weights)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10))
    assert emulate(model) == len(nodes) + 1
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(proto, settings).run(None, {"x": x})[0]


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_each_operator_rounds_as_numpy_does(name: str) -> None:
    kind, dtype = KINDS[name]
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    c = np.random.default_rng(1).normal(size=64).astype(dtype)
    nodes = [helper.make_node("Mul", ["h", "c"], ["m"]), helper.make_node("Add", ["m", "h"], ["y"])]
    h = x.astype(dtype)
    wanted = (h * c + h).astype(np.float32)
    assert np.array_equal(run(nodes, {"c": c}, x, kind), wanted)
    assert not np.array_equal(wanted, x * c.astype(np.float32) + x)


def test_what_overflows_fp16_is_infinite_although_it_comes_back() -> None:
    up, down = np.array([1e5 / 2], np.float16), np.array([2e-5], np.float16)
    nodes = [helper.make_node("Mul", ["h", "u"], ["m"]), helper.make_node("Mul", ["m", "d"], ["y"])]
    found = run(nodes, {"u": up, "d": down}, np.array([1.0, 2.0], np.float32), TensorProto.FLOAT16)
    assert np.isfinite(found[0]) and np.isinf(found[1])
