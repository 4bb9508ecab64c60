"""CLIP score: how well an image agrees with the words it was asked for (Hessel et al., arXiv 2104.08718).

100 · max(cos, 0) of the projected embeddings, as torchmetrics and most reports have it; the paper's own factor is 2.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from optimize.errors import UserError
from optimize.quality import features
from optimize.quality.metrics import FeatureNetwork

if TYPE_CHECKING:
    from torch import Tensor


def scores(
    clip: FeatureNetwork | None, wording: tuple[str, ...], images: Tensor, labels: np.ndarray | None, batch: int
) -> np.ndarray:
    """(N,) CLIP score of images (N,C,H,W) in [-1, 1], each with the prompt of its class, or with prompts in turn."""
    if clip is None or not wording:
        raise UserError(
            "quality.clip, quality.prompts: the metric clip_score needs both. Give a CLIP (folder or hub id) and a prompt for every class."
        )
    which = chosen(wording, len(images), labels)
    text = features.prompt_features(clip, list(wording))[which]
    seen = features.extract(features.open_network(clip), images, batch, "clip")
    return agreement(seen, text)


def agreement(images_ND: np.ndarray, texts_ND: np.ndarray) -> np.ndarray:
    """(N,) 100 · max(cos, 0) of each pair."""
    sizes = np.linalg.norm(images_ND, axis=1) * np.linalg.norm(texts_ND, axis=1)
    return 100 * np.maximum((images_ND * texts_ND).sum(axis=1) / sizes, 0.0)


def chosen(wording: tuple[str, ...], n: int, labels: np.ndarray | None) -> np.ndarray:
    """(N,) index of each image's prompt: its class, or its number modulo the number of prompts."""
    if labels is None:
        return np.arange(n) % len(wording)
    if labels.max() >= len(wording):
        raise UserError(
            f"quality.prompts: {len(wording)} given, but classes go up to {labels.max()}; give one for every class, in order"
        )
    return labels
