"""TensorRT-RTX: the artifact's engine for this GPU and this version. Never run on a GPU so far: unverified."""

from __future__ import annotations

from pathlib import Path

from optimize.engines.opened import EngineOptions, EngineRunner, open_engine
from optimize.registry import RUNNERS


@RUNNERS.register("tensorrt_rtx")
class TensorRTRTX(EngineOptions):
    """Options of the TensorRT-RTX runner; precision is in the engine."""

    def open(self, folder: Path) -> EngineRunner:
        """Load the engine, after its bytes, GPU and version were checked (see `open_engine`)."""
        return open_engine(folder, "tensorrt_rtx", self)
