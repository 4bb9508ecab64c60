"""The plan on the terminal: marks, reasons once each, forecasts side by side, and what is proposed."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from support.plans import cell, target

from optimize.report.terminal.outlook import advice_lines, mark, print_plan, proposal_lines


def printed(*targets: dict[str, Any], width: int = 120) -> str:
    plan = {
        "model": "m",
        "params": 1_114_209,
        "macs": 65_683_456,
        "nfe": 100,
        "batch": 1,
        "notes": ["assumed"],
        "targets": list(targets),
    }
    out = StringIO()
    print_plan(plan, Console(file=out, width=width))
    return out.getvalue()


def test_the_matrix_marks_every_cell_and_what_this_version_lacks() -> None:
    assert [mark(cell()), mark(cell(runner=None)), mark(cell("will not pay")), mark(cell("impossible"))] == [
        "✓",
        "✓°",
        "~",
        "✗",
    ]
    text = printed(target("a10"))
    assert "A10, SM 8.6" in text
    rows = {
        line.split()[0]: line.split()[1:]
        for line in text.splitlines()
        if line.split()[:1] in (["FP16"], ["FP8"], ["INT8"])
    }
    assert rows["FP8"] == ["✗", "✗", "✗"] and rows["INT8"] == ["✗", "~", "✓°"]


def test_a_reason_is_told_once_with_what_it_is_about() -> None:
    text = printed(target("a10"))
    for line in (
        "✗ FP8: No FP8. Instead: int8.",
        "✗ INT8 in PyTorch: Simulated. Instead: ONNX.",
        "~ ORT CPU: Idle. Instead: CUDA.",
        "~ passes[0].prune: Odd widths. Instead: round_to: 16.",
    ):
        assert text.count(line) == 1
    assert text.index("✗ FP8:") < text.index("~ ORT CPU:")


def test_targets_stand_side_by_side_and_a_missing_forecast_says_why() -> None:
    other = target("x1", today={}, reason="nothing is predicted: no peaks", proposal=None)
    text = printed(target("a10"), other)
    assert (
        "predicted" in text
        and "5.00 (2.50–10.0)" in text
        and "3.00 MB, 2.00 MB" in text
        and "0.250 (0.125–0.500) EUR" in text
    )
    assert text.count("X1: nothing is predicted: no peaks") == 1
    assert "Predicted, as it is sampled" not in printed(other)
    assert "note: assumed" in text and "1.11 M parameters" in text


def test_the_proposal_says_what_it_is_and_how_sure() -> None:
    (line,) = proposal_lines(target("a10"))
    assert line.startswith(
        "A10: 40 % of the MACs pruned, distilled to 2 evaluations, FP16 is predicted to meet the budget, though"
    )
    assert "5.00 (2.50–10.0) ms, 2.00 MB, FID 1.25 times the untouched model's (at worst 1.75); predicted" in line


def test_a_missed_budget_a_missing_runner_and_fields_to_fill_in_are_lines_of_their_own() -> None:
    about = target("a10")
    changed = {"meets": False, "needed": ["twice the device"], "runner": None, "to_fill_in": ["data.training"]}
    lines = proposal_lines(about | {"proposal": about["proposal"] | changed, "notes": ["no price"]})
    assert "comes nearest, and misses the budget" in lines[0]
    assert lines[1:] == [
        "note: no price",
        "note: this version has no runner for PyTorch in FP16",
        "needed: twice the device",
        "fill in: data.training",
    ]
    nothing = proposal_lines(about | {"proposal": {"recipe": None, "meets": False, "needed": ["a source"]}})
    assert nothing == ["A10: nothing is proposed: a source."]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_figure_is_cut_off_at_usual_widths(width: int) -> None:
    text = printed(target("a100"), target("v100"), target("rtx3090"), width=width)
    assert text.count("5.00 (2.50–10.0)") == 6 and "…" not in text


def test_without_a_budget_no_line_speaks_of_one() -> None:
    about = target("a10")
    (line, *_) = proposal_lines(about | {"proposal": about["proposal"] | {"asked": False}})
    assert "nothing within the allowed loss is faster by more than its interval" in line and "budget" not in line


def test_fewer_steps_are_named_with_what_is_not_known_of_them() -> None:
    about = target("a10")
    found = about["proposal"]["forecast"] | {"candidate": {"nfe": None, "share": 0.0, "format": "fp16", "steps": 20}}
    (line, *_) = proposal_lines(about | {"proposal": about["proposal"] | {"forecast": found}})
    assert line.startswith("A10: 20 steps of dpmpp_2m, FP16 is") and "quality unknown until the gates judge it" in line
    one = about["proposal"]["forecast"] | {"candidate": {"nfe": 1, "share": 0.0, "format": "fp16"}}
    assert (
        "distilled to 1 evaluation, FP16"
        in proposal_lines(about | {"proposal": about["proposal"] | {"forecast": one}})[0]
    )


def advice(kind: str, what: str, gain: float = 2.5) -> dict[str, Any]:
    times = {"before_ms": 437.0, "ms": 437 / gain, "low_ms": 100.0, "high_ms": 300.0}
    return {
        "kind": kind,
        "what": what,
        "gain": gain,
        "risk": "quality unknown until the gates judge it",
        "measured": False,
    } | times


def test_advice_is_numbered_says_gain_and_risk_and_fits_80_columns() -> None:
    found = {
        "proposed": [advice("free", "20 steps of dpmpp_2m instead of 50 of ddim"), advice("pass", "distill " * 12)],
        "unproven": [advice("pass", "prune 40 % of the MACs"), advice("pass", "quantize to INT8")],
    }
    lines = advice_lines(target("a10") | {"advice": found})
    assert all(len(line) <= 80 for line in lines)
    assert lines[0] == "A10: what makes an image faster, free things first"
    assert lines[1] == "  1 free: 20 steps of dpmpp_2m instead of 50 of ddim"
    assert lines[2].startswith("    2.50× faster, 437 to 175 (100–300) ms an image, predicted; quality")
    text = " ".join(" ".join(lines).split())
    assert "not proposed, since its gain lies within the interval of its own prediction: prune 40 % of the MACs" in text
    assert advice_lines(target("a10")) == [] and "budget" not in text
