"""Class accuracy: how often an independent classifier sees the class that was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


def accuracy(predicted_N: np.ndarray, labels_N: np.ndarray) -> float:
    """Share of images whose predicted class is the asked one."""
    return float((predicted_N == labels_N).mean())


@dataclass(frozen=True)
class Hits:
    """Right or wrong by image: `right` (N,) of 0 and 1, `labels` (N,) the asked class, `classes` those present."""

    right: np.ndarray
    labels: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        """(K,) the classes asked for, ascending."""
        return np.unique(self.labels)

    def mean(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,) accuracy over all images."""
        return counts_RN @ self.right / counts_RN.sum(axis=1)

    def per_class(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,K) accuracy within each class; every class needs a count in every replicate."""
        member_NK = (self.labels[:, None] == self.classes).astype(np.float64)
        return (counts_RN @ (member_NK * self.right[:, None])) / (counts_RN @ member_NK)


def hits(predicted_N: np.ndarray, labels_N: np.ndarray) -> Hits:
    """Hits from predictions and asked labels."""
    return Hits((predicted_N == labels_N).astype(np.float64), labels_N)


def drawn(
    predicted_N: np.ndarray, labels_N: np.ndarray, counts_RN: np.ndarray
) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
    """class_accuracy, class_accuracy_min and class_accuracy_of_<class>, each (value, replicates (R,))."""
    found, once = hits(predicted_N, labels_N), np.ones((1, len(labels_N)))
    by_class, drawn_RK = found.per_class(once)[0], found.per_class(counts_RN)
    yield "class_accuracy", (float(found.mean(once)[0]), found.mean(counts_RN))
    yield "class_accuracy_min", (float(by_class.min()), drawn_RK.min(axis=1))
    for i, label in enumerate(found.classes):
        yield f"class_accuracy_of_{label}", (float(by_class[i]), drawn_RK[:, i])
