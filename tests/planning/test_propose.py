"""The choice for a budget: least predicted loss that meets it, the nearest where none does, and what is then needed."""

from __future__ import annotations

import pytest

from optimize.planning.forecast import Candidate, Forecast
from optimize.planning.propose import (
    Budget,
    Option,
    _up,
    candidates,
    fewer_steps,
    loss_text,
    losses,
    propose,
    recipe_of,
    worthwhile,
)

UNTOUCHED = Candidate()
EIGHT, TWO, ONE = (Candidate(nfe=n) for n in (8, 2, 1))


def option(candidate: Candidate, ms: float, mb: float = 10.0, spread: float = 1.5) -> Option:
    seconds = ms / 1e3
    found = Forecast(
        candidate, 1, candidate.nfe or 50, seconds, seconds / spread, seconds * spread, 1, int(mb * 1e6), "rates"
    )
    return Option(found, "openvino", "openvino", *losses(candidate))


OPTIONS = [option(UNTOUCHED, 100), option(EIGHT, 16), option(TWO, 4), option(ONE, 2)]


def test_losses_are_the_published_ones() -> None:
    assert losses(UNTOUCHED) == (0, 0) == losses(EIGHT)
    assert losses(TWO) == pytest.approx((0.25, 0.75))
    assert losses(Candidate(share=0.5)) == pytest.approx((0.24, 0.35))
    assert losses(Candidate(nfe=2, share=0.5, format="int8")) == pytest.approx(
        (1.25 * 1.24 * 1.005 - 1, 1.75 * 1.35 * 1.05 - 1)
    )
    assert loss_text(0, 0) == "no loss of FID is published for as much"
    assert loss_text(0.25, 0.75) == "FID 1.25 times the untouched model's (at worst 1.75)"


@pytest.mark.parametrize(
    ("budget", "chosen", "certain"),
    [
        (Budget(latency_ms=200), UNTOUCHED, True),
        (Budget(latency_ms=120), UNTOUCHED, False),
        (Budget(latency_ms=50), EIGHT, True),
        (Budget(latency_ms=5), TWO, False),
        (Budget(latency_ms=3), ONE, True),
        (Budget(), EIGHT, True),  # the fastest within a loss of 0.3 is two calls: see below
    ],
)
def test_the_least_loss_that_meets_the_budget_is_proposed(budget: Budget, chosen: Candidate, certain: bool) -> None:
    found = propose(OPTIONS if not budget.empty else OPTIONS[:2], budget)
    assert found.option is not None and found.option.found.candidate == chosen
    assert (found.meets, found.certain, found.needed) == (True, certain, ())


def test_what_gains_less_than_its_own_interval_is_not_proposed() -> None:
    """28.8 ms against 29.0: a share of the MACs for 0.7 %."""
    thin = option(Candidate(share=0.2), 28.8)
    for budget in (Budget(), Budget(latency_ms=28.9), Budget(latency_ms=28.9, max_quality_loss=1)):
        found = propose([option(UNTOUCHED, 29.0), thin], budget)
        assert found.option is not None and found.option.found.candidate == UNTOUCHED
    assert not propose([option(UNTOUCHED, 29.0), thin], Budget(latency_ms=28.9)).meets
    sure = option(Candidate(share=0.2), 28.8, spread=1.001)
    assert propose([option(UNTOUCHED, 29.0), sure], Budget(latency_ms=28.9)).option is sure


def test_every_change_of_an_option_must_pay() -> None:
    both = option(Candidate(nfe=2, share=0.5), 3)
    options = [option(UNTOUCHED, 100), option(TWO, 4), option(Candidate(share=0.5), 60), both]
    assert {o.found.candidate for o in worthwhile(options, Budget())} == {UNTOUCHED, TWO, Candidate(share=0.5)}


def test_what_a_size_asks_for_need_not_be_faster() -> None:
    small = option(Candidate(share=0.5), 99, mb=5)
    found = propose([option(UNTOUCHED, 100), small], Budget(size_mb=6))
    assert found.option is small and found.meets


def test_without_training_comes_before_with_it() -> None:
    """A student of eight evaluations loses nothing that is published, and takes training all the same."""
    steps = option(Candidate(steps=20), 40)
    options = [option(UNTOUCHED, 100), steps, option(EIGHT, 16)]
    assert propose(options, Budget(latency_ms=50)).option is steps
    slower = propose(options, Budget(latency_ms=20))
    assert slower.option is not None and slower.option.found.candidate == EIGHT
    untouched = propose(options, Budget(latency_ms=200))
    assert untouched.option is not None and untouched.option.found.candidate == UNTOUCHED


def test_without_a_budget_the_simplest_that_the_fastest_does_not_beat_is_proposed() -> None:
    options = [option(UNTOUCHED, 100), option(EIGHT, 5.5), option(TWO, 4)]
    found = propose(options, Budget())
    assert found.option is not None and found.option.found.candidate == EIGHT  # 5.5 lies within 2.7 to 6


@pytest.mark.parametrize(
    ("today", "offered"), [(1000, (20,)), (50, (20,)), (20, (10,)), (11, (10,)), (10, ()), (2, ())]
)
def test_fewer_steps_are_offered_where_there_are_many(today: int, offered: tuple[int, ...]) -> None:
    assert fewer_steps(today) == offered


def test_a_recipe_of_fewer_steps_trains_nothing_and_searches_for_what_passes() -> None:
    chosen = option(Candidate(steps=20), 40)
    made = recipe_of(chosen, {"sampler": {"steps": 50}}, "x", "cpu", Budget(), on_gpu=False)
    assert made["passes"] == [] and made["sampler"] == {"steps": 50}
    assert made["fair"] == {"solvers": ["dpmpp_2m"], "steps": [20]}
    own = recipe_of(chosen, {"fair": {"steps": [4]}}, "x", "cpu", Budget(), on_gpu=False)
    assert own["fair"] == {"steps": [4]}


def test_without_a_budget_the_fastest_within_the_usual_loss_is_proposed() -> None:
    found = propose(OPTIONS, Budget())
    assert found.option is not None and found.option.found.candidate == TWO
    stricter = propose(OPTIONS, Budget(max_quality_loss=0.1))
    assert stricter.option is not None and stricter.option.found.candidate == EIGHT


def test_a_budget_out_of_reach_gets_the_nearest_and_what_would_be_needed() -> None:
    found = propose(OPTIONS, Budget(latency_ms=1))
    assert found.option is not None and found.option.found.candidate == ONE and not found.meets
    assert found.needed == ("latency 2 ms is 2 times the budget: a device that much faster, or --latency-ms 2",)


def test_a_budget_that_only_the_quality_limit_forbids_says_which_limit_would_do() -> None:
    found = propose(OPTIONS, Budget(latency_ms=3, max_quality_loss=0.5))
    assert found.option is not None and found.option.found.candidate == TWO and not found.meets
    assert any("or --max-quality-loss 1.7, which is predicted to be enough" in n for n in found.needed)


def test_a_size_is_part_of_the_budget() -> None:
    small = option(Candidate(format="int8"), 100, mb=3)
    found = propose([*OPTIONS, small], Budget(size_mb=4))
    assert found.option is small and found.meets
    found = propose(OPTIONS, Budget(size_mb=4))
    assert found.needed == ("size 10 MB is over the budget: --size-mb 10",)


def test_nothing_to_choose_from_is_said() -> None:
    found = propose([], Budget(latency_ms=3))
    assert found.option is None and found.needed == ("there is nothing that works on this target to choose from",)


def test_candidates_fold_the_guidance_and_shorten_the_sampling() -> None:
    made = candidates(100, True, ("fp16",))
    assert {c.nfe for c in made} == {None, 50, 16, 8, 4, 2, 1}
    assert {c.nfe for c in candidates(4, False, ("fp16",))} == {None, 2, 1}
    assert {c.share for c in made} == {0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}
    assert 500 not in {c.nfe for c in candidates(1000, True, ("fp16",))}  # more calls than a student is taught


def test_a_recipe_has_the_passes_in_their_order_with_the_settings_of_its_base() -> None:
    base = {
        "name": "x",
        "seed": 3,
        "source": {"path": "m"},
        "passes": [{"distill": {"nfe": 2, "steps": 7}}, {"prune": {"budget": {"macs": 0.2}, "batch": 5}}],
        "gates": {"class_accuracy": {"max_drop": 0.1}},
        "benchmark": {"rounds": 2},
    }
    chosen = option(Candidate(nfe=4, share=0.6, format="int8"), 3)
    made = recipe_of(chosen, base, "x-a10", "a10", Budget(max_quality_loss=0.5), on_gpu=True)
    assert [next(iter(p)) for p in made["passes"]] == ["prune", "recover", "distill", "quantize"]
    assert made["passes"][0]["prune"] == {"budget": {"macs": 0.6}, "batch": 5, "max_share": 0.6, "round_to": 16}
    assert made["passes"][2]["distill"] == {"nfe": 4, "steps": 7}
    assert made["gates"] == {"class_accuracy": {"max_drop": 0.1}, "fd": {"max_ratio": 1.5}}
    assert made["benchmark"] == {"rounds": 2, "batch": [1], "runners": ["torch", "openvino"]}
    assert (made["seed"], made["target"], made["name"]) == (3, "a10", "x-a10")
    assert recipe_of(option(UNTOUCHED, 1), base, "y", "cpu", Budget(), on_gpu=False)["passes"] == []


@pytest.mark.parametrize(
    ("value", "text"), [(2.0, "2"), (2.01, "2.1"), (0.0123, "0.013"), (99.5, "1e+02"), (1234.5, "1235")]
)
def test_limits_are_rounded_up_to_two_figures(value: float, text: str) -> None:
    assert _up(value) == text
