"""CLIP and DINOv2 as judges: transformers' networks from a folder with config.json and safetensors, every tensor accounted
for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.architectures.bounded import as_errors
from optimize.architectures.filled import filled
from optimize.errors import ArtifactError
from optimize.storage.variants import weights_of
from optimize.storage.weights import read_json

if TYPE_CHECKING:
    from torch import nn

CLASSES = {  # transformers' classes by the model_type of config.json
    "dinov2": {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"},
    "clip": {"clip": "CLIPModel"},
}


def load_pretrained(kind: str, folder: Path) -> nn.Module:
    """The network of a kind ("clip", "dinov2") in `folder`, float32, evaluation mode. Raises ArtifactError for another kind
    of model, and where its weights are missing, damaged or do not fit."""
    if not (folder / "config.json").is_file():
        raise ArtifactError(
            f"quality: {folder} does not hold a {kind} that transformers can load: there is no config.json in it."
        )
    config = read_json(folder / "config.json")
    found = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(found, str) or found not in CLASSES[kind]:
        raise ArtifactError(
            f"quality: {folder} holds a {str(found)[:60]}, not a {kind}: its config.json needs model_type {' or '.join(CLASSES[kind])}."
        )
    return filled(lambda: _build(CLASSES[kind][found], found, config, folder), config, weights_of(folder))


def _build(name: str, model_type: str, config: dict[str, Any], folder: Path) -> nn.Module:
    import transformers

    with as_errors(config, str(folder / "config.json")):
        about = transformers.CONFIG_MAPPING[model_type].from_dict(config)
        network: nn.Module = getattr(transformers, name)(about)
    return network
