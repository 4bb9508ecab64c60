"""Advice: free things first, each kind by its gain, nothing below the interval of its own prediction."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from optimize.diffusion.sampling import Guidance, Sampler
from optimize.diffusion.schedule import Schedule
from optimize.planning.advice import advise
from optimize.planning.forecast import Candidate, Forecast
from optimize.planning.subject import Subject

SCHEDULE = Schedule(alpha_bar=tuple((i + 1) / 1000 for i in reversed(range(1000))))
SUBJECT = Subject("m", "baseline", lambda batch: [], Sampler(steps=50, guidance=Guidance(cfg=1.0)), SCHEDULE)
SPEED = {"fp32": 1.0, "bf16": 3.0, "fp16": 3.2, "int8": 6.0}


def foretold(spread: float = 1.3, pruned: float = 1.5, overhead: float = 0.0) -> Any:
    """A millisecond a call in FP32, and `overhead` seconds of each batch of images."""

    def foretell(c: Candidate, batch: int) -> Forecast:
        calls = c.nfe or (2 * c.steps if c.steps else 100)
        seconds = overhead + batch * calls * 1e-3 / SPEED[c.format] / (pruned if c.share else 1)
        return Forecast(c, batch, calls, seconds, seconds / spread, seconds * spread, 1, 1, "rates")

    return foretell


def asked(
    formats: tuple[str, ...] = ("fp32",), subject: Subject = SUBJECT, measured: Any = (), **how: Any
) -> dict[str, Any]:
    return advise(subject, 1, formats, foretold(**how), measured)


def test_steps_and_solver_come_first_and_say_that_their_quality_is_not_known() -> None:
    first, *rest = asked()["proposed"]
    assert (first["kind"], first["what"]) == ("free", "20 steps of dpmpp_2m instead of 50 of ddim")
    assert first["gain"] == pytest.approx(2.5) and first["risk"] == "quality unknown until the gates judge it"
    assert [a["kind"] for a in rest] == ["pass", "pass"]


def test_free_things_come_before_passes_and_each_kind_by_gain() -> None:
    found = asked(("fp32", "bf16", "fp16", "int8"), overhead=0.05)["proposed"]
    kinds = [a["kind"] for a in found]
    assert kinds == sorted(kinds) and {"free", "pass"} == set(kinds)
    for kind in ("free", "pass"):
        gains = [a["gain"] for a in found if a["kind"] == kind]
        assert gains == sorted(gains, reverse=True)
    assert any(a["what"] == "FP16 instead of FP32" for a in found)


@pytest.mark.parametrize("spread", [1.01, 1.3, 2.0, 5.0])
def test_nothing_is_proposed_below_its_interval(spread: float) -> None:
    found = asked(("fp32", "bf16", "int8"), spread=spread, overhead=0.02)
    for one in found["proposed"]:
        assert one["high_ms"] < one["before_ms"] and one["gain"] > spread * 0.999
    for one in found["unproven"]:
        assert one["high_ms"] >= one["before_ms"] and one["gain"] > 1


def test_a_pruning_that_gains_next_to_nothing_is_named_among_what_is_not_proposed() -> None:
    found = asked(pruned=1.007)
    assert not any("prune" in a["what"] for a in found["proposed"])
    assert [a["what"] for a in found["unproven"]] == ["prune 40 % of the MACs"]


def test_more_images_at_once_are_proposed_where_a_batch_has_a_price_of_its_own() -> None:
    (batch,) = [a for a in asked(overhead=0.2)["proposed"] if "at once" in a["what"]]
    assert batch["what"] == "16 images at once instead of 1" and batch["risk"] == "the same images"
    assert batch["gain"] == pytest.approx(0.3 / (0.1 + 0.2 / 16))
    assert not any("at once" in a["what"] for a in asked()["proposed"])


def test_distilling_is_held_against_fewer_steps_and_not_against_today() -> None:
    (student,) = [a for a in asked()["proposed"] if "distill" in a["what"]]
    assert student["what"] == "distill to 2 network evaluations instead of 100"
    assert student["before_ms"] == pytest.approx(40) and "FID 1.25 times" in student["risk"]


def test_a_student_is_told_of_no_steps_and_of_no_passes() -> None:
    short = Sampler(steps=2)
    found = asked(subject=replace(SUBJECT, sampler=short, passes=("distill",)), overhead=0.05)["proposed"]
    assert [a["what"] for a in found] == ["16 images at once instead of 1"]


def test_what_does_not_fit_or_work_is_not_foretold() -> None:
    assert advise(SUBJECT, 1, ("fp32",), lambda c, batch: None, ()) == {"proposed": [], "unproven": []}


def measured(runner: str, ms: float, batch: int = 1, **options: Any) -> Any:
    about = SimpleNamespace(runner=runner, batch=batch, options=options, sampler=None)
    return SimpleNamespace(
        variant=about,
        image_s=[[1.0]],
        image_latency=lambda: {"p50": ms / 1e3, "low": ms / 1.05e3, "high": ms * 1.05e-3},
    )


def test_a_runner_is_proposed_from_what_was_measured_alone() -> None:
    rows = [
        measured("torch", 100),
        measured("openvino", 50),
        measured("onnxruntime", 70),
        measured("openvino", 9, batch=4),
    ]
    (found,) = [a for a in asked(measured=rows)["proposed"] if a["measured"]]
    assert found["what"] == "OpenVINO instead of PyTorch" and found["gain"] == pytest.approx(2)
    assert math.isclose(found["ms"], 50)
    near = [measured("torch", 100), measured("openvino", 97)]
    assert not any(a["measured"] for a in asked(measured=near)["proposed"])
    assert not any(a["measured"] for a in asked(measured=rows[1:])["proposed"])
