"""The reports: what they say of a whole summary, of one full of holes, and what the page does in a browser."""

from __future__ import annotations

import copy
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.summaries import PIXEL, whole_summary

from optimize.measure import wording
from optimize.report import charts, figures
from optimize.report.html import render_html
from optimize.report.markdown import render_markdown
from optimize.report.terminal.summary import print_table


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
    assert wording.number(figures.quality(summary, rows[0], "fd")) == 2.61
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
    assert wording.digits(given) == text


def test_units_follow_the_size() -> None:
    assert wording.bytes_text(1_270_000) == "1.27 MB" and wording.count_text(81_620_000) == "81.6 M"
    assert [wording.seconds_text(s) for s in (0.0123, 4.0, 168, 9000)] == ["12.3 ms", "4.00 s", "2.80 min", "2.50 h"]


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


def test_a_gate_far_above_everything_is_written_and_does_not_flatten_the_plot(summary: dict[str, Any]) -> None:
    summary["gates"]["fd"]["limit"] = 3000.0
    svg = charts.pareto(summary)
    assert "gate: FD ≤ 3,000, far above" in svg and ">1000</text>" not in svg


def test_markdown_opens_with_the_verdict_and_shows_the_samples(summary: dict[str, Any]) -> None:
    assert "![the same seeds through every variant](samples/grid.png)" in render_markdown(summary)
    summary["targets"]["speedup_vs_fair"]["holds"] = True
    summary["targets_met"] = True
    assert "✓ all 8 gates hold, all 4 targets are met" in render_markdown(summary)
