"""An artifact that is an ONNX file alone, a build kit of it, and the kit as it comes back from a machine that is a fake."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.engines import fake, int8_file, order

from optimize.engines import script
from optimize.engines.kits import compose
from optimize.hardware.targets import target
from optimize.storage.commit import commit


def artifact_of(folder: Path, file: Callable[[Path], Path] = int8_file) -> Path:
    """An artifact that is an ONNX file alone; its input is called sample."""

    def write(temporary: Path) -> dict[str, Any]:
        (temporary / "onnx").mkdir()
        model = onnx.load(file(temporary / "onnx" / "model.onnx"))
        for node in model.graph.node:
            node.input[:] = ["sample" if name == "x" else name for name in node.input]
        model.graph.input[0].name = "sample"
        onnx.save(model, temporary / "onnx" / "model.onnx")
        return {"id": "x", "exports": {"onnx": {"opset": 19}}}

    commit(folder, write)
    return folder


def kit_of(artifact: Path, folder: Path, name: str = "a100", off: float = 0.0) -> Path:
    """A kit of it with one case, of a network that adds 1 + off."""
    import numpy as np

    asked = order(artifact / "onnx" / "model.onnx")
    job = {k: v for k, v in asked.job().items() if k not in ("onnx", "sm", "timing_cache")}
    about = compose.about_kit("final", target(name), job, asked.facts.expected, 5e-2, "int8")
    x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 4, 8, 8)
    case = {"case": "batch 1", "inputs": {"sample": x}, "output": x + 1 + off}

    def write(temporary: Path) -> dict[str, Any]:
        compose.write_kit(temporary, asked.onnx, list(asked.facts.files), about, [case])
        return {}

    commit(folder, write)
    return folder


def built(folder: Path, monkeypatch: pytest.MonkeyPatch, code: int = 0) -> Path:
    """The kit after its script ran on a machine with TensorRT and an A100 that are fakes."""
    with monkeypatch.context() as there:
        fake(there)
        assert script.main(["--kit", str(folder), "--calls", "10"]) == code
    return folder
