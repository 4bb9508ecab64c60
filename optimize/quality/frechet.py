"""Fréchet distance of two sets of features, taken as Gaussians (Heusel et al., arXiv 1706.08500, equation 6).

d² = |m_a - m_b|² + tr(A + B - 2 (A^{1/2} B A^{1/2})^{1/2}), in float64. The symmetric form needs eigenvalues of a
symmetric matrix only, and the root of A, the reference, is taken once for all replicates of a bootstrap.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


def frechet_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """d² between the Gaussians fitted to two feature sets (covariances with n - 1)."""
    return gaussian(b_MD).distance(gaussian(a_ND))


@dataclass(frozen=True)
class Gaussian:
    """mean (D,) and covariance (D,D), float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @cached_property
    def root(self) -> np.ndarray:
        """Symmetric square root of the covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T

    def distance(self, other: Gaussian) -> float:
        """d² to another; this one's root is kept, so keep the reference on the left."""
        inner = self.root @ other.covariance @ self.root
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh((inner + inner.T) / 2), 0)).sum()
        gap = self.mean - other.mean
        return float(max(gap @ gap + np.trace(self.covariance) + np.trace(other.covariance) - 2 * cross, 0.0))


def gaussian(features_ND: np.ndarray, counts_N: np.ndarray | None = None) -> Gaussian:
    """The Gaussian fitted to features, each taken `counts` times (once where not given)."""
    x = np.asarray(features_ND, dtype=np.float64)
    weights = np.ones(len(x)) if counts_N is None else counts_N
    total = weights.sum()
    mean = weights @ x / total
    centred = (x - mean) * np.sqrt(weights)[:, None]
    return Gaussian(mean, centred.T @ centred / (total - 1))


def resampled(reference: Gaussian, features_ND: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """(R,) d² of the reference to features drawn `counts` times. Fewer images than features go by their Gram matrix."""
    if len(features_ND) >= features_ND.shape[1]:
        return np.array([reference.distance(gaussian(features_ND, c)) for c in counts_RN])
    return _by_images(reference, np.asarray(features_ND, dtype=np.float64), counts_RN)


def _by_images(reference: Gaussian, x_ND: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """The same from N x N matrices: with y = sqrt(w / (n - 1)) (x - m), A^{1/2} B A^{1/2} has the eigenvalues of y A yᵀ.

    x A xᵀ is computed once; a replicate only weighs and centres it.
    """
    shifted = x_ND - x_ND.mean(axis=0)
    gram_NN, sizes_N = shifted @ reference.covariance @ shifted.T, (shifted**2).sum(axis=1)
    found = []
    for counts in counts_RN:
        drawn = np.flatnonzero(counts)
        w, n = counts[drawn], counts.sum()
        inner = gram_NN[np.ix_(drawn, drawn)]
        row = inner @ w / n
        weights = np.sqrt(w / (n - 1))
        centred = (inner - row - row[:, None] + w @ row / n) * weights * weights[:, None]
        cross = np.sqrt(np.maximum(np.linalg.eigvalsh((centred + centred.T) / 2), 0)).sum()
        mean = w @ shifted[drawn] / n
        trace = (w @ sizes_N[drawn] - n * mean @ mean) / (n - 1)
        gap = reference.mean - x_ND.mean(axis=0) - mean
        found.append(max(gap @ gap + np.trace(reference.covariance) + trace - 2 * cross, 0.0))
    return np.array(found)


def reference_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
    """d² by torchmetrics' FrechetInceptionDistance, given features instead of images."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Features(torch.nn.Module):
        num_features = a_ND.shape[1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    metric = FrechetInceptionDistance(feature=Features()).set_dtype(torch.float64)
    metric.update(torch.from_numpy(np.asarray(a_ND, dtype=np.float64)), real=True)
    metric.update(torch.from_numpy(np.asarray(b_MD, dtype=np.float64)), real=False)
    return max(float(metric.compute()), 0.0)
