"""Real engines on a real GPU: built, run with and without CUDA graphs, from host and device. Not run so far."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.engines import half_file, int8_file

from optimize.diffusion.backend import open_runner
from optimize.engines.graph import read_graph
from optimize.engines.libraries import found_version, gpu_sm
from optimize.engines.make import Order, make
from optimize.engines.profiles import plan_profiles
from optimize.engines.settings import EngineSettings
from optimize.errors import OptimizeError
from optimize.storage.commit import commit

pytestmark = pytest.mark.gpu


def artifact(folder: Path, onnx: Path, module: str, flags: tuple[str, ...] = (), **asked: Any) -> Path:
    """An artifact with the engine of a file for the GPU here, and the file; skips where the module cannot build it."""
    version, sm = found_version(module), gpu_sm()
    if version is None or sm is None:
        pytest.skip(f"{module} or a GPU is missing")
    facts, settings = read_graph(onnx), EngineSettings(flags=flags, **asked)
    order = Order(
        onnx, facts, module, version, sm, plan_profiles(facts.inputs, {"B": (1, 4)}, settings.exact), settings
    )
    try:
        order.refuse(sm)
    except OptimizeError as error:  # TensorRT-RTX has no kernels for some GPUs
        pytest.skip(str(error))

    def write(temporary: Path) -> dict[str, Any]:
        place = temporary / "tensorrt" / order.name
        place.mkdir(parents=True)
        make(order, place)
        (temporary / "onnx").mkdir()
        shutil.copy(onnx, temporary / "onnx" / "model.onnx")
        return {"id": "x"}

    commit(folder, write)
    return folder


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("kind", [int8_file, half_file])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("io", ["host", "device"])
def test_an_engine_agrees_with_onnx_runtime(tmp_path: Path, module: str, kind: Any, graphs: bool, io: str) -> None:
    path = kind(tmp_path / "model.onnx")
    with open_runner(artifact(tmp_path / "a", path, module), module, cuda_graphs=graphs, io=io) as runner:
        agree(path, runner, io)


FLAGS: list[tuple[str, ...]] = [("stream_weights",), ("strip_weights",), ("version_compatible",), ("refit_identical",)]


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("flags", FLAGS)
def test_engines_of_every_kind_run(tmp_path: Path, module: str, flags: tuple[str, ...]) -> None:
    path = half_file(tmp_path / "model.onnx")
    options = {"weights_gb": 0.0} if "stream_weights" in flags else {}
    with open_runner(artifact(tmp_path / "a", path, module, flags), module, **options) as runner:
        agree(path, runner, "host")


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_with_a_profile_for_every_size_runs_and_tells_its_formats(tmp_path: Path, module: str) -> None:
    path = int8_file(tmp_path / "model.onnx")
    folder = artifact(tmp_path / "a", path, module, exact=True)
    record = json.loads(next(folder.glob("tensorrt/*/engine.json")).read_text())
    assert record["found"].get("conv int8") == 2 and len(record["profiles"]) == 3
    with open_runner(folder, module, cuda_graphs=True) as runner:
        agree(path, runner, "host")


def agree(path: Path, runner: Any, io: str) -> None:
    """The runner computes what ONNX Runtime computes of the file, at every batch."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    kind = np.float16 if session.get_inputs()[0].type == "tensor(float16)" else np.float32
    for batch in (1, 3, 4, 1):
        x = np.random.default_rng(batch).normal(size=(batch, 4, 8, 8)).astype(kind)
        (want,) = session.run(None, {"x": x})
        got = runner(x=torch.from_numpy(x).to("cuda" if io == "device" else "cpu")).cpu().numpy()
        assert np.linalg.norm(got - want) <= 5e-2 * np.linalg.norm(want)
