"""Opening what judges: `open_network(config)` gives a callable images (N,C,H,W) in [-1, 1] -> features (N,D).

Weights come from a local folder or from the hub, as safetensors; code only by an import path of the user's own recipe.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError, EnvironmentLacks, OptimizeError, UserError, cut
from optimize.quality.judges import preprocess
from optimize.quality.metrics import FeatureNetwork
from optimize.storage import import_paths
from optimize.storage.weights import file_sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Network = Callable[["Tensor"], "Tensor"]
FILES = ("*.json", "*.safetensors", "*.txt", "*.model")  # what is fetched from the hub: never a pickle
TO_SAFETENSORS = "python -c \"import torch, safetensors.torch as s; s.save_file(torch.load('weights.pth', weights_only=True), 'model.safetensors')\""


def open_network(config: FeatureNetwork, device: str = "cpu") -> Network:
    """The network of a config on a device, in evaluation mode.

    Raises UserError for a path that leads nowhere, ArtifactError for weights that do not fit, EnvironmentLacks where the
    hub cannot be reached or the device is not there.
    """
    _check_device(device)
    openers = {
        "classifier": _classifier,
        "inception": _inception,
        "dinov2": _dinov2,
        "clip": _clip,
        "import": _imported,
    }
    return openers[config.kind](config, device)


def _check_device(device: str) -> None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise EnvironmentLacks(
            f'quality.device: {device} was asked for, and torch {torch.__version__} finds no CUDA device. Give cpu, or install a CUDA build of torch (extra "cuda") and a driver.'
        )


def extract(network: Network, images: Tensor, batch: int, name: str = "features", device: str = "cpu") -> np.ndarray:
    """(N,D) float64 features, batch by batch. UserError for a network of another shape, OptimizeError for NaN."""
    import numpy as np
    import torch

    found = []
    with torch.inference_mode():
        for part in images.split(batch):
            features = _features(network, part.float().to(device), name)
            _check(features, part, name)
            found.append(features.double().cpu().numpy())
    return np.concatenate(found)


def _features(network: Network, images: Tensor, name: str) -> Any:
    """What the network makes of images; UserError where it cannot take them."""
    import torch

    try:
        return network(images)
    except torch.OutOfMemoryError as error:
        raise EnvironmentLacks(f"quality.{name}: out of memory on {images.device}. Lower quality.batch.") from error
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"quality.{name}: the network cannot take images of shape {tuple(images.shape)}: {cut(str(error), 300)}. Give one that was made for such images."
        ) from error


def _check(features: Any, images: Tensor, name: str) -> None:
    import torch

    shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != len(images):
        raise UserError(
            f"quality.{name}: the network gives {shape} for images of shape {tuple(images.shape)}; it must give a tensor (N, D), here ({len(images)}, D)"
        )
    if not bool(features.isfinite().all()):
        raise OptimizeError(f"quality.{name}: the network gives NaN or infinities for finite images")


def fingerprint(config: FeatureNetwork) -> dict[str, str]:
    """What the features depend on: hashes of the weights, or of the file that an import path names, and the revision."""
    about = {"network": config.kind, "resize": config.resize, "revision": config.revision or ""}
    if config.kind == "import":
        about["network"] = config.source
        source = inspect.getsourcefile(inspect.unwrap(imported(config.source)))
        return about | ({"code": file_sha256(Path(source))} if source else {})
    return about | _hashes(
        _own(config.source) if config.kind == "classifier" else located(config.source, config.revision)
    )


def judged_by(quality: Any) -> dict[str, Any]:
    """Content of everything a recipe's quality section (QualityConfig) judges with, JSON; hub ids are fetched."""
    found: dict[str, Any] = {"metrics": list(quality.metrics), "prompts": list(quality.prompts)}
    found |= {name: fingerprint(n) for name, n in {"features": quality.features, **quality.further}.items()}
    found |= {"device": quality.device} if quality.device != "cpu" else {}
    if quality.clip:
        found["clip"] = fingerprint(quality.clip)
    found |= {"classifier": _hashes(_own(quality.classifier, "classifier"))} if quality.classifier else {}
    return found | ({"lpips": _hashes(located(quality.lpips, field="lpips"))} if quality.lpips else {})


def _hashes(path: Path) -> dict[str, str]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {p.name: file_sha256(p) for p in files if p.is_file()}


def located(source: str, revision: str | None = None, field: str = "features") -> Path:
    """A local file or folder, or the hub's `owner/name` fetched into its cache (safetensors and JSON only). UserError for
    what is neither, or both."""
    network = FeatureNetwork(kind="inception", source=source)
    if said := network.ambiguous():
        raise UserError(f"quality.{field}: {said}")
    if not network.on_hub:
        if os.path.exists(source):
            return Path(source)
        raise UserError(
            f"quality.{field}: {cut(source)} does not exist (relative to the working directory), and is no hub id (owner/name)."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=list(FILES)))
    except RepositoryNotFoundError as error:
        raise UserError(f"quality.{field}: {source} is neither a local path nor on the hub ({error}).") from error
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise EnvironmentLacks(
            f"quality.{field}: {source} is no local path, and the hub does not answer ({type(error).__name__}). Download it elsewhere (`hf download {source}`) and give its folder."
        ) from error


def _own(source: Path | str, field: str = "features") -> Path:
    """The folder of an image classifier, which is always a local one."""
    if not os.path.isdir(source):
        raise UserError(
            f"quality.{field}: {cut(str(source))} is no folder. Give the folder of an image classifier (config.json, model.safetensors)."
        )
    return Path(source)


def _classifier(config: FeatureNetwork, device: str) -> Network:
    """Features of the project's own image classifier, at its own size."""
    from optimize.quality.judges.image_classifier import ImageClassifier

    return ImageClassifier.load(_own(config.source), device).features


def _inception(config: FeatureNetwork, device: str) -> Network:
    """Pooled features (N,2048) of FID's Inception: eight-bit values, 299 x 299 bilinear, (x - 128) / 128."""
    from optimize.quality.judges.inception import SIDE, FidInception

    try:
        network = FidInception.load(located(config.source, config.revision)).to(device)
    except ArtifactError as error:
        raise ArtifactError(f"{error} FID's usual weights are pickled; convert them once: {TO_SAFETENSORS}") from error

    def features(images: Tensor) -> Tensor:
        pixels = preprocess.eight_bit(preprocess.rgb(images))
        if config.resize == "tensorflow":
            resized = preprocess.like_tensorflow(pixels, SIDE)
        else:
            resized = preprocess.smooth(pixels, SIDE, SIDE, "bilinear")
        return network((resized - 128) / 128)

    return features


def _dinov2(config: FeatureNetwork, device: str) -> Network:
    """The class token after the last normalization (Stein et al., arXiv 2306.04675): 224 x 224 bicubic, ImageNet's mean."""
    network = _pretrained(config, device)
    side = 224 if network.config.image_size >= 224 else network.config.image_size

    def features(images: Tensor) -> Tensor:
        resized = preprocess.smooth(preprocess.rgb(images), side, side)
        pixels = preprocess.normalized(resized, preprocess.IMAGENET)
        return network(pixel_values=pixels).last_hidden_state[:, 0]

    return features


def _clip(config: FeatureNetwork, device: str) -> Network:
    """The projected image embedding: shorter side resized bicubic, middle square, CLIP's mean."""
    network = _pretrained(config, device)
    side = network.config.vision_config.image_size

    def features(images: Tensor) -> Tensor:
        pixels = preprocess.normalized(preprocess.centred(preprocess.rgb(images), side), preprocess.CLIP)
        return network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)

    return features


def prompt_features(config: FeatureNetwork, prompts: list[str]) -> np.ndarray:
    """(P,D) projected text embeddings of a CLIP, float64."""
    import torch
    from transformers import AutoTokenizer

    folder = located(config.source, config.revision, "clip")
    network = _pretrained(config, "cpu")
    length = network.config.text_config.max_position_embeddings
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        prompts, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.inference_mode():
        text = network.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return network.text_projection(text.pooler_output).double().numpy()


def _pretrained(config: FeatureNetwork, device: str) -> Any:
    """A transformers model from a folder with config.json and model.safetensors."""
    from optimize.quality.judges.pretrained import load_pretrained

    return load_pretrained(config.kind, located(config.source, config.revision)).to(device)


def _imported(config: FeatureNetwork, device: str) -> Network:
    """The user's callable; moved to the device where it is a module."""
    network = imported(config.source)
    return network.to(device).eval() if hasattr(network, "to") and hasattr(network, "eval") else network


def imported(path: str) -> Any:
    """`package.module:name`, found from the working directory as well. UserError where there is no such callable."""
    return import_paths.imported(path, "images (N,C,H,W) -> features (N,D)")
