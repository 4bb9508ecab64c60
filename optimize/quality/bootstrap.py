"""Bootstrap over generated images: weights, paired differences, intervals centred on the point value.

A replicate is a vector of counts: how often each image was drawn. Figures that take weights never gather images. Two
variants drawn with the same seed share the counts, image by image, so the noise they share cancels in a difference.
Where images have classes each class is drawn within itself, since the number of images of a class is fixed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from optimize import rng

Figure = dict[str, Any]


def counts(n: int, replicates: int, seed: int, labels: np.ndarray | None = None) -> np.ndarray:
    """(R, n) float64 counts; each row sums to n, and to the class's size within every class of `labels` (n,)."""
    drawn = np.zeros((replicates, n))
    groups = [np.arange(n)] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for group in groups:
        key = ("bootstrap", seed, n, int(group[0]))
        drawn[:, group] = rng.generator(*key).multinomial(len(group), np.full(len(group), 1 / len(group)), replicates)
    return drawn


def figure(
    value: float,
    replicates_R: np.ndarray,
    n: int,
    level: float = 0.95,
    least: float = -np.inf,
    most: float = np.inf,
) -> Figure:
    """`{value, low, high, n}`: the spread of the replicates around their mean, laid around the value.

    A resampled set repeats images, which moves figures such as FD up on average; centring takes that move out.
    The ends are kept within [least, most].
    """
    low, high = np.quantile(replicates_R - replicates_R.mean(), ((1 - level) / 2, (1 + level) / 2))
    low, high = min(low, 0.0), max(high, 0.0)  # equal replicates leave only the rounding of their mean
    return {
        "value": float(value),
        "low": float(np.clip(value + low, least, most)),
        "high": float(np.clip(value + high, least, most)),
        "n": int(n),
    }


def difference(value: float, other: float, a_R: np.ndarray, b_R: np.ndarray, n: int, level: float = 0.95) -> Figure:
    """`figure` of value - other from replicates that share their counts."""
    return figure(value - other, a_R - b_R, n, level)
