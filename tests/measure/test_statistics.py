"""Statistics of timings: percentiles, coverage of intervals, pairing by round, noise that is said; timing and memory."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest

from optimize import rng
from optimize.errors import OptimizeError
from optimize.measure import statistics, timing
from optimize.measure.record import Measurement, Variant, paired, speedup


def rounds_of(median_s: float, name: str, trial: int, drift: np.ndarray, samples: int = 10) -> list[list[float]]:
    """Log-normal samples around a median, each round moved by its drift."""
    noise = rng.normal((len(drift), samples), name, trial).astype(np.float64)
    return (median_s * np.exp(drift[:, None] + 0.05 * noise)).tolist()


def test_percentiles_are_linear_between_samples():
    assert statistics.percentiles([1, 2, 3, 4, 5]) == pytest.approx({"p50": 3.0, "p90": 4.6, "p95": 4.8, "p99": 4.96})


def test_summary_of_one_sample_is_that_sample():
    found = statistics.summary([[2.0]])
    assert (found["p50"], found["p99"], found["low"], found["high"], found["n"]) == (2.0, 2.0, 2.0, 2.0, 1)
    assert not found["noisy"]


def test_noise_above_ten_percent_is_said():
    assert statistics.summary([[1.0, 1.0, 1.5, 1.5]])["noisy"] is True
    assert statistics.summary([[1.0, 1.01, 1.02, 1.03]])["noisy"] is False


def test_intervals_repeat_with_their_seed():
    rounds = rounds_of(1.0, "seeded", 0, np.zeros(7))
    assert statistics.median_interval(rounds, seed=5) == statistics.median_interval(rounds, seed=5)


def test_median_interval_covers_the_true_median_about_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        found = statistics.median_interval(rounds_of(1.0, "median", trial, np.zeros(7)), seed=trial, replicates=400)
        hits += found.low <= 1.0 <= found.high
    assert 0.90 <= hits / 200 <= 0.995


def test_paired_ratio_covers_the_truth_although_the_machine_drifts_between_rounds():
    hits, paired_width, unpaired_width = 0, 0.0, 0.0
    for trial in range(200):
        drift = 0.2 * rng.normal((7,), "drift", trial).astype(np.float64)
        a, b = rounds_of(2.0, "above", trial, drift), rounds_of(1.0, "below", trial, drift)
        paired = statistics.ratio_interval(a, b, seed=trial, replicates=400)
        unpaired = statistics.ratio_interval(a, b, seed=trial, replicates=400, paired=False)
        hits += paired.low <= 2.0 <= paired.high
        paired_width += paired.high - paired.low
        unpaired_width += unpaired.high - unpaired.low
    assert hits / 200 >= 0.90
    assert paired_width < 0.6 * unpaired_width


def test_rounds_of_unlike_length_and_of_one_sample_are_taken():
    found = statistics.ratio_interval([[4.0], [4.0], [4.0]], [[2.0, 2.0], [2.0], [2.0, 2.0, 2.0]])
    assert (found.value, found.low, found.high, found.n) == (2.0, 2.0, 2.0, 3)


@pytest.mark.parametrize("rounds", [[], [[1.0], []], [[float("nan")]]])
def test_missing_or_infinite_samples_are_refused(rounds: list[list[float]]):
    with pytest.raises(OptimizeError, match="statistics of timings"):
        statistics.summary(rounds)


def test_pairing_needs_as_many_rounds_on_both_sides():
    with pytest.raises(OptimizeError, match="2 rounds above and 1 below"):
        statistics.ratio_interval([[1.0], [1.0]], [[1.0]])


def measured(key: str, times: list[list[float]], batch: int = 1, **more: object) -> Measurement:
    variant = Variant(key=key, folder="x", runner="torch", batch=batch)
    return Measurement(variant, image_s=times, call_s=times, bench="b", **more)  # type: ignore[arg-type]


def test_speedup_is_per_image():
    slow, fast = measured("slow", [[2.0], [2.0]], batch=1), measured("fast", [[4.0], [4.0]], batch=16)
    assert speedup(slow, fast).value == 8.0
    assert fast.images_per_s().value == 4.0


def test_a_ratio_pairs_the_rounds_that_both_took_and_other_figures_leave_out_those_sat_out():
    slow = measured("slow", [[8.0], [], [40.0], [], [8.0], []])
    fast = measured("fast", [[1.0], [99.0], [5.0], [99.0], [1.0], [99.0]])
    ratio = speedup(slow, fast, placement=0)
    assert paired(slow, fast) and (ratio.low, ratio.high, ratio.n) == (pytest.approx(8.0), pytest.approx(8.0), 3)
    assert slow.image_latency()["n"] == 3 and Measurement.from_json(slow.to_json()) == slow
    other = measured("other", [[], [2.0], [], [2.0], [], [2.0]])
    assert not paired(slow, other) and speedup(slow, other).value == 4.0  # no round in common: medians


def test_speedup_refuses_unlike_environments_and_failed_rows():
    here, there = (
        measured("a", [[1.0]], environment={"cpu": "x"}),
        measured("b", [[1.0]], environment={"cpu": "y"}),
    )
    with pytest.raises(OptimizeError, match=r"b against a: environment differ \(cpu: x and y\)"):
        speedup(here, there)
    failed = measured("c", [], status="failed", reason="no such runner")
    with pytest.raises(OptimizeError, match="c: not measured \\(no such runner\\)"):
        failed.call_latency()


def test_a_measurement_comes_back_from_json_as_it_was():
    m = measured("a", [[1.0, 1.1], [1.2]], environment={"cpu": "x"})
    value = m.to_json()
    assert Measurement.from_json(value) == m
    assert value["derived"]["image_latency_s"]["n"] == 3


def test_samples_stop_at_the_count_or_the_limit_but_take_one():
    calls: list[int] = []
    assert len(timing.samples(lambda: calls.append(1), lambda: None, 5, 10.0)) == 5
    slow = timing.samples(lambda: time.sleep(0.02), lambda: None, 5, 0.0)
    assert len(slow) == 1 and slow[0] >= 0.02


def test_warm_up_ends_when_two_windows_agree():
    waits = iter([0.02, 0.01] + [0.002] * 100)
    found = timing.warm_up(lambda: time.sleep(next(waits)), lambda: None, limit_s=5.0, window=3, tolerance=0.5)
    assert found["stable"] and 6 <= found["calls"] < 30


def test_warm_up_says_when_it_ran_out_of_time():
    found = timing.warm_up(lambda: time.sleep(0.01), lambda: None, limit_s=0.02, window=50)
    assert not found["stable"] and found["calls"] >= 1


def test_peak_memory_sees_what_was_freed_and_starts_again():
    """In a process of its own: a peak is the process's, and earlier tests may have set a higher one."""
    code = """
import numpy as np
from optimize.measure import memory
before = memory.peak_bytes()
np.ones(8_000_000)  # 64 MB, freed at once
assert memory.peak_bytes() - before > 50e6
if memory.reset_peak():
    assert memory.peak_bytes() < memory.resident_bytes() + 30e6
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_energy_and_throttling_are_read_off_a_measurement():
    m = measured("a", [[1.0]], energy={"joules": 12.0, "images": 8, "by": "x"})
    assert m.energy_j == 1.5 and m.throttled == []
    absent = measured("a", [[1.0]], energy={"reason": "nothing counts"}, conditions=[{"throttled": ["processor hot"]}])
    assert absent.energy_j is None and absent.throttled == ["processor hot"]
    assert absent.to_json()["derived"]["energy_j"] is None


def test_noise_is_that_of_calls_where_no_images_were_timed():
    m = measured("a", [[1.0, 1.0, 1.5, 1.5]])
    quiet = Measurement(m.variant, call_s=[[1.0, 1.0]], image_s=[])
    assert m.noisy and not quiet.noisy
