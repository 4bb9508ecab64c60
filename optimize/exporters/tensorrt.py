"""TensorRT engines of the exported ONNX file, for GPUs of the class found here; other machines get a build kit
(`optimize export`). Built on paper only so far: unverified on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from optimize.engines.settings import EngineSettings
from optimize.registry import EXPORTERS

if TYPE_CHECKING:
    from optimize.diffusion.context import Context
    from optimize.diffusion.model import Model


@EXPORTERS.register("tensorrt")
class Tensorrt(EngineSettings):
    """TensorRT engines; list it after `onnx`."""

    of_the_card: ClassVar[bool] = True  # kernels are timed on the GPU found, whatever class is named

    def export(self, model: Model, folder: Path, context: Context) -> dict[str, Any]:
        """Write `folder/tensorrt/<sm>-tensorrt-<version>/`; returns the record {engines: {name: …}}."""
        from optimize.engines.place import export_engines

        return export_engines("tensorrt", self, model.shape, folder, context)
