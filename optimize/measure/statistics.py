"""Statistics of timings: percentiles, medians and ratios of medians with intervals. Torch-free.

Timings come in rounds (variants take turns, so round k of all variants shares what the machine was doing then). A ratio
within one bench pairs the rounds (see `paired`), which cancels what they share. The median of one variant, and a ratio
of two benches, are bootstrapped in two stages: rounds are drawn with replacement, then samples within each drawn round
(Davison & Hinkley, "Bootstrap methods", 1997, §3.8).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from optimize import rng
from optimize.errors import OptimizeError
from optimize.measure.paired import log_ratio_interval

PERCENTILES = (50, 90, 95, 99)
# Standard deviation of the ln ratio between two processes of one and the same program: where their memory and threads
# lie differs, and stays as it is while they live, so no number of rounds averages it away. benchmarks/a_a.py, which
# starts processes anew, prints it as "between starts": 0.3 % over ten starts on two quiet virtual cores, 0.6 to 0.9 % in
# a few on busy ones. With 0.6 % an artifact was found to differ from itself in 3.5 % of 200 comparisons, without it in 13 %.
PLACEMENT = 0.006
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
    """`{p50, p90, p95, p99, mean, min, max, n, low, high, relative_iqr, noisy}` in the unit of the samples.

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


def percentiles(values: Sequence[float] | np.ndarray, which: Sequence[int] = PERCENTILES) -> dict[str, float]:
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
    """How many times longer `above` takes than `below`, with its interval; n is the smaller sample count.

    `paired`: the centre of the rounds' own ratios of medians (see `paired.log_ratio_interval`), which what all variants
    of a round share does not touch, so it may differ a little from the ratio of the overall medians. It needs as many
    rounds above as below (rounds of one bench, in its order). One single round, or without pairing: the ratio of the
    overall medians and its bootstrap interval.
    """
    top, bottom = _flat(above), _flat(below)
    n = min(len(top), len(bottom))
    if paired and len(above) != len(below):
        raise OptimizeError(
            f"paired ratio: {len(above)} rounds above and {len(below)} below; give rounds of one bench, or paired=False"
        )
    if paired and len(above) > 1:
        logs = log_ratio_interval(np.log(_by_round(above) / _by_round(below)), level)
        value, low, high = (float(np.exp(x)) for x in logs)
        return Interval(value, low, high, n)
    picks = [_picks(len(rounds), replicates, seed, tag) for rounds, tag in ((above, "rounds"), (below, "below"))]
    drawn = _medians(above, picks[0], "above", seed) / _medians(below, picks[1], "below", seed)
    return Interval(float(np.median(top) / np.median(bottom)), *_ends(drawn, level), n)


def widened(ratio: Interval, spread: float, level: float = 0.95) -> Interval:
    """The interval of a ratio with an independent normal deviation of its logarithm, of this standard deviation, added
    to its half widths in quadrature."""
    extra = NormalDist().inv_cdf((1 + level) / 2) * spread
    down, up = (math.hypot(math.log(a / b), extra) for a, b in ((ratio.value, ratio.low), (ratio.high, ratio.value)))
    return Interval(ratio.value, ratio.value * math.exp(-down), ratio.value * math.exp(up), ratio.n)


def _by_round(rounds: Rounds) -> np.ndarray:
    """(K,) median of each round."""
    return np.array([np.median(r) for r in rounds])


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
