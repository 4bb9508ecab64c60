"""Paired ratios: exact against scipy, calibrated under drift, autocorrelation and heavy tails, and able to see 3 %."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from optimize import rng
from optimize.measure.paired import critical_rank, log_ratio_interval
from optimize.measure.record import Measurement, Variant, speedup
from optimize.measure.statistics import PLACEMENT, Interval, ratio_interval, widened


def test_critical_ranks_are_those_of_the_published_table():
    """Two-sided 5 % points of Wilcoxon's T, e.g. Hollander & Wolfe, table A.4; a rank is one more."""
    table = {6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 15: 25, 20: 52}
    assert {n: critical_rank(n) - 1 for n in table} == table
    assert [critical_rank(n) for n in (2, 3, 4, 5)] == [0, 0, 0, 0]  # no such interval exists


@pytest.mark.parametrize("rounds", [6, 7, 12, 25])
def test_the_interval_excludes_zero_exactly_where_the_signed_rank_test_rejects(rounds: int):
    seen = set()
    for trial in range(60):
        d = rng.normal((rounds,), "wilcoxon", rounds, trial).astype(np.float64) + 0.6
        centre, low, high = log_ratio_interval(d)
        assert low <= centre <= high
        rejects = stats.wilcoxon(d, method="exact").pvalue <= 0.05
        assert rejects == (not low <= 0 <= high)
        seen.add(rejects)
    assert seen == {True, False}


def test_few_rounds_take_students_t():
    d = np.array([0.1, 0.2, 0.15, 0.05])
    expected = stats.ttest_1samp(d, 0).confidence_interval(0.95)
    assert log_ratio_interval(d) == pytest.approx((0.125, expected.low, expected.high))


def machine(turns: int, trial: int) -> np.ndarray:
    """What a machine does to successive turns: drift, autocorrelated load (AR 0.97), and now and then a preemption."""
    white = rng.normal((turns,), "machine", trial).astype(np.float64)
    state = np.zeros(turns)
    for i in range(1, turns):
        state[i] = 0.97 * state[i - 1] + 0.02 * white[i]
    spikes = (rng.uniform((turns,), "spikes", trial) < 0.08) * rng.uniform((turns,), "height", trial)
    return state + spikes + 0.1 * np.linspace(0, 1, turns)


def timed(
    trial: int, rounds: int, slower: float, interleaved: bool = True
) -> tuple[list[list[float]], list[list[float]]]:
    """Rounds of two variants that take turns, the second slower by a share; 1 % noise of their own."""
    state, own = machine(2 * rounds, trial), 0.01 * rng.normal((2, rounds), "own", trial).astype(np.float64)
    found: tuple[list[list[float]], list[list[float]]] = ([], [])
    for k in range(rounds):
        order = rng.generator("order", trial, k).permutation(2).tolist()
        for place, which in enumerate(order):
            at = 2 * k + place if interleaved else which * rounds + k
            found[which].append([float(np.exp(state[at] + own[which, k]) * (1 + slower * which))])
    return found


def claims(slower: float, rounds: int, trials: int, interleaved: bool = True) -> float:
    hits = 0
    for trial in range(trials):
        first, second = timed(trial, rounds, slower, interleaved)
        found = ratio_interval(second, first)
        hits += not found.low <= 1 <= found.high
    return hits / trials


@pytest.mark.parametrize("rounds", [4, 7, 20])
def test_an_artifact_against_itself_is_claimed_to_differ_in_at_most_one_of_twenty(rounds: int):
    n = 600
    share = claims(0.0, rounds, n)
    assert stats.binomtest(round(share * n), n).proportion_ci(0.95).low <= 0.05, share


def test_three_per_cent_are_found_in_nine_of_ten_under_the_same_noise():
    assert claims(0.03, 40, 200) >= 0.90


def test_without_interleaving_the_same_noise_is_taken_for_differences():
    assert claims(0.0, 20, 200, interleaved=False) > 0.3


def test_what_all_variants_of_a_round_share_does_not_touch_a_paired_ratio():
    shared = [1.0, 1.0, 1.0, 5.0, 5.0, 7.0, 9.0]
    found = ratio_interval([[2 * x] for x in shared], [[x] for x in shared])
    assert found.value == pytest.approx(2.0) and found.low == pytest.approx(2.0) == found.high


def test_one_round_is_bootstrapped():
    found = ratio_interval([[2.0, 2.2, 2.1]], [[1.0, 1.1, 1.05]])
    assert found.value == 2.0 and 1.8 < found.low < 2.0 < found.high < 2.3


def test_a_spread_between_processes_widens_in_quadrature_of_logarithms():
    found = widened(Interval(2.0, 2.0 / 1.03, 2.0 * 1.04, 9), 0.01)
    z = stats.norm.ppf(0.975)
    assert np.log(found.high / 2) == pytest.approx(np.hypot(np.log(1.04), z * 0.01))
    assert np.log(found.low / 2) == pytest.approx(-np.hypot(np.log(1.03), z * 0.01))
    assert (found.value, found.n) == (2.0, 9)
    same = widened(found, 0.0)
    assert (same.low, same.high) == pytest.approx((found.low, found.high))


def measured(key: str, rounds: list[list[float]]) -> Measurement:
    return Measurement(Variant(key=key, folder="x", runner="x"), bench="b", call_s=rounds, image_s=rounds)


def test_processes_of_one_program_that_differ_for_good_are_not_claimed_to_be_two_programs():
    """No number of rounds averages away where a process's memory lies: the interval of the rounds alone is fooled."""
    n, claimed, bare = 200, 0, 0
    for trial in range(n):
        place = 1 + PLACEMENT * float(rng.normal((1,), "place", trial)[0])
        noise = 0.01 * rng.normal((2, 60), "quiet", trial).astype(np.float64)
        rounds = [[[float(s * np.exp(x))] for x in line] for s, line in zip((1.0, place), noise)]
        a, b = measured("a", rounds[0]), measured("b", rounds[1])
        claimed += not speedup(a, b).low <= 1 <= speedup(a, b).high
        found = speedup(a, b, placement=0.0)
        bare += not found.low <= 1 <= found.high
    assert stats.binomtest(claimed, n).proportion_ci(0.95).low <= 0.05 and bare > 0.4 * n


def test_a_row_against_itself_is_exactly_one():
    a = measured("a", [[1.0], [1.1], [0.9]])
    found = speedup(a, a)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
