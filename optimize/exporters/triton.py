"""`triton/`: a Triton model repository of the exported network, with the whole sampling loop as one of its models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import UserError
from optimize.onnx.vetted import ONNX_FILE
from optimize.registry import EXPORTERS
from optimize.serving._repository import Serving, write_repository

if TYPE_CHECKING:
    from optimize.diffusion.context import Context
    from optimize.diffusion.model import Model

FOLDER = "triton"


@EXPORTERS.register("triton")
class Triton(Serving):
    """The model repository; name it after `onnx` in `exports`."""

    def export(self, model: Model, folder: Path, context: Context) -> dict[str, Any]:
        """Write `folder/triton/`; returns the record {folder, models, max_batch, lowered}.

        Raises UserError where the ONNX file is not there yet, or for a sampling loop that cannot be served.
        """
        if not (folder / ONNX_FILE).is_file():
            raise UserError(
                "exports: triton serves the exported network. Put onnx before it: [{onnx: {}}, {triton: {}}]."
            )
        with context.progress("export triton", 1) as advance:
            record = write_repository(folder, folder / FOLDER, self)
            advance(1)
        return {"folder": FOLDER, **record}
