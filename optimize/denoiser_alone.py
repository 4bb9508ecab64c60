"""The denoiser of any diffusers folder alone, as an artifact of this library with its ONNX file: for pipelines that no layout
has a place for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.artifact import commit, save_model
from optimize.configs import digest
from optimize.context import Context, Progress, silent
from optimize.errors import GateFailed
from optimize.network import Network

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.model import Model

FARTHEST = 1e-3  # relative L2 between a network and its exported file


def export_denoiser(folder: Path, out: Path, *, opset: int = 18, progress: Progress = silent) -> dict[str, Any]:
    """Write the denoiser in `folder` (unet/ or transformer/, scheduler/) to `out` as an artifact and return its manifest.

    Inputs have diffusers' own names and dims are symbolic where the network allows it. Raises UserError and ArtifactError
    for a network that is not known or not whole, GateFailed where the exported file is farther than 1e-3 (relative L2)
    from the network at any noise level.
    """
    from optimize.exporters.onnx import FILE, Onnx
    from optimize.parity import parity
    from optimize.sampling import Sampler
    from optimize.sources.diffusers import DiffusersSource

    model = DiffusersSource(folder).load(Sampler())

    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        record = Onnx(opset=opset).export(model, temporary, Context(progress=progress))
        far = parity(model, _exported(temporary / FILE, model), batch=2)
        if not far["relative_l2"] <= FARTHEST:
            raise GateFailed(
                f"{folder}: the exported file is {far['relative_l2']:.2g} (relative L2) from the network; at most {FARTHEST:g} is let through. Nothing was written."
            )
        return _about(model, record, far)

    return commit(out, write)


def _about(model: Model, record: dict[str, Any], far: dict[str, Any]) -> dict[str, Any]:
    """The manifest's fields."""
    about = {
        "kind": "denoiser",
        "layout": "denoiser",
        "class": model.structure.architecture,
        "source": model.source,
        "passes": [],
        "exports": {"onnx": record},
        "parts": {"onnx": {"inputs": [s.to_json() for s in model.inputs], "parity": far}},
        "left_out": [],
    }
    return {"id": digest(about), **about}


def _exported(file: Path, model: Model) -> Network:
    """The exported file as a Network, on the CPU."""
    import onnxruntime
    import torch

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])

    class Exported:
        inputs = model.inputs

        def __call__(self, **tensors: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {name: t.numpy() for name, t in tensors.items()})[0])

    return Exported()
