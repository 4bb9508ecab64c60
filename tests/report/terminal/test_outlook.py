"""The plan on the terminal: marks, reasons once each, forecasts side by side, and what is proposed."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from optimize.report.terminal.outlook import mark, print_plan, proposal_lines


def cell(
    verdict: str = "works", runner: str | None = "torch", rule: str = "a rate", about: str = "both", **said: str
) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "reason": "Because.",
        "nearest": "",
        "rule": rule,
        "runner": runner,
        "about": about,
    } | said


def forecast(ms: float = 5.0, **candidate: Any) -> dict[str, Any]:
    cost = {"value": 0.25, "low": 0.125, "high": 0.5, "currency": "EUR"}
    chosen = {"nfe": None, "share": 0.0, "format": "fp16"} | candidate
    times = {"latency_ms": ms, "low_ms": ms / 2, "high_ms": ms * 2}
    return times | {
        "memory_bytes": 3 * 10**6,
        "size_bytes": 2 * 10**6,
        "cost_per_1000": cost,
        "candidate": chosen,
        "calibrated": "",
    }


def target(name: str, **changes: Any) -> dict[str, Any]:
    fp8 = cell("impossible", None, "fp8", "format", reason="No FP8.", nearest="int8")
    idle = cell("will not pay", None, "idle", "way", reason="Idle.", nearest="CUDA")
    ways = {
        "torch": {
            "fp16": cell(),
            "fp8": fp8,
            "int8": cell("impossible", None, "sim", "both", reason="Simulated.", nearest="ONNX"),
        },
        "onnxruntime-cpu": {"fp16": idle, "fp8": fp8, "int8": idle},
        "tensorrt": {"fp16": cell(runner=None), "fp8": fp8, "int8": cell(runner=None)},
    }
    proposal = {
        "forecast": forecast(nfe=2, share=0.4),
        "meets": True,
        "certain": False,
        "loss": 0.25,
        "worst_loss": 0.75,
        "needed": [],
        "way": "torch",
        "runner": "torch",
        "recipe": "x",
        "to_fill_in": [],
    }
    passes = [{"place": "passes[0].prune", **cell("will not pay", reason="Odd widths.", nearest="round_to: 16")}]
    about = {"name": name, "title": name.upper(), "sm": "8.6", "ways": ways, "passes": passes}
    return about | {"today": {"fp16": forecast()}, "notes": [], "proposal": proposal} | changes


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
