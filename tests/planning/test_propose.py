"""The choice for a budget: least predicted loss that meets it, the nearest where none does, and what is then needed."""

from __future__ import annotations

import pytest

from optimize.planning.forecast import Candidate, Forecast
from optimize.planning.propose import Budget, Option, _up, candidates, loss_text, losses, propose, recipe_of

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
