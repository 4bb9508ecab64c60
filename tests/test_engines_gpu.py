"""Real engines on a real GPU: built, run with and without CUDA graphs, from host and device. Not run so far."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_engines_make import half_file, int8_file

from optimize.artifact import commit
from optimize.engines.graph import read_graph
from optimize.engines.make import Order, make
from optimize.engines.modules import found_version, gpu_sm
from optimize.engines.profiles import plan_profiles
from optimize.engines.settings import EngineSettings
from optimize.runner import open_runner

pytestmark = pytest.mark.gpu


def artifact(folder: Path, onnx: Path, module: str) -> Path:
    """An artifact with the engine of a file for the GPU here."""
    version, sm = found_version(module), gpu_sm()
    if version is None or sm is None:
        pytest.skip(f"{module} or a GPU is missing")
    facts = read_graph(onnx)
    order = Order(onnx, facts, module, version, sm, plan_profiles(facts.inputs, {"B": (1, 4)}), EngineSettings())

    def write(temporary: Path) -> dict[str, Any]:
        place = temporary / "tensorrt" / order.name
        place.mkdir(parents=True)
        make(order, place)
        return {"id": "x"}

    commit(folder, write)
    return folder


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("kind", [int8_file, half_file])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("io", ["host", "device"])
def test_an_engine_agrees_with_onnx_runtime(tmp_path: Path, module: str, kind: Any, graphs: bool, io: str) -> None:
    import onnxruntime
    import torch

    path = kind(tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    with open_runner(artifact(tmp_path / "a", path, module), module, cuda_graphs=graphs, io=io) as runner:
        for batch in (1, 3, 4, 1):
            x = (
                np.random.default_rng(batch)
                .normal(size=(batch, 4, 8, 8))
                .astype(session.get_inputs()[0].type[7:-1].replace("float16", "f2").replace("float", "f4"))
            )
            (want,) = session.run(None, {"x": x})
            given = torch.from_numpy(x).to("cuda" if io == "device" else "cpu")
            got = runner(x=given).cpu().numpy()
            assert np.linalg.norm(got - want) <= 5e-2 * np.linalg.norm(want)
