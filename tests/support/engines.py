"""Small ONNX files for engines, orders and jobs over them, and a machine with a card that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from support.fake_trt import FakeCuda, FakeTrt

from optimize.engines import script
from optimize.engines.builder import Job
from optimize.engines.graph import read_graph
from optimize.engines.libraries import found_version
from optimize.engines.make import Order
from optimize.engines.profiles import plan_profiles
from optimize.engines.settings import EngineSettings


def quantized(x: str, name: str, of_weight: bool = False, kind: int = T.INT8) -> tuple[list[Any], str]:
    """Nodes x -> Q -> DQ (or DQ alone of a stored weight), and the name of what comes out."""
    nodes = [] if of_weight else [helper.make_node("QuantizeLinear", [x, "s", f"z{kind}"], [f"{name}.q"])]
    taken = x if of_weight else f"{name}.q"
    return [*nodes, helper.make_node("DequantizeLinear", [taken, "s", f"z{kind}"], [name])], name


def save(
    path: Path,
    nodes: list[Any],
    weights: dict[str, np.ndarray],
    dtype: int = T.FLOAT,
    out: tuple[Any, ...] = ("B", 4, 8, 8),
    **more: Any,
) -> Path:
    """A model of input x (B,4,8,8) and output y."""
    zeros = [helper.make_tensor(f"z{k}", k, [], [0]) for k in (T.INT8, T.FLOAT8E4M3FN)]
    kept = [numpy_helper.from_array(v, n) for n, v in weights.items()]
    scale = numpy_helper.from_array(np.asarray(0.1, helper.tensor_dtype_to_np_dtype(dtype)), "s")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["B", 4, 8, 8])],
        [helper.make_tensor_value_info("y", dtype, out)],
        [*kept, scale, *zeros],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.save(model, path, **more)
    return path


CONV = np.ones((4, 4, 3, 3), np.float32)


SETTINGS = EngineSettings(batch=(1, 4))


installed = pytest.mark.skipif(found_version("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


def int8_file(path: Path) -> Path:
    """Two INT8 convolutions and one in FP32."""
    nodes, x = [], "x"
    for number in range(2):
        given, a = quantized(x, f"a{number}")
        weight, w = quantized(f"w{number}", f"wd{number}", of_weight=True)
        nodes += [*given, *weight, helper.make_node("Conv", [a, w], [f"h{number}"], name=f"conv{number}", pads=[1] * 4)]
        x = f"h{number}"
    nodes.append(helper.make_node("Conv", [x, "wf"], ["y"], name="last", pads=[1] * 4))
    codes = (np.arange(CONV.size).reshape(CONV.shape) % 7 - 3).astype(np.int8)
    return save(path, nodes, {"w0": codes, "w1": codes, "wf": CONV})


def half_file(path: Path) -> Path:
    """One convolution in FP16."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="only", pads=[1] * 4)]
    return save(path, nodes, {"w": CONV.astype(np.float16)}, dtype=T.FLOAT16)


def order(path: Path, sm: tuple[int, int] = (8, 6), **settings: Any) -> Order:
    asked = SETTINGS.model_copy(update=settings)
    facts = read_graph(path)
    profiles = plan_profiles(facts.inputs, {"B": asked.batch})
    return Order(path, facts, "tensorrt_rtx", found_version("tensorrt_rtx") or "1.7.1", sm, profiles, asked)


PROFILE = {"sample": [[1, 1, 4, 4], [4, 1, 4, 4], [16, 1, 4, 4]], "timestep": [[1], [4], [16]]}


def job(**more: Any) -> Job:
    asked: dict[str, Any] = {
        "onnx": "model.onnx",
        "sm": [8, 6],
        "profiles": [PROFILE],
        "flags": [],
        "hardware_compatible": False,
        "tf32": False,
        "level": 3,
        "workspace_bytes": 1000,
        "timing_cache": "",
    }
    return Job(**{**asked, **more})  # type: ignore[typeddict-item]


def run(folder: Path, *arguments: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [python, *(["-I"] if python == sys.executable else []), str(folder / "build.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=clean, cwd="/")


def fake(monkeypatch: pytest.MonkeyPatch, sm: tuple[int, int] = (8, 0)) -> FakeTrt:
    """A machine with TensorRT and a card, whose engines add 1."""
    trt = FakeTrt()
    trt.inputs = {"sample": (-1, 4, 8, 8)}
    monkeypatch.setattr(script.importlib, "import_module", lambda name: trt)
    monkeypatch.setattr(script, "gpu", lambda: FakeCuda(sm))
    monkeypatch.setattr(script, "inspected", lambda module, plan, flags: {"conv int8": 2, "conv fp32": 1})
    return trt
