"""Gates and the search for the fair baseline: what passes, what is chosen, what is told about the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from optimize.diffusion.sampling import Guidance, Sampler
from optimize.diffusion.schedule import Schedule
from optimize.recipes.schema import FairConfig, Gates
from optimize.runs import fair
from optimize.runs.gates import check, hold, parity_gate, quality_gates

SCHEDULE = Schedule.from_json({"kind": "vp", "alpha_bar": [0.9999 - 0.0009 * i for i in range(1000)]})
BASELINE = Sampler(steps=50, clip=1.0, guidance=Guidance(cfg=0.5))
HALVES = {"value": 0.5}


def quality(fd: float, accuracy: tuple[float, ...] = (1.0, 1.0)) -> dict[str, Any]:
    return {"fd": {"value": fd}, "class_accuracy": {"per_class": list(accuracy), "min": min(accuracy)}}


def search(judged: Any, config: FairConfig | None = None) -> tuple[Sampler | None, list[dict[str, Any]]]:
    """The search with `judged(sampler)` as FD against a limit of 1.3 x 1 + 0.5."""

    def judge(sampler: Sampler) -> tuple[dict[str, Any], dict[str, Any]]:
        found = quality(judged(sampler))
        return found, quality_gates(Gates(), found, quality(1.0), HALVES)

    return fair.search(config or FairConfig(), BASELINE, SCHEDULE, judge)


def test_candidates_come_by_rising_evaluations_and_none_twice() -> None:
    found = list(fair.candidates(FairConfig(), BASELINE, SCHEDULE))
    costs = [s.nfe(SCHEDULE) for s in found]
    assert costs == sorted(costs) and costs[0] == 1 and costs[-1] <= BASELINE.nfe(SCHEDULE) == 100
    assert all(s.clip == 1.0 for s in found)
    assert len(found) == len(
        {(s.solver if s.steps > 1 else "", tuple(s.times(SCHEDULE)), s.guidance.cfg) for s in found}
    )
    assert sum(s.steps == 1 for s in found) <= 2 * len(FairConfig().spacings)  # one step is the same for every solver


def test_an_unguided_baseline_has_no_guided_candidates() -> None:
    plain = Sampler(steps=20)
    assert all(s.guidance.cfg is None for s in fair.candidates(FairConfig(), plain, SCHEDULE))


def test_the_fewest_evaluations_that_pass_win_and_among_them_the_lowest_fd() -> None:
    best = {"dpmpp_2m": 1.2, "ipndm": 1.1}
    chosen, rows = search(lambda s: best.get(s.solver, 9.0) if s.nfe(SCHEDULE) >= 4 else 9.0)
    assert chosen is not None and (chosen.solver, chosen.nfe(SCHEDULE)) == ("ipndm", 4)
    assert {r["nfe"] for r in rows} == {1, 2, 3, 4}  # nothing dearer is tried once one has passed
    assert [r["passes"] for r in rows if r["nfe"] < 4] == [False] * sum(r["nfe"] < 4 for r in rows)
    assert all("fd 9.000 over 1.800" in r["reason"] for r in rows if not r["passes"])


def test_where_nothing_passes_there_is_no_fair_configuration() -> None:
    chosen, rows = search(lambda s: 9.0, FairConfig(solvers=("ddim",), steps=(2, 4), spacings=("trailing",)))
    assert chosen is None and len(rows) == 4


def test_the_fd_limit_is_a_ratio_of_the_baselines_plus_the_noise_floor() -> None:
    limit = quality_gates(Gates(), quality(1.0), quality(2.0), HALVES)["fd"]["limit"]
    assert limit == pytest.approx(1.3 * 2.0 + 0.5)
    none = Gates.model_validate({"fd": {"max_ratio": 2.0, "slack": "none"}})
    assert quality_gates(none, quality(1.0), quality(2.0), HALVES)["fd"]["limit"] == pytest.approx(4.0)


def test_one_class_that_falls_fails_the_gate_whatever_the_others_do() -> None:
    gates = quality_gates(Gates(), quality(1.0, (1.0, 0.9)), quality(1.0, (0.8, 0.96)), HALVES)
    assert gates["fd"]["holds"] and not gates["class_accuracy"]["holds"] and not hold(gates)
    assert gates["class_accuracy"]["value"] == pytest.approx(0.06)


def test_images_without_classes_are_gated_by_distance_alone() -> None:
    plain = {"fd": {"value": 1.0}}
    assert set(quality_gates(Gates(), plain, plain, HALVES)) == {"fd"}


@pytest.mark.parametrize(("value", "holds"), [(None, False), (math.nan, False), (math.inf, False), (1.0, True)])
def test_what_is_missing_or_no_number_does_not_hold(value: float | None, holds: bool) -> None:
    assert check(value, 1.0)["holds"] is holds
    if value is not None and not math.isinf(value):
        assert check(value, 1.0, at_most=False)["holds"] is holds


@pytest.mark.parametrize(
    ("precision", "limit"),
    [("fp32", 1e-3), ("tf32", 1e-2), ("fp16", 1e-2), ("int8", 5e-2), ("int8+bf16", 5e-2), ("fp8+fp16", 5e-2)],
)
def test_parity_is_gated_by_the_rows_precision(precision: str, limit: float) -> None:
    assert parity_gate(Gates(), {"relative_l2": limit * 0.99}, precision)["holds"]
    assert not parity_gate(Gates(), {"relative_l2": limit * 1.01}, precision)["holds"]
    assert not parity_gate(Gates(), None, precision)["holds"]
