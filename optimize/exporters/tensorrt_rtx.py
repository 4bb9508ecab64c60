"""TensorRT-RTX engines of the exported ONNX file, built ahead of time for SM 7.5 to 12.1; no GPU is needed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.engines.settings import EngineSettings
from optimize.registry import EXPORTERS

if TYPE_CHECKING:
    from optimize.diffusion.context import Context
    from optimize.diffusion.model import Model


@EXPORTERS.register("tensorrt_rtx")
class TensorrtRtx(EngineSettings):
    """TensorRT-RTX engines; list it after `onnx`."""

    def export(self, model: Model, folder: Path, context: Context) -> dict[str, Any]:
        """Write `folder/tensorrt/<sm>-tensorrt_rtx-<version>/`; returns the record {engines: {name: …}}."""
        from optimize.engines.place import export_engines

        return export_engines("tensorrt_rtx", self, model.shape, folder, context)
