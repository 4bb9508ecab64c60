"""Tiny networks that compute what is no number, before an operator in which some runtimes hide it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from optimize.architectures.artifact import save_model
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Sampler
from optimize.exporters.onnx import Onnx
from optimize.sources.module import ModuleSource
from optimize.storage.commit import commit

ENDS = {
    "relu": torch.relu,
    "clip": lambda h: h.clamp(-1, 1),
    "max": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "softmax": lambda h: h.softmax(-1),
}
HIDING = "support.not_finite:Hiding"
INPUTS = {"sample": ["B", 1, 8, 8], "timestep": ["B"]}


class Hiding(nn.Module):
    """Two convolutions around an operator that hides NaN; with `overflow` exp(t / 10) is infinite from t = 888 on, and
    infinity minus itself no number; `poisoned` has a NaN that no file of weights shows."""

    def __init__(self, end: str = "relu", overflow: bool = False, poisoned: bool = False) -> None:
        super().__init__()
        scale = torch.ones(1, 4, 1, 1)
        scale[0, 0] = torch.nan if poisoned else 1.0
        self.register_buffer("scale", scale, persistent=False)
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)
        self.end, self.overflow = end, overflow

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.first(sample) * self.scale
        if self.overflow:
            grown = torch.exp(timestep.float() / 10)[:, None, None, None]
            h = h + (grown - grown)
        else:
            h = h + 0.001 * timestep.float()[:, None, None, None]
        return self.last(ENDS[self.end](h))


class Quotient(nn.Module):
    """What linear attention does: a sum that may be zero divides."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 1, 4, 4))

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = torch.relu(sample * self.scale)
        return h / (h.sum((2, 3), keepdim=True) + 1e-15) + 0 * timestep.float()[:, None, None, None]


def hiding(folder: Path, **arguments: Any) -> Model:
    """The network as a model."""
    return from_module(folder, Hiding(**arguments), HIDING, INPUTS, arguments)


def from_module(
    folder: Path, module: nn.Module, path: str, inputs: Mapping[str, Any], arguments: Mapping[str, Any], **more: Any
) -> Model:
    """A module as a model of `kind: module`, its weights by way of a file."""
    file = folder / "weights.safetensors"
    save_file({k: v.clone() for k, v in module.state_dict().items()}, file)
    about = {"network": path, "inputs": inputs, "arguments": arguments}
    return ModuleSource(file, **about, **more).load(Sampler(steps=4, clip=1.0))


def artifact(folder: Path, model: Model, **onnx: Any) -> Path:
    """The model with its ONNX file, made without the check of its weights that an export begins with."""

    def write(place: Path) -> dict[str, Any]:
        save_model(place, model)
        Onnx(**onnx).export_network(model.module, model.inputs, place)
        return {"id": "x", "exports": {"onnx": {"precision": onnx.get("precision", "fp32")}}}

    commit(folder, write)
    return folder
