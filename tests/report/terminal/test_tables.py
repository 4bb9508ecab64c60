"""Every table of the command line fits its terminal: nothing is cut, no heading breaks, figures and verdicts stay whole."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.plans import cell, forecast, target
from support.summaries import whole_summary
from typer.testing import CliRunner

from optimize.measure.record import Measurement, Variant
from optimize.report.terminal.bench import print_bench
from optimize.report.terminal.breakdown import print_breakdown
from optimize.report.terminal.comparison import print_comparison
from optimize.report.terminal.engines import print_engines
from optimize.report.terminal.outlook import print_plan
from optimize.report.terminal.summary import print_table
from optimize.report.terminal.tables import fold, plain, print_layout
from optimize.report.terminal.verified import print_verified
from optimize.report.terminal.written import print_exported

LONG = "prune-structured-with-taylor-importance-2"
RUNNER = "onnxruntime:fp16@cuda+graphs"


def printed(show: Callable[[Console], None], width: int) -> str:
    """What is printed at this width; no line is longer, and nothing is cut."""
    out = io.StringIO()
    show(Console(file=out, width=width, color_system=None))
    text = out.getvalue()
    assert "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    return text


def words(text: str) -> set[str]:
    return set(text.split())


def hard_summary() -> dict[str, Any]:
    """Long names, five digits, missing figures, noisy, failed and refused rows."""
    summary = whole_summary()
    for row in summary["rows"]:
        if row["variant"] == "prune":
            row |= {"variant": LONG, "runner": "onnxruntime", "runner_options": {"precision": "fp16", "device": "cuda"}}
            row |= {"cuda_graphs": True, "images_per_s": 12345.6, "noisy": True}
            row |= {k: {"p50": 12345, "p99": 98765} for k in ("call_latency_ms", "image_latency_ms")}
            row["speedup"] = {"vs_baseline": {"ratio": 12345.0, "low": 11111.0, "high": 23456.0}}
        if row["variant"] == "recover":
            row |= {"quality": None, "params": None, "image_latency_ms": None, "peak_memory_bytes": None}
    failed = {"variant": "distill", "runner": "torch", "batch": 16, "status": "failed", "reason": "no memory " * 20}
    summary["rows"].append(failed)
    summary["rows"][-2]["gates"] = {f"g{i}": {"holds": i > 0} for i in range(120)}
    return summary


@pytest.mark.parametrize("width", [60, 72, 80, 100, 120, 159, 160, 200])
def test_the_closing_table_fits_with_every_heading_figure_and_verdict_whole(width: int) -> None:
    summary = hard_summary()
    text = printed(lambda console: print_table(summary, console), width)
    headings = text[: text.index("───")]
    titles = ("variant", "runner", "size", "params", "MACs", "call ms", "image ms", "images/s", "peak mem", "FD", "PSNR",
              "speed-up", "interval", "gates", "targets", "p99", "NFE")  # fmt: skip
    for title in titles:
        assert re.search(rf"(?<!\S){re.escape(title)}(?!\S)", headings), title
    for whole in ("12,345", "98,765", "12,346 ~", "12,345×", "11,111–23,456", "✗ 119/120", "✗ 3/4", "412 MB"):
        assert re.search(rf"(?<!\S){re.escape(whole)}(?!\S)", text), whole
    assert "failed: distill on torch" in text and "refused: quantize on torch_compile" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_figures_of_the_closing_table_stand_under_each_other(width: int) -> None:
    text = printed(lambda console: print_table(hard_summary(), console), width)
    table = text[text.index("───") : text.index("refused")].splitlines()
    ends = {len(line[: m.end()]) for line in table if (m := re.search(r"[\d,.]+×", line))}
    assert len(ends) == 1


def test_a_wide_terminal_gives_every_figure_a_column_and_a_narrow_one_stacks_them() -> None:
    lines = {w: printed(lambda c: print_table(whole_summary(), c), w).splitlines() for w in (80, 200)}
    assert any(line.startswith("final") and "openvino:bf16" in line and "✓ 8/8" in line for line in lines[200])
    assert not any(line.startswith("final") and "openvino:bf16" in line for line in lines[80])
    assert sum("openvino:bf16" in line for line in lines[80]) >= 2


def test_a_terminal_too_narrow_for_a_table_gets_a_paragraph_a_row() -> None:
    text = printed(lambda console: print_table(whole_summary(), console), 34)
    assert "variant final" in text.replace("\n", " ") and "───" not in text


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("prune-structured-2", 8, ["prune-", "structur", "ed-2"]),
        ("a b c", 3, ["a b", "c"]),
        ("onnxruntime:fp16@cuda", 16, ["onnxruntime:", "fp16@cuda"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("", 5, [""]),
        ("short", 5, ["short"]),
    ],
)
def test_words_are_folded_after_a_separator(text: str, width: int, lines: list[str]) -> None:
    assert fold(text, width) == lines


def test_a_table_without_rows_is_its_heading() -> None:
    assert words(printed(lambda c: print_layout(c, "", [plain(["a"])], []), 20)) >= {"a"}


def measured(key: str, seconds: float, **more: Any) -> Measurement:
    rounds = [[seconds * (1 + 0.01 * i), seconds * 1.3] for i in range(8)]
    about = {"memory": {"peak_bytes": 12_345_000_000, "device_process_peak_bytes": 2 * 10**9}, "nfe": 100, "bench": "b"}
    energy = {"joules": 123456.0, "images": 10, "by": "x"}
    variant = Variant(key=key, folder="f", runner="torch", batch=16)
    return Measurement(variant, call_s=rounds, image_s=rounds, **about | {"energy": energy} | more)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [60, 80, 120, 240])
def test_the_table_of_a_bench_fits(width: int) -> None:
    lost = Measurement(Variant(key="x", folder="f", runner="torch"), status="refused", reason="a reason " * 20)
    rows = [measured(f"{LONG}/{RUNNER}/16", 1234.5), measured("final/torch/16", 0.0123), lost]
    text = printed(lambda console: print_bench(rows, console), width)
    assert {"row", "images/s", "peak", "J/image", "device", "speed-up"} <= words(
        text[: text.index("───")].replace(",", "")
    )
    assert "12.3 GB" in text and "12,346" in text
    ratios = [w for w in words(text) if w.endswith("×")]
    assert "1.00×" in ratios and len(ratios) == 2
    assert "~" in text and "refused: x: a reason" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tables_of_a_plan_fit_in_parts_where_they_must(width: int) -> None:
    ways = {
        w: {"fp16": cell(), "fp8": cell("impossible"), "int8": cell("will not pay")}
        for w in ("torch", "onnxruntime-cuda", "onnxruntime-cpu", "tensorrt", "tensorrt-rtx", "openvino")
    }
    wide = forecast() | {"latency_ms": 12345.0, "low_ms": 10234.0, "high_ms": 15678.0}
    targets = [
        target(n, ways=ways, today={"fp16": wide}, proposal=None, reason="r")
        for n in ("a100", "v100", "rtx3090", "rtx4090")
    ]
    plan = {"model": "m", "params": 1, "macs": 1, "nfe": 100, "batch": 1, "notes": [], "targets": targets}
    text = printed_wrapped(lambda console: print_plan(plan, console), width)
    assert text.count("12,345 (10,234–15,678)") == 4
    headings = [line for line in text.splitlines() if "TensorRT" in line or "OpenVINO" in line]
    assert sum(line.split().count("TRT-RTX") for line in headings) == 4
    assert all(name in text for name in ("A100", "V100", "RTX3090", "RTX4090"))


def printed_wrapped(show: Callable[[Console], None], width: int) -> str:
    """Like `printed`, for output whose sentences are left to the terminal to wrap: only tables are looked at."""
    out = io.StringIO()
    show(Console(file=out, width=width, color_system=None))
    text = out.getvalue()
    assert "…" not in text
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if "───" in line]
    assert rules and all(len(lines[j].rstrip()) <= width for i in rules for j in (i - 1, i, i + 1))
    return text


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_the_tables_of_an_inspection_fit(width: int) -> None:
    part: dict[str, Any] = {
        "name": "text encoder 2", "class": "CLIPTextModelWithProjection", "params": 694_659_840, "macs": 12_345_000_000,
        "size_bytes": 1_390_000_000, "memory_bytes": 2_000_000_000, "predicted_s": 0.0123, "low_s": 0.0111, "high_s": 0.0234,
        "measured_s": 123.4, "note": "",
    }  # fmt: skip
    layer = {
        "path": "text_model.encoder.layers.31.self_attn.out_proj.and.more", "params": 1_638_400, "macs": 126_156_800,
        "bytes": 6_553_600, "measured_s": 123.4, "predicted_s": 0.0123, "bound": "memory, on the way",
    }  # fmt: skip
    report = {
        "model": "stable-diffusion-xl-base-1.0", "batch": 16, "target": "rtx3090", "format": "fp16", "measured_on": "",
        "rates": "x", "balance": None, "parts": [part | {"layers": [layer, layer]}],
    }  # fmt: skip
    text = printed_wrapped(lambda console: print_breakdown(report, console), width)
    assert {"params", "MACs", "predicted", "measured", "roofline", "share", "layer"} <= words(text)
    assert "11.1 ms–23.4 ms" in text and "12.3 G" in text and "2.06 min" in text
    assert "695 M" in text and "100.0 %" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tables_of_a_comparison_fit(width: int) -> None:
    row, ratio = f"{LONG}/{RUNNER}/16", {"ratio": 12345.0, "low": 11111.0, "high": 23456.0}
    latency = [
        {"row": row, "ratio": ratio, "verdict": v, "basis": "samples"}
        for v in ("faster", "no difference shown", "not compared")
    ]
    quality = {"row": row, "what": "class_accuracy_min", "a": 12345.0, "b": 0.123, "verdict": "changed"}
    found = {
        "a": "a", "b": "b", "latency": latency, "only_in_a": [], "only_in_b": [],
        "size": [{"row": row, "what": "size_bytes", "a": 7_420_000, "b": 4_310_000}],
        "quality": [quality | {"difference": {"value": -12345.0, "low": -23456.0, "high": -11111.0}}],
        "gates": [{"kind": "gate", "name": f"parity {LONG} {RUNNER}", "a": True, "b": None, "a_value": 0.1234, "b_value": None}],
    }  # fmt: skip
    text = printed_wrapped(lambda console: print_comparison(found, console), width)
    for whole in ("no difference shown", "not compared", "[11,111, 23,456]", "[-23,456, -11,111]", "-41.9 %", "holds (0.1234)", "not judged (–)", "95 % interval"):  # fmt: skip
        assert whole in text, whole


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tables_of_an_export_fit(width: int) -> None:
    row = {
        "target": "rtx_pro_6000_blackwell",
        "sm": "12.0",
        "what": "engine",
        "module": "tensorrt_rtx",
        "version": "1.7.1.24",
    }
    row |= {"status": "done", "seconds": 12345.0, "peak_memory_bytes": 2 * 10**9, "plan_bytes": 10**6, "path": "p"}
    row |= {"expected": {"int8": 3}, "found": {"int8": 3}}
    text = printed_wrapped(lambda console: print_engines([row], console), width)
    assert {"12,345", "seconds", "plan"} <= words(text) and "peak memory" in text and "2.00 GB" in text

    inputs = [{"name": f"a_long_name_of_an_input_{i}"} for i in range(12)]
    parts = {LONG: {"inputs": inputs, "parity": {"relative_l2": 3.2e-7}}, "vae_decoder": {"inputs": inputs}}
    manifest = {"parts": parts, "files": {f"{LONG}/model.onnx": {"bytes": 12345 * 2**20}}, "left_out": []}
    text = printed_wrapped(lambda console: print_exported(manifest, Path("out"), console), width)
    assert {"12345.0", "3.2e-07", "graph", "MiB", "inputs"} <= words(text) and "relative L2" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_table_of_a_verification_fits(width: int) -> None:
    wrong = [{"file": "model.safetensors", "problem": "changed", "expected": "a", "found": "b"}] * 12
    artifacts = [
        {
            "name": f"exported/digits/{LONG}",
            "differences": found,
            "bytes": 12345 * 2**20,
            "files": 12,
            "digest": "0" * 64,
        }
        for found in ([], wrong)
    ]
    text = printed_wrapped(lambda console: print_verified({"artifacts": artifacts, "digest": "0" * 64}, console), width)
    assert {"intact", "12345.00", "artifact", "files", "MiB", "state", "digest"} <= words(text) and "12 differ" in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_list_of_what_is_registered_fits_and_breaks_between_names(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.cli.app import app

    monkeypatch.setenv("COLUMNS", str(width))
    text = CliRunner().invoke(app, ["list"]).stdout
    assert max(map(len, text.splitlines())) <= width
    names = re.split(r"[,\s]+", text)
    assert {"recipes", "digits", "smoke", "prune", "tensorrt_rtx", "onnxruntime"} <= {*names}
