"""The reports: what they say of a whole summary, of one full of holes, and what the page does in a browser."""

from __future__ import annotations

import base64
import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from optimize.report import charts, columns, figures, judged, layers
from optimize.report.console import print_table
from optimize.report.html import render_html
from optimize.report.markdown import render_markdown

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def figure(value: float, spread: float = 0.05, n: int = 1000) -> dict[str, Any]:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread), "n": n}


def row(
    variant: str, runner: str, batch: int, image_ms: float, fd: float | None, size: int, nfe: int, **more: Any
) -> dict[str, Any]:
    """One measured row; its speed-ups follow from `image_ms` against fixed baseline and fair latencies."""
    base, fair = {1: (700.0, 21.0), 16: (168.0, 4.234)}[batch]
    times = {"p50": image_ms, "p90": image_ms * 1.05, "p99": image_ms * 1.2, "n": 40}
    quality = None
    if fd is not None:
        quality = {
            "fd": figure(fd), "fd_held_out": figure(fd * 1.4), "fd_training": figure(fd * 0.98), "kid_held_out": figure(0.02),
            "class_accuracy": figure(0.985, 0.01), "class_accuracy_min": figure(0.95, 0.02), "psnr_db": figure(17.4, 0.01), "ssim": figure(0.71, 0.01),
            "difference": {"fd": figure(fd - 2.05), "class_accuracy": {"value": -0.01, "low": -0.02, "high": 0.004, "n": 1000}},
        }  # fmt: skip
    speedup = {
        k: {"ratio": b / image_ms, "low": 0.94 * b / image_ms, "high": 1.06 * b / image_ms}
        for k, b in (("vs_baseline", base), ("vs_fair", fair))
    }
    return {
        "variant": variant, "stage": variant, "artifact_id": f"{variant}-0123456789abcdef", "target": "here", "runner": runner, "runner_options": {},
        "device": "cpu", "precision": "fp32", "batch": batch, "solver": "ddim", "steps": nfe, "nfe": nfe, "status": "done", "reason": None,
        "predicted": False, "params": size // 4, "macs": size * 11, "size_bytes": size, "image_latency_ms": times,
        "call_latency_ms": {k: (v * batch / nfe if k != "n" else v) for k, v in times.items()}, "images_per_s": 1000 / image_ms,
        "peak_memory_bytes": 412_000_000, "quality": quality, "speedup": speedup, "parity": {"max_abs": 1e-4, "relative_l2": 2.3e-5},
        "gates": {}, "targets": {}, "noisy": False,
    } | more  # fmt: skip


def whole_summary() -> dict[str, Any]:
    """A made-up run: everything measured, one target missed, one row refused."""
    gates = {
        "fd": {"value": 2.61, "limit": 3.35, "at_most": True, "holds": True},
        "class_accuracy": {"value": 0.021, "limit": 0.05, "at_most": True, "holds": True},
        **{f"parity {v} {r}": {"value": 3e-5, "limit": 1e-3, "at_most": True, "holds": True} for v in ("baseline", "prune", "distill") for r in ("onnxruntime", "openvino")},
    }  # fmt: skip
    targets = {
        "speedup_vs_baseline": {"value": 214.3, "limit": 200, "at_most": False, "holds": True},
        "speedup_vs_fair": {
            "value": 5.4,
            "limit": 6,
            "at_most": False,
            "holds": False,
            "note": "a finer student step was tried",
        },
        "size_ratio": {"value": 0.171, "limit": 0.2, "at_most": True, "holds": True},
        "int8_speedup": {"value": 1.62, "limit": 1.4, "at_most": False, "holds": True},
    }
    big, small, tiny = 7_420_000, 4_310_000, 1_270_000
    rows = [
        *(row("baseline", r, b, ms, 2.05, big, 100, psnr=None) for r, b, ms in (("torch", 1, 700.0), ("torch", 16, 168.0), ("onnxruntime", 16, 90.0), ("openvino", 16, 81.0))),
        *(row("fair", "openvino", b, ms, 2.4, big, 12, solver="dpmpp_2m", steps=6) for b, ms in ((1, 21.0), (16, 4.234))),
        row("prune", "openvino", 16, 60.0, 39.0, small, 100),
        row("recover", "openvino", 16, 60.2, 3.2, small, 100),
        *(row("distill", r, b, ms, 2.5, small, 2) for r, b, ms in (("torch", 16, 2.9), ("openvino", 16, 1.27), ("openvino", 1, 5.1))),
        *(row("quantize", r, b, ms, 2.61, tiny, 2, precision="int8") for r, b, ms in (("onnxruntime", 16, 2.2), ("openvino", 16, 0.91), ("openvino", 1, 4.4))),
        row("quantize", "openvino", 16, 0.784, 2.61, tiny, 2, precision="int8+bf16", runner_options={"precision": "bf16"}, noisy=True),
        {"variant": "quantize", "runner": "torch_compile", "batch": 16, "status": "refused", "reason": "torch.compile cannot fuse Q/DQ <nodes> on this CPU"},
        row("final", "openvino", 16, 0.784, 2.61, tiny, 2, precision="int8+bf16", runner_options={"precision": "bf16"}, gates=gates, targets=targets),
    ]  # fmt: skip
    return {
        "schema": 1, "recipe": "digits", "gates_passed": True, "targets_met": False, "gates": gates, "targets": targets, "rows": rows,
        "environment": {"device": "cpu", "cpu": "A processor with 2 cores", "cores": 2, "memory_gib": 15.6, "instructions": ["avx2", "avx512_vnni"], "python": "3.11.9", "libraries": {"torch": "2.13.0", "openvino": "2026.4.1"}},
        "factors": {"guidance": 2.02, "solver": 8.3, "distillation": 2.95, "pruning": 1.43, "precision": 1.62, "runner": 1.87},
        "fair_search": [
            {"solver": "ddim", "steps": 4, "spacing": "trailing", "guided": False, "nfe": 4, "fd": figure(9.1), "class_accuracy_min": 0.83, "passes": False, "reason": "fd 9.100 over 3.350"},
            {"solver": "ddim", "steps": 6, "spacing": "trailing", "guided": True, "nfe": 12, "fd": figure(3.3), "class_accuracy_min": 0.95, "passes": True, "reason": ""},
            {"solver": "dpmpp_2m", "steps": 6, "spacing": "trailing", "guided": True, "nfe": 12, "fd": figure(2.4), "class_accuracy_min": 0.96, "passes": True, "reason": ""},
        ],
        "stages": [
            {"name": "source", "id": "a" * 64, "parent": None, "seconds": 0.4, "cached": True, "record": {}},
            {"name": "prune", "id": "b" * 64, "parent": "a" * 64, "seconds": 21.3, "cached": False, "record": {"importance": "diffusion_taylor", "macs": 0.402, "groups": [{"name": "mid", "kept": 40}] * 900}},
            {"name": "distill", "id": "c" * 64, "parent": "b" * 64, "seconds": 150.0, "cached": False, "record": {"steps": 800, "loss": 0.0123}},
        ],
        "half_split_fd": {"value": 0.68, "low": 0.55, "high": 0.84}, "samples": ["samples/grid.png"],
    }  # fmt: skip


@pytest.fixture
def summary() -> dict[str, Any]:
    return whole_summary()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "grid.png").write_bytes(PIXEL)
    return tmp_path


HOLES: dict[str, dict[str, Any]] = {
    "empty": {},
    "nulls": dict.fromkeys(("recipe", "environment", "gates", "targets", "rows", "factors", "fair_search", "stages", "half_split_fd", "samples")),
    "refused only": {"recipe": "r", "gates_passed": False, "rows": [{"variant": "final", "runner": "openvino", "batch": 1, "status": "failed", "reason": "no memory"}]},
    "bare rows": {"recipe": "r", "rows": [{"variant": "baseline", "batch": 1}, {"variant": "final", "batch": 1, "images_per_s": None, "quality": {"fd": None}}]},
    "null gate": {"gates": {"fd": {"value": None, "limit": None, "holds": False}, "kid": None}, "rows": [], "factors": {"solver": None, "runner": 0.0}},
}  # fmt: skip


def console_text(summary: dict[str, Any], width: int) -> str:
    stream = io.StringIO()
    print_table(summary, Console(file=stream, width=width, color_system=None))
    return stream.getvalue()


@pytest.mark.parametrize("name", HOLES)
def test_every_report_survives_a_summary_full_of_holes(name: str, tmp_path: Path) -> None:
    assert render_markdown(HOLES[name])
    assert "</html>" in render_html(HOLES[name], tmp_path)
    for width in (80, 120, 200):
        assert console_text(HOLES[name], width)


@pytest.mark.parametrize("key", sorted(whole_summary()))
def test_every_report_survives_the_loss_of_any_one_key(summary: dict[str, Any], key: str, folder: Path) -> None:
    del summary[key]
    assert render_markdown(summary) and render_html(summary, folder) and console_text(summary, 120)


@pytest.mark.parametrize("key", sorted(whole_summary()["rows"][1]))
def test_every_report_survives_rows_that_lack_a_key(summary: dict[str, Any], key: str) -> None:
    for value in (None, "gone"):
        for r in summary["rows"]:
            r[key] = value
            if value == "gone":
                del r[key]
        assert render_markdown(summary) and render_html(summary) and console_text(summary, 120)


def test_misses_are_stated_before_anything_else(summary: dict[str, Any], folder: Path) -> None:
    summary["gates"]["fd"] |= {"value": 4.2, "holds": False}
    summary["gates_passed"] = False
    for text in (render_markdown(summary), render_html(summary, folder)):
        gate, target, headline = text.index("fd"), text.index("speedup vs fair"), text.index("The final model makes")
        assert gate < target < headline
    assert "GATE FAILED: fd is 4.2, asked for ≤ 3.35" in console_text(summary, 120)
    assert "1 of 8 gates failed, 1 of 4 targets missed" in " ".join(render_html(summary, folder).split())


def test_the_runs_own_verdict_is_believed_where_no_check_is_listed() -> None:
    assert figures.verdict({"gates_passed": False}) == "failed"
    assert figures.verdict({"targets_met": False}) == "missed"
    assert "gates did not pass" in render_markdown({"gates_passed": False})


def test_the_headline_gives_the_final_rows_figures(summary: dict[str, Any]) -> None:
    head = figures.headline(summary)
    assert "1,276 images a second on openvino:bf16 at batch 16" in head.sentence
    assert "214×" in head.sentence and "5.40×" in head.sentence
    assert "17.1 % of the baseline's size" in head.sentence and "FD 2.61 against 2.05" in head.sentence
    assert head.cost == "1,000 images cost 0.784 s of this machine instead of 2.80 min: 0.467 % of the baseline's cost."
    assert figures.headline({"rows": []}).sentence.startswith("No measured row")


def test_baseline_is_shown_eager_fair_as_the_reference_and_others_on_their_fastest_runner(
    summary: dict[str, Any],
) -> None:
    shown = {v: figures.shown(summary, v, 16) for v in figures.variants(summary)}
    assert list(shown) == ["baseline", "fair", "prune", "recover", "distill", "quantize", "final"]
    assert shown["baseline"]["runner"] == "torch" and shown["distill"]["runner"] == "openvino"
    slower = copy.deepcopy(shown["fair"]) | {
        "runner": "broken",
        "images_per_s": 9e9,
        "speedup": {"vs_fair": {"ratio": 3.0}},
    }
    summary["rows"].append(slower)
    assert figures.shown(summary, "fair", 16)["runner"] == "openvino"


def test_a_quality_figure_is_borrowed_only_within_one_artifact_and_precision(summary: dict[str, Any]) -> None:
    rows = [r for r in summary["rows"] if r["variant"] == "quantize" and r["batch"] == 16 and r["status"] == "done"]
    rows[0]["quality"] = None
    assert figures.number(figures.quality(summary, rows[0], "fd")) == 2.61
    rows[2]["quality"] = None
    assert figures.quality(summary, rows[2], "fd") is None


@pytest.mark.parametrize(
    ("entry", "sign"),
    [
        ({"value": 2, "limit": 3, "holds": True}, "≤"), ({"value": 4, "limit": 3, "holds": False}, "≤"),
        ({"value": 4, "limit": 3, "holds": True}, "≥"), ({"value": 2, "limit": 3, "holds": False}, "≥"),
        ({"value": 2, "limit": 3, "holds": False, "at_most": True}, "≤"), ({"value": None, "limit": 3, "holds": False}, ""),
    ],
)  # fmt: skip
def test_the_relation_of_a_check_is_told_or_read_off(entry: dict[str, Any], sign: str) -> None:
    assert figures.relation(entry) == sign


@pytest.mark.parametrize(
    ("given", "text"),
    [(0, "0"), (0.000123, "1.2e-04"), (0.01234, "0.0123"), (1.5, "1.50"), (99.9, "99.9"), (1234.5, "1,234"), (None, "–"), (float("nan"), "–"), (True, "–")],
)  # fmt: skip
def test_numbers_read_as_three_digits(given: Any, text: str) -> None:
    assert figures.digits(given) == text


def test_units_follow_the_size() -> None:
    assert figures.bytes_text(1_270_000) == "1.27 MB" and figures.count_text(81_620_000) == "81.6 M"
    assert [figures.seconds_text(s) for s in (0.0123, 4.0, 168, 9000)] == ["12.3 ms", "4.00 s", "2.80 min", "2.50 h"]


@pytest.mark.parametrize("width", [80, 120, 160, 200])
def test_the_console_table_fits_and_shows_every_figure_of_every_variant(summary: dict[str, Any], width: int) -> None:
    text = console_text(summary, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    table = text[: text.index("refused")]
    for word in (
        "1.27 MB",
        "318 k",
        "14.0 M",
        "6.27",
        "7.53",
        "0.784",
        "0.941",
        "1,276",
        "412 MB",
        "2.61",
        "17.4",
        "214×",
        "201–227",
        "✓ 8/8",
        "✗ 3/4",
    ):
        assert word in table, f"{word} is cut or missing at {width} columns"
    for variant in ("baseline", "fair", "prune", "recover", "distill", "quantize", "final", "openvino:bf16"):
        assert variant in table
    assert "…" not in table
    assert "torch.compile cannot fuse" in text


def test_the_waterfall_multiplies_up_to_the_whole_and_draws_losses() -> None:
    svg = charts.waterfall({"solver": 10.0, "precision": 0.5, "runner": None})
    assert "×10.0" in svg and "×0.500" in svg and "5.00×" in svg and "runner" not in svg
    assert charts.waterfall({"solver": 0.0}) == charts.waterfall({}) == ""


def test_the_pareto_plot_needs_two_points_and_labels_every_variant(summary: dict[str, Any]) -> None:
    svg = charts.pareto(summary)
    assert (
        all(f"{v}</text>" in svg for v in ("baseline", "fair", "prune", "recover", "distill", "final"))
        and "gate: FD ≤ 3.35" in svg
    )
    assert charts.pareto({"rows": summary["rows"][:1]}) == ""


class _Links(HTMLParser):
    """Everything in a page that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loading = ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
        self.found += [
            f"{tag} {k}={(v or '')[:40]}" for k, v in attrs if k in loading and not (v or "").startswith(("data:", "#"))
        ]
        self.found += [tag] if tag in ("link", "iframe", "object", "embed", "base") else []


def test_the_page_refers_to_nothing_outside_itself(summary: dict[str, Any], folder: Path) -> None:
    page = render_html(summary, folder)
    links = _Links()
    links.feed(page)
    assert links.found == []
    assert not re.search(r"https?:|//[a-z]+\.|url\(|@import|fetch\(|XMLHttpRequest|import\(", page)
    assert "default-src 'none'" in page and page.count("data:image/png;base64,") == 1


def test_text_from_a_summary_is_escaped(summary: dict[str, Any]) -> None:
    summary["recipe"] = "<script>alert(1)</script>"
    summary["rows"][0]["variant"] = summary["rows"][1]["variant"] = "<img onerror=x>"
    summary["factors"] = {"<b>": 2.0}
    page = render_html(summary)
    assert "<script>alert" not in page and "<img onerror" not in page and "<b>:" not in page and "&lt;nodes&gt;" in page


def test_a_long_record_is_cut_with_a_word_on_where_the_rest_is(summary: dict[str, Any]) -> None:
    page = render_html(summary)
    assert "more characters in the variant" in page and len(page) < 200_000


def test_a_missing_picture_is_left_out(summary: dict[str, Any], tmp_path: Path) -> None:
    assert "<img" not in render_html(summary, tmp_path)


def test_a_throttled_row_is_said_on_the_console() -> None:
    summary = whole_summary()
    summary["rows"][0]["throttled"] = ["software power cap"]
    console = Console(width=200, record=True, file=io.StringIO())
    print_table(summary, console)
    assert "! throttled: baseline on torch, batch 1: software power cap" in console.export_text()


def richer_summary() -> dict[str, Any]:
    """The made-up run with all that rows may hold: layers, cost, energy, 95th percentile, predictions, more judges."""
    summary = whole_summary()
    for r in summary["rows"]:
        if r["status"] == "done":
            for kind in ("image", "call"):
                r[f"{kind}_latency_ms"]["p95"] = r[f"{kind}_latency_ms"]["p50"] * 1.1
            r |= {"cost_per_1000": 12.5 / r["images_per_s"], "energy_j": 65 / r["images_per_s"]}
            if r["quality"]:
                by_class = {"per_class": [1.0, 0.9], "classes": [0, 7], "left_out": {"3": "4 images"}}
                r["quality"] |= {
                    "fd_dinov2": figure(140.0) | {"note": "too few images"},
                    "recall": figure(0.61),
                    "fd_per_class": figure(9.0) | by_class,
                }
                r["quality"]["class_accuracy"] |= by_class
    predicted = copy.deepcopy(summary["rows"][-1]) | {
        "variant": "final",
        "runner": "tensorrt",
        "predicted": True,
        "images_per_s": 9e9,
        "target": "a100",
        "status": "done",
        "batch": 16,
    }
    layers = [
        {"path": f"down.{i}", "kind": k, "macs": 10**i, "params": 100 * i, "bytes": 400 * i, "share_time": t}
        for i, (k, t) in enumerate((("Conv2d", 0.5), ("Linear", 0.1), ("GroupNorm", 0.4)))
    ]
    return summary | {"rows": [*summary["rows"], predicted], "layers": layers}  # fmt: skip


def test_columns_appear_where_rows_have_the_figures(summary: dict[str, Any]) -> None:
    plain, rich = ({c["key"] for c in columns.table(s)[0]} for s in (summary, richer_summary()))
    assert rich - plain == {"image95", "call95", "cost", "energy"}
    assert "| Cost / 1,000 | Energy J |" in render_markdown(richer_summary())


def test_a_predicted_row_is_marked_and_never_claimed(summary: dict[str, Any]) -> None:
    rich = richer_summary()
    assert figures.headline(rich) == figures.headline(summary), "the predicted row is faster, and does not count"
    page, text = render_html(rich), render_markdown(rich)
    assert page.count('<span class="badge">predicted</span>') == 1 and "Dashed circles are predicted" in page
    assert "final *predicted*" in text and "were not measured" in text
    assert "stroke-dasharray='3 3'" in charts.pareto(rich) and "predicted: final" in charts.pareto(rich)
    plain = render_html(summary)
    assert '<span class="badge">' not in plain and "not measured" not in plain


def test_rows_stand_along_the_recipes_way_and_refused_ones_last(summary: dict[str, Any]) -> None:
    names = [(r["variant"], r["status"]) for r in columns.table(summary)[1]]
    assert names[0] == ("baseline", "done") and names[-2:] == [("final", "done"), ("quantize", "refused")]


def test_layers_stand_heaviest_first_with_their_share_and_a_picture_by_kind() -> None:
    (section,) = layers.sections(richer_summary())
    assert [r["path"] for r in section["rows"]] == ["down.0", "down.2", "down.1"]
    assert [k for k, _ in section["columns"]] == ["macs", "params", "bytes", "share_time"]
    assert [c["text"] for c in section["rows"][0]["cells"]] == ["1.00", "0", "0 B", "50.0 %"]
    assert section["rows"][1]["cells"][0]["share"] == 1.0 and section["rows"][2]["cells"][0]["share"] == 0.1
    assert "Linear: 9.0 % of MACs" in section["svg"] and "GroupNorm: 40.0 % of time" in section["svg"]
    page, text = render_html(richer_summary()), render_markdown(richer_summary())
    assert 'id="layers"' in page and "## Layers" in text and "| down.2 | GroupNorm | 100 |" in text
    assert 'id="layers"' not in render_html(whole_summary()) and "## Layers" not in render_markdown(whole_summary())


def test_layers_may_come_by_network_and_with_holes() -> None:
    named = {
        "layers": {
            "baseline": [{"path": "a", "kind": None, "macs": None}],
            "final": [{"kind": "Conv2d", "extra": 3}, "junk"],
            "none": [],
        }
    }
    assert [s["name"] for s in layers.sections(named)] == ["baseline", "final"]
    assert render_html(named) and render_markdown(named)
    many = [{"path": str(i), "kind": f"kind{i}", "macs": 1} for i in range(20)]
    assert "14 other kinds" in layers.picture(many) and "5 lighter layers" in render_markdown({"layers": many})


def test_quality_has_a_line_a_figure_and_equal_variants_share_a_column() -> None:
    names, lines = judged.table(richer_summary())
    assert names == ["baseline", "fair", "prune", "recover", "distill", "quantize = final"]
    titles = [f"{title} {arrow}" for title, arrow, _ in lines]
    assert titles[:4] == ["FD ↓", "FD held-out ↓", "FD training ↓", "Recall ↑"] and titles[-1] == "FD · dinov2 ↓"
    value, interval, change, verdict = lines[0][2][2]
    assert (value, interval) == ("39.0", "37.0\u00a0to\u00a041.0") and verdict == "worse"
    assert change.startswith("Δ\u00a0+37.0")
    assert lines[0][2][0][2:] == ("", ""), "the baseline has no difference to itself"
    assert any(c[3] == "" and c[2] for c in {t: c for t, _, c in lines}["Accuracy"]), "the interval holds 0"


def test_figures_by_class_and_what_they_say_of_themselves_are_shown() -> None:
    rich = richer_summary()
    (accuracy, classes, rows), _ = judged.by_class(rich)
    assert (accuracy, classes) == ("Accuracy", ["0", "7"])
    assert [t for t, _ in rows[0][1]] == ["100.0 %", "90.0 %"] and rows[0][1][0][1] == 0.0 < rows[0][1][1][1]
    said = judged.notes(rich)
    assert any(n.startswith("FD · dinov2: too few images (baseline, fair") for n in said)
    assert any(n.startswith("FD, worst class, class 3 left out: 4 images") for n in said)
    assert "### Accuracy by class" in render_markdown(rich)


def test_a_gate_far_above_everything_is_written_and_does_not_flatten_the_plot(summary: dict[str, Any]) -> None:
    summary["gates"]["fd"]["limit"] = 3000.0
    svg = charts.pareto(summary)
    assert "gate: FD ≤ 3,000, far above" in svg and ">1000</text>" not in svg


def test_markdown_opens_with_the_verdict_and_shows_the_samples(summary: dict[str, Any]) -> None:
    assert "![the same seeds through every variant](samples/grid.png)" in render_markdown(summary)
    summary["targets"]["speedup_vs_fair"]["holds"] = True
    summary["targets_met"] = True
    assert "✓ all 8 gates hold, all 4 targets are met" in render_markdown(summary)


@pytest.mark.parametrize("key", ["path", "kind", "macs", "params", "bytes", "share_time"])
def test_every_report_survives_layers_that_lack_a_key(key: str) -> None:
    rich = richer_summary()
    for value in (None, "odd"):
        for layer in rich["layers"]:
            layer[key] = value
        assert render_markdown(rich) and render_html(rich)
