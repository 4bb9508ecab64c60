"""Statistics of timings: percentiles, medians and ratios of medians with bootstrap intervals. Torch-free.

Timings come in rounds (variants take turns, so round k of all variants shares what the machine was doing then). The
bootstrap has two stages: rounds are drawn with replacement, then samples within each drawn round; a ratio draws the
same rounds on both sides, which cancels what they share (Davison & Hinkley, "Bootstrap methods", 1997, §3.8).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from optimize import rng
from optimize.errors import OptimizeError

NOISY_ABOVE = 0.10  # interquartile range over the median
Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Interval:
    """A value, the ends of its interval, and the number of samples it rests on."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """`{value, low, high, n}`."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.n}


def summary(rounds: Rounds, seed: int = 0) -> dict[str, Any]:
    """`{p50, p90, p99, mean, min, max, n, low, high, relative_iqr, noisy}` in the unit of the samples.

    low and high are the 95 % interval of the median; noisy is true where the interquartile range exceeds 10 % of it.
    """
    values, middle = _flat(rounds), median_interval(rounds, seed)
    spread = relative_iqr(values)
    return {
        **percentiles(values),
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "n": len(values),
        "low": middle.low,
        "high": middle.high,
        "relative_iqr": spread,
        "noisy": spread > NOISY_ABOVE,
    }


def percentiles(values: Sequence[float] | np.ndarray, which: Sequence[int] = (50, 90, 99)) -> dict[str, float]:
    """`{"p50": ..., ...}`, linear between order statistics."""
    return {f"p{q}": float(v) for q, v in zip(which, np.percentile(np.asarray(values, dtype=np.float64), which))}


def relative_iqr(values: Sequence[float] | np.ndarray) -> float:
    """Interquartile range over the median."""
    low, middle, high = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75))
    return float((high - low) / middle) if middle else 0.0


def median_interval(rounds: Rounds, seed: int = 0, level: float = 0.95, replicates: int = 2000) -> Interval:
    """Median of all samples and its two-stage bootstrap interval."""
    values = _flat(rounds)
    drawn = _medians(rounds, _picks(len(rounds), replicates, seed), "samples", seed)
    return Interval(float(np.median(values)), *_ends(drawn, level), len(values))


def ratio_interval(
    above: Rounds,
    below: Rounds,
    seed: int = 0,
    level: float = 0.95,
    replicates: int = 2000,
    paired: bool = True,
) -> Interval:
    """median(above) / median(below) with its interval; `paired` draws the same rounds on both sides.

    Pairing needs as many rounds above as below (rounds of one bench, in its order); n is the smaller sample count.
    """
    top, bottom = _flat(above), _flat(below)
    if paired and len(above) != len(below):
        raise OptimizeError(
            f"paired ratio: {len(above)} rounds above and {len(below)} below; give rounds of one bench, or paired=False"
        )
    picks_above = _picks(len(above), replicates, seed)
    picks_below = picks_above if paired else _picks(len(below), replicates, seed, "below")
    drawn = _medians(above, picks_above, "above", seed) / _medians(below, picks_below, "below", seed)
    return Interval(float(np.median(top) / np.median(bottom)), *_ends(drawn, level), min(len(top), len(bottom)))


def _flat(rounds: Rounds) -> np.ndarray:
    if not rounds or not all(len(r) for r in rounds):
        raise OptimizeError("statistics of timings: every round needs at least one sample, and there must be a round")
    values = np.concatenate([np.asarray(r, dtype=np.float64) for r in rounds])
    if not np.isfinite(values).all():
        raise OptimizeError("statistics of timings: a sample is not finite")
    return values


def _ends(drawn: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)


def _picks(rounds: int, replicates: int, seed: int, tag: str = "rounds") -> np.ndarray:
    """(replicates, rounds) indices of the rounds drawn."""
    return rng.integers(0, rounds, (replicates, rounds), "statistics", tag, seed)


def _medians(rounds: Rounds, picks_RK: np.ndarray, tag: str, seed: int) -> np.ndarray:
    """(R,) medians of the samples drawn within the picked rounds; a round of n samples gives n draws."""
    sizes = np.array([len(r) for r in rounds])
    width = int(sizes.max())
    table = np.array([[*r, *[np.inf] * (width - len(r))] for r in rounds], dtype=np.float64)
    drawn_sizes = sizes[picks_RK][..., None]  # (R,K,1)
    inner = (rng.uniform((*picks_RK.shape, width), "statistics", tag, seed) * drawn_sizes).astype(np.int64)
    values = np.where(np.arange(width) < drawn_sizes, table[picks_RK[..., None], inner], np.inf)
    ordered = np.sort(values.reshape(len(picks_RK), -1), axis=1)
    counts = drawn_sizes.sum(axis=(1, 2))
    rows = np.arange(len(ordered))
    return (ordered[rows, (counts - 1) // 2] + ordered[rows, counts // 2]) / 2
