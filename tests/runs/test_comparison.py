"""Comparing reports: what is claimed, what is not, and what is never compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from optimize import rng
from optimize.cli.app import app
from optimize.errors import ArtifactError, UserError
from optimize.measure.bench import append
from optimize.measure.record import Measurement, Variant
from optimize.measure.statistics import Interval
from optimize.report.terminal.comparison import print_comparison
from optimize.runs import comparison

HERE = {"cpu": "one", "cores": 2}


def measured(key: str, seconds: float, bench: str = "b", artifact_id: str = "", **more: Any) -> Measurement:
    noise = 0.01 * rng.normal((8, 3), "compare", key, bench).astype(float)
    rounds = [[seconds * math.exp(x) for x in line] for line in noise.tolist()]
    given = {"environment": HERE, "artifact_id": artifact_id or f"{key}-{bench}", "nfe": 2} | more
    return Measurement(
        Variant(key=key, folder="x", runner="torch"), bench=bench, call_s=rounds, image_s=rounds, **given
    )


def file(path: Path, *rows: Measurement) -> Path:
    append(path, rows)
    return path


def latency(a: Path, b: Path) -> dict[str, dict[str, Any]]:
    return {line["row"]: line for line in comparison.compare(a, b)["latency"]}


def test_rows_of_one_bench_are_paired_and_a_difference_is_claimed(tmp_path: Path):
    a = file(tmp_path / "a.jsonl", measured("x/torch/1", 1.0), measured("y/torch/1", 1.0))
    b = file(tmp_path / "b.jsonl", measured("x/torch/1", 0.5), measured("y/torch/1", 1.0))
    found = latency(a, b)
    assert found["x/torch/1"]["verdict"] == "faster" and found["x/torch/1"]["paired"]
    assert found["x/torch/1"]["ratio"]["value"] == pytest.approx(2.0, rel=0.02)
    assert found["y/torch/1"]["verdict"] == "no difference shown"
    assert latency(b, a)["x/torch/1"]["verdict"] == "slower"


def test_different_benches_are_judged_by_what_unchanged_rows_did_in_between(tmp_path: Path):
    """The machine got 10 % slower between the benches: a row 11 % slower is no finding, one twice as fast is."""
    same = {"artifact_id": "untouched"}
    a = file(tmp_path / "a.jsonl", *(measured(k, 1.0, "1") for k in ("p", "q")), measured("control", 1.0, "1", **same))
    b = file(
        tmp_path / "b.jsonl",
        measured("p", 1.11, "2"),
        measured("q", 0.5, "2"),
        measured("control", 1.10, "2", **same),
    )
    found = latency(a, b)
    assert found["p"]["verdict"] == "no difference shown" and found["q"]["verdict"] == "faster"
    assert not found["q"]["paired"] and "unpaired; widened by the" in found["q"]["basis"]


def test_without_an_unchanged_row_two_benches_show_nothing(tmp_path: Path):
    a, b = file(tmp_path / "a.jsonl", measured("p", 1.0, "1")), file(tmp_path / "b.jsonl", measured("p", 0.3, "2"))
    line = latency(a, b)["p"]
    assert line["verdict"] == "no difference shown" and line["ratio"]["low"] > 2  # the figure is given, not claimed
    assert "unpaired; no unchanged row shows what the machine did: not claimed" in line["basis"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"environment": {"cpu": "two", "cores": 2}}, "environments differ: cpu: one and two"),
        ({"threads": {"OMP_NUM_THREADS": 1}}, "threads differ: OMP_NUM_THREADS: None and 1"),
        ({"status": "failed", "reason": "it fell over"}, "b failed: it fell over"),
        ({"image_s": []}, "no images were timed"),
    ],
)
def test_results_of_another_machine_or_without_figures_are_not_compared(
    tmp_path: Path, change: dict[str, Any], said: str
):
    """Mixed into one file, they are marked by row; the others are compared."""
    a = file(tmp_path / "a.jsonl", measured("p", 1.0), measured("q", 1.0))
    b = file(tmp_path / "b.jsonl", replace(measured("p", 0.5), **change), measured("q", 0.5))
    found = latency(a, b)
    assert (found["p"]["verdict"], found["p"]["ratio"], found["p"]["basis"]) == ("not compared", None, said)
    assert found["q"]["verdict"] == "faster"


def test_the_last_row_of_a_key_counts(tmp_path: Path):
    a = file(tmp_path / "a.jsonl", measured("p", 9.0), measured("p", 1.0))
    assert latency(a, file(tmp_path / "b.jsonl", measured("p", 1.0)))["p"]["ratio"]["value"] == pytest.approx(1.0)


def summary(image_ms: float, fd: float, size: int, holds: bool, artifact_id: str) -> dict[str, Any]:
    times = {"p50": image_ms, "low": image_ms * 0.98, "high": image_ms * 1.03, "n": 30}
    gates = {"fd": {"value": fd, "limit": 3.0, "holds": holds}}
    quality = {"fd": {"value": fd, "low": fd - 0.3, "high": fd + 0.4, "n": 100}, "note": "text"}
    row = {"variant": "final", "runner": "openvino", "runner_options": {"precision": "bf16"}, "batch": 4, "status": "done",
           "artifact_id": artifact_id, "size_bytes": size, "params": 10, "macs": 20, "nfe": 2, "image_latency_ms": times, "quality": quality}  # fmt: skip
    control = row | {"variant": "baseline", "artifact_id": "0", "size_bytes": 5, "image_latency_ms": {"p50": 1, "low": 0.9, "high": 1.1, "n": 9}, "quality": None}  # fmt: skip
    return {"environment": HERE, "rows": [control, row], "gates": gates, "targets": {}}


def test_summaries_show_size_quality_and_gates(tmp_path: Path):
    for name, made in (("a", summary(1.0, 2.0, 1000, True, "1")), ("b", summary(0.5, 3.5, 700, False, "2"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(made))
    found = comparison.compare(tmp_path / "a", tmp_path / "b" / "summary.json")
    lines = {line["row"]: line for line in found["latency"]}
    assert lines["final/openvino:bf16/4"]["verdict"] == "faster"
    assert found["size"] == [{"row": "final/openvino:bf16/4", "what": "size_bytes", "a": 1000, "b": 700}]
    (quality,) = found["quality"]
    assert quality["what"] == "fd" and quality["verdict"] == "changed"
    assert quality["difference"]["low"] == pytest.approx(1.5 - math.hypot(0.4, 0.3))
    assert found["gates"] == [
        {"kind": "gate", "name": "fd", "a": True, "b": False, "a_value": 2.0, "b_value": 3.5},
    ]
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_comparison(found, console)
    text = console.export_text()
    for part in ("faster", "1.00 kB", "-30.0 %", "gate fd", "holds (2)", "fails (3.5)", "changed"):
        assert part in text, part


def test_quality_within_its_intervals_has_not_changed():
    a, b = ({"value": v, "low": v - 0.3, "high": v + 0.3} for v in (2.0, 2.4))
    assert comparison.difference(a, b)["verdict"] == "no difference shown"


def test_half_widths_of_independent_medians_add_in_quadrature():
    found = comparison.quotient(Interval(2.0, 2.0 / 1.03, 2.0 * 1.04, 5), Interval(1.0, 1.0 / 1.02, 1.05, 9))
    assert (found.value, found.n) == (2.0, 5)
    assert math.log(found.low / 2) == pytest.approx(-math.hypot(math.log(1.03), math.log(1.05)))
    assert math.log(found.high / 2) == pytest.approx(math.hypot(math.log(1.04), math.log(1.02)))


def test_a_run_folder_takes_samples_from_its_measurements_and_sizes_from_its_summary(tmp_path: Path):
    key = "final/openvino:bf16/4"
    for name, seconds, size in (("a", 1.0, 1000), ("b", 0.5, 700)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps(summary(9.0, 2.0, size, True, name)))
        file(tmp_path / name / "measurements.jsonl", measured(key, seconds))
    found = comparison.compare(tmp_path / "a", tmp_path / "b")
    line = next(x for x in found["latency"] if x["row"] == key)
    assert line["paired"] and line["ratio"]["value"] == pytest.approx(2.0)
    assert found["size"][0]["b"] == 700 and found["only_in_a"] == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("folder", None, "holds neither summary.json nor measurements.jsonl"),
        ("none.jsonl", None, "no such file"),
        ("empty.jsonl", "", "holds no measurements. Run optimize bench or optimize run first"),
        ("other.json", "[1]", "is no summary.json"),
        ("rows.json", '{"rows": []}', "holds no measurements"),
        ("torn.jsonl", '{"variant"', "line 1 is no whole measurement"),
        ("b.jsonl", None, "no row of {a} is in {b}. Rows are matched by name: p against z"),
    ],
)
def test_nothing_to_compare_is_one_message(tmp_path: Path, name: str, text: str | None, said: str):
    a = file(tmp_path / "a.jsonl", measured("p", 1.0))
    other = tmp_path / name
    if name == "folder":
        other.mkdir()
    elif name == "b.jsonl":
        file(other, measured("z", 1.0))
    elif text is not None:
        other.write_text(text)
    result = CliRunner().invoke(app, ["compare", str(a), str(other)])
    assert isinstance(result.exception, UserError | ArtifactError) and result.exception.exit_code == 2
    assert said.format(a=a, b=other) in str(result.exception)


def test_compare_prints_json_on_request_and_is_in_the_python_interface(tmp_path: Path):
    import optimize

    a = file(tmp_path / "a.jsonl", measured("p", 1.0), measured("only", 1.0))
    b = file(tmp_path / "b.jsonl", measured("p", 0.5))
    found = json.loads(CliRunner().invoke(app, ["compare", str(a), str(b), "--json"]).stdout)
    assert found == optimize.compare(a, b) and found["only_in_a"] == ["only"]


def test_a_folder_in_the_place_of_a_runs_measurements_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a" / "measurements.jsonl").mkdir(parents=True)
    (tmp_path / "a" / "summary.json").write_text(json.dumps(summary(9.0, 2.0, 100, True, "a")))
    with pytest.raises(ArtifactError, match=r"measurements\.jsonl: a folder"):
        comparison.compare(tmp_path / "a", tmp_path / "a")
