"""Kernel distance (KID): unbiased squared MMD with the cubic kernel (x·y / D + 1)³ (Bińkowski et al., arXiv 1801.01401).

All pairs are used, not random subsets, so the value has no randomness of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def kernel_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """Unbiased MMD² between two feature sets; may be slightly negative."""
    return Pairing(Reference(a_ND), b_MD).value


def cubic(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """(N,M) kernel values, float64."""
    a, b = np.asarray(a_ND, dtype=np.float64), np.asarray(b_MD, dtype=np.float64)
    return (a @ b.T / a.shape[1] + 1.0) ** 3


@dataclass(frozen=True)
class Reference:
    """Features of the real images, and the mean kernel value over their pairs."""

    features: np.ndarray

    @cached_property
    def within(self) -> float:
        """Mean of k over pairs of two different real images."""
        k, n = cubic(self.features, self.features), len(self.features)
        return float((k.sum() - np.trace(k)) / (n * (n - 1)))


class Pairing:
    """A reference with one generated set; `replicates` gives MMD² of resampled generated sets."""

    def __init__(self, reference: Reference, features_MD: np.ndarray, own_MM: np.ndarray | None = None) -> None:
        self.reference = reference
        self.across_M = cubic(features_MD, reference.features).mean(axis=1)
        self.own_MM = cubic(features_MD, features_MD) if own_MM is None else own_MM

    @property
    def value(self) -> float:
        """MMD² of the generated set as it is."""
        return float(self.replicates(np.ones((1, len(self.across_M))))[0])

    def replicates(self, counts_RM: np.ndarray) -> np.ndarray:
        """(R,) MMD²; pairs of an image with a copy of itself, which only resampling makes, are left out."""
        diagonal, total = np.diag(self.own_MM), counts_RM.sum(axis=1)
        squares = counts_RM**2
        pairs = ((counts_RM @ self.own_MM) * counts_RM).sum(axis=1) - squares @ diagonal
        within = pairs / (total**2 - squares.sum(axis=1))
        return self.reference.within + within - 2 * (counts_RM @ self.across_M) / total
