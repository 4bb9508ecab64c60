"""What the tests of whole pipelines share: a file's two ends, a session, an artifact that is only its exported file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from onnx import TensorProto
from support.sampling import write_sampling

from optimize.storage.commit import commit

FLOAT = TensorProto.FLOAT


def ends(path: Path) -> dict[str, Any]:
    """{name: (type, dims)} of a file's inputs, then of its outputs, in order."""
    graph = onnx.load(path).graph
    return {
        v.name: (v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in [*graph.input, *graph.output]
    }


def session(path: Path) -> Any:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def identity(folder: Path) -> Path:
    """A file that computes nothing."""
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", FLOAT, [1])],
        [onnx.helper.make_tensor_value_info("y", FLOAT, [1])],
    )
    onnx.save(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10), folder / "i"
    )
    return folder / "i"


def artifact(folder: Path, network: Any, file: Path, head: str = "") -> Path:
    """An artifact of a network with an exported file, whose output means `head`."""

    def write(temporary: Path) -> dict[str, Any]:
        (temporary / "onnx").mkdir()
        shutil.copy2(file, temporary / "onnx" / "model.onnx")
        config = {k: v for k, v in network.config.items() if not k.startswith("_")}
        (temporary / "structure.json").write_text(
            json.dumps({"architecture": type(network).__name__, "config": config, "edits": []}, default=list)
        )
        if head:
            write_sampling(temporary, parameterization={"prediction": head})
        return {"id": "pruned"}

    commit(folder, write)
    return folder
