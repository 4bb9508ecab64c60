"""CLIP and DINOv2 as judges: transformers' networks from a folder with config.json and safetensors, every tensor accounted
for. transformers takes the tensors in, since it knows the names that its earlier versions gave them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.architectures.bounded import as_errors, check_depth, on_meta
from optimize.errors import ArtifactError
from optimize.storage.accounting import beside, refuse_gaps, refuse_infinite, refuse_quantized
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
    refuse_quantized(config, folder)
    check_depth(config, str(folder / "config.json"))
    with as_errors(config, str(folder / "config.json")):
        build = _class(CLASSES[kind][found], found, config)
    return _filled(build, config, folder)


def _class(name: str, model_type: str, config: dict[str, Any]) -> tuple[Any, Any]:
    """(class, config) of transformers."""
    import transformers

    return getattr(transformers, name), transformers.CONFIG_MAPPING[model_type].from_dict(config)


def _filled(build: tuple[Any, Any], config: dict[str, Any], folder: Path) -> nn.Module:
    cls, about = build
    weights = weights_of(folder)
    on_meta(lambda: cls(about), config, str(folder / "config.json"), len(weights.stored()))
    tensors = {name: t for name, t in weights.read().items() if not beside(cls.__name__, name)}
    refuse_infinite(tensors, weights.where)
    with as_errors(config, str(weights.where)), _silent():
        network, info = cls.from_pretrained(
            None, config=about, state_dict=tensors, output_loading_info=True, ignore_mismatched_sizes=True
        )
    shaped = [f"{name} {list(asked)} in the network, {list(given)} in the file" for name, given, asked in info["mismatched_keys"]]  # fmt: skip
    gaps = {"missing": info["missing_keys"], "unexpected": info["unexpected_keys"], "of another shape": shaped}
    refuse_gaps({k: sorted(v) for k, v in gaps.items()}, cls.__name__, weights.where)
    made: nn.Module = network.float().eval().requires_grad_(False)
    return made


@contextmanager
def _silent() -> Iterator[None]:
    """transformers reports gaps in a table of its own; here they are an error."""
    logger = logging.getLogger("transformers")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
