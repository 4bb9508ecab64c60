"""The interval of a ratio of two things that took turns: signed ranks of the rounds' log ratios. Torch-free.

d_k = ln(above_k / below_k), one value a round. The order of turns is drawn anew every round, so what drifts between the
two turns of a round falls on either side by chance: without a true difference d is symmetric about 0 whatever the noise
looks like, and the signed-rank interval (Wilcoxon 1945; Hodges & Lehmann 1963; Hollander & Wolfe, "Nonparametric
Statistical Methods", 1999, §3.3) holds its level exactly. Below six rounds no signed-rank interval of 95 % exists:
Student's t of the same d is taken.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


def log_ratio_interval(d_K: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(centre, low, high) of `d_K`, K >= 2 rounds: the Hodges-Lehmann estimate, or the mean below six rounds."""
    rank = critical_rank(len(d_K), level)
    return _signed_rank(d_K, rank) if rank else _student(d_K, level)


def critical_rank(rounds: int, level: float = 0.95) -> int:
    """How many Walsh averages lie outside the interval at each end, plus one; 0 where no such interval exists.

    The largest c with P(T+ < c) <= (1 - level) / 2 under the null distribution of the signed-rank sum T+.
    """
    below = np.cumsum(_rank_sum_distribution(rounds))
    return int(np.searchsorted(below, (1 - level) / 2 + 1e-12, side="right"))


@lru_cache
def _rank_sum_distribution(rounds: int) -> np.ndarray:
    """P(T+ = 0, 1, ..., K(K+1)/2): every rank's sign is a fair coin."""
    p = np.zeros(rounds * (rounds + 1) // 2 + 1)
    p[0] = 1.0
    for rank in range(1, rounds + 1):
        p[rank:] = (p[rank:] + p[: len(p) - rank]) / 2
        p[:rank] /= 2
    return p


def _signed_rank(d_K: np.ndarray, rank: int) -> tuple[float, float, float]:
    """Median, `rank`-th smallest and `rank`-th largest of the Walsh averages (d_i + d_j) / 2, i <= j."""
    i, j = np.triu_indices(len(d_K))
    walsh = np.sort((d_K[i] + d_K[j]) / 2)
    return float(np.median(walsh)), float(walsh[rank - 1]), float(walsh[-rank])


def _student(d_K: np.ndarray, level: float) -> tuple[float, float, float]:
    from scipy.stats import t

    mean = float(d_K.mean())
    half = float(t.ppf((1 + level) / 2, len(d_K) - 1)) * float(d_K.std(ddof=1)) / math.sqrt(len(d_K))
    return mean, mean - half, mean + half
