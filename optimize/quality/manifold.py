"""Fidelity and variety apart: do generated images lie where real ones do, and the other way round?

A set's manifold is the union of balls around its points, each reaching to the point's k-th nearest neighbour. Precision
and recall: Kynkäänniemi et al., arXiv 1904.06991, equation 2, k = 3. Density and coverage: Naeem et al., arXiv 2002.09797,
equations 3 and 4, k = 5. Memory grows with the square of the number of images; 10,000 are comfortable.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

NEIGHBOURS, DENSITY_NEIGHBOURS = 3, 5


@dataclass(frozen=True, eq=False)
class Manifold:
    """Real features (M,D) with the distances that all figures share."""

    features: np.ndarray

    @cached_property
    def nearest(self) -> np.ndarray:
        """(M, 5) squared distances to the nearest other points, ascending; inf where there are fewer."""
        return nearest(squared(self.features, self.features), DENSITY_NEIGHBOURS)


class Overlap:
    """A real manifold and generated features (N,D); `replicates` take counts (R,N) of how often each image was drawn."""

    def __init__(self, real: Manifold, features_ND: np.ndarray) -> None:
        self.real = real
        self.across_NM = squared(features_ND, real.features)
        self.own_NN = squared(features_ND, features_ND)

    def precision(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,) share of generated images inside the real manifold."""
        inside_N = (self.across_NM <= self.real.nearest[:, NEIGHBOURS - 1]).any(axis=1)
        return counts_RN @ inside_N / counts_RN.sum(axis=1)

    def recall(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,) share of real images inside the manifold of the generated ones that were drawn, each taken once.

        A resampled set holds about 63 % of the images, so replicates lie lower than the whole; intervals are centred.
        """
        return np.array([self._recall(np.flatnonzero(counts)) for counts in counts_RN])

    def _recall(self, drawn: np.ndarray) -> float:
        radii = nearest(self.own_NN[np.ix_(drawn, drawn)], NEIGHBOURS)[:, NEIGHBOURS - 1]
        return float((self.across_NM[drawn] <= radii[:, None]).any(axis=0).mean())

    def density(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,) mean number of real balls around a generated image, over k; above 1 where real images lie dense."""
        within_N = (self.across_NM <= self.real.nearest[:, DENSITY_NEIGHBOURS - 1]).sum(axis=1)
        return counts_RN @ within_N / counts_RN.sum(axis=1) / DENSITY_NEIGHBOURS

    def coverage(self, counts_RN: np.ndarray) -> np.ndarray:
        """(R,) share of real balls with a generated image in them."""
        within_NM = (self.across_NM <= self.real.nearest[:, DENSITY_NEIGHBOURS - 1]).astype(np.float32)
        return (((counts_RN > 0).astype(np.float32) @ within_NM) > 0).mean(axis=1)


def squared(a_ND: np.ndarray, b_MD: np.ndarray) -> np.ndarray:
    """(N,M) squared Euclidean distances, float64, never below 0 and exactly 0 between equal points."""
    from scipy.spatial.distance import cdist

    return cdist(a_ND, b_MD, "sqeuclidean")


def nearest(distances_NN: np.ndarray, k: int) -> np.ndarray:
    """(N,k) distances to the k nearest other points of one set, ascending; inf where there are fewer."""
    others = distances_NN.copy()
    np.fill_diagonal(others, np.inf)
    found = np.full((len(others), k), np.inf)
    some = min(k, others.shape[1])
    found[:, :some] = np.sort(np.partition(others, some - 1, axis=1)[:, :some], axis=1)
    return found
