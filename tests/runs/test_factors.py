"""The factors of the speed-up and their intervals, from samples whose ratios are known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize import rng
from optimize.measure import statistics
from optimize.measure.paired import log_ratio_interval
from optimize.measure.record import Measurement, Variant, speedup
from optimize.runs import summary


def measured(name: str, seconds: float, rounds: int = 12, noise: float = 0.0) -> Measurement:
    """One batch of images a round; the round's own slowness is shared by all rows."""
    shared = np.exp(0.2 * rng.normal((rounds,), "shared"))
    own = np.exp(noise * rng.normal((rounds,), name))
    times = [[float(seconds * s * o)] for s, o in zip(shared, own)]
    variant = Variant(key=f"{name}/openvino/4", folder="f", runner="openvino", batch=4)
    return Measurement(variant, bench="b", call_s=times, image_s=times)


def path(noise: float) -> list[tuple[str, Measurement]]:
    steps = {"": 8.0, "runner": 4.0, "solver": 1.0, "pruning": 0.5}
    return [(name, measured(name or "baseline", seconds, noise=noise)) for name, seconds in steps.items()]


def test_factors_without_noise_are_the_true_ones_within_what_two_processes_differ() -> None:
    found = path(noise=0.0)
    factors = summary._factors(found)
    assert factors == pytest.approx({"runner": 2.0, "solver": 4.0, "pruning": 2.0})
    for name, value in summary._factor_intervals(found, factors).items():
        width = math.exp(1.96 * statistics.PLACEMENT)
        assert value == pytest.approx({"ratio": factors[name], "low": factors[name] / width, "high": factors[name] * width})  # fmt: skip


def test_an_interval_is_that_of_the_signed_ranks_of_its_own_rounds() -> None:
    found = path(noise=0.05)
    factors = summary._factors(found)
    intervals = summary._factor_intervals(found, factors)
    before, after = (np.log([r[0] for r in m.image_s]) for _, m in found[1:3])
    centre, low, high = log_ratio_interval(before - after)
    extra = 1.96 * statistics.PLACEMENT
    assert math.log(intervals["solver"]["low"] / factors["solver"]) == pytest.approx(-math.hypot(centre - low, extra), rel=1e-3)  # fmt: skip
    assert math.log(intervals["solver"]["high"] / factors["solver"]) == pytest.approx(math.hypot(high - centre, extra), rel=1e-3)  # fmt: skip


def test_factors_multiply_to_the_whole_and_stand_within_their_intervals() -> None:
    found = path(noise=0.1)
    factors = summary._factors(found)
    assert math.prod(factors.values()) == pytest.approx(speedup(found[0][1], found[-1][1]).value)
    for name, value in summary._factor_intervals(found, factors).items():
        assert value["low"] < value["ratio"] == factors[name] < value["high"]


def test_noise_makes_the_interval_of_its_own_step_wide() -> None:
    def width(noise: float) -> float:
        found: Any = path(noise)
        value = summary._factor_intervals(found, summary._factors(found))["solver"]
        return float(math.log(value["high"] / value["low"]))

    assert width(0.1) > 2 * width(0.01) > 2 * width(0.0)


def test_a_single_measurement_has_no_factors(tmp_path: Path) -> None:
    alone = path(0.0)[:1]
    assert summary._factors(alone) == {} == summary._factor_intervals(alone, {})
