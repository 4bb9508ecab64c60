"""A noisy timing is said where the claim is made: in the banner and beside the headline's figure."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from support.summaries import whole_summary

from optimize.report import charts, figures, speedups
from optimize.report.html import render_html
from optimize.report.markdown import render_markdown
from optimize.report.terminal.summary import print_table

BANNER = "Timing was noisy: other work on this machine disturbed"


@pytest.fixture
def summary() -> dict[str, Any]:
    found = whole_summary()
    for row in found["rows"]:
        row["noisy"] = False
    return found


def disturb(summary: dict[str, Any], variant: str, runner: str | None = None) -> None:
    for row in summary["rows"]:
        if row["variant"] == variant and runner in (None, row["runner"]):
            row["noisy"] = True


def console_text(summary: dict[str, Any]) -> str:
    out = io.StringIO()
    print_table(summary, Console(file=out, width=500, color_system=None))
    return out.getvalue()


def every(summary: dict[str, Any]) -> dict[str, str]:
    html = " ".join(render_html(summary).split())
    return {"html": html, "markdown": render_markdown(summary), "console": console_text(summary)}


@pytest.mark.parametrize("variant", ["final", "baseline"])
def test_a_noisy_row_behind_the_headline_is_said_in_the_banner_and_beside_the_figure(
    summary: dict[str, Any], variant: str
) -> None:
    disturb(summary, variant)
    for kind, text in every(summary).items():
        assert BANNER in text and "214× [201, 227] against the baseline" in text, kind
        assert "214× [201, 227], noisy, the baseline&#39;s rate".replace("&#39;", "'") in text.replace("&#39;", "'"), (
            kind
        )
    assert "5.40× [5.08, 5.72], noisy," in figures.headline(summary).sentence or variant == "baseline"


def test_the_banner_stands_before_the_headline(summary: dict[str, Any]) -> None:
    disturb(summary, "final")
    for kind, text in every(summary).items():
        assert text.index(BANNER) < text.index("The final model makes"), kind
    html = render_html(summary)
    assert html.index('class="banner') < html.index(BANNER) < html.index("</section>")


def test_the_tiles_say_noisy(summary: dict[str, Any]) -> None:
    disturb(summary, "final")
    details = [detail for _, _, detail in figures.headline(summary).tiles[:2]]
    assert details == ["95 % interval 201 to 227×, noisy", "95 % interval 5.08 to 5.72×, noisy"]


def test_noise_elsewhere_is_told_as_such(summary: dict[str, Any]) -> None:
    disturb(summary, "prune")
    assert speedups.noise(summary) == f"{BANNER} 1 of 15 rows, none of them behind the headline's speed-ups."
    assert ", noisy" not in figures.headline(summary).sentence


def test_a_quiet_run_says_nothing_of_noise_and_shows_its_interval(summary: dict[str, Any]) -> None:
    assert speedups.noise(summary) == "" and speedups.noise({}) == ""
    assert all("noisy" not in text for text in (render_markdown(summary), console_text(summary)))
    assert BANNER not in render_html(summary)
    assert "214× [201, 227] the baseline's rate" in figures.headline(summary).sentence


def test_factors_stand_with_their_intervals_in_every_report(summary: dict[str, Any]) -> None:
    summary["factor_intervals"] = {"solver": {"ratio": 8.3, "low": 7.9, "high": 8.8}}
    for kind, text in every(summary).items():
        assert "8.30" in text and "[7.90, 8.80]" in text, kind
        assert "×2.02" in text, kind  # one without an interval, as in summaries of earlier versions


def test_a_factor_may_hold_its_interval_itself() -> None:
    summary = {"factors": {"solver": {"ratio": 10.0, "low": 9.0, "high": 11.0}}}
    assert speedups.factors(summary) == summary["factors"]
    assert "×10.0 [9.00, 11.0]" in charts.waterfall(speedups.factors(summary)) and speedups.whole(summary) == 10.0


def test_all_factors_together_have_the_interval_of_the_speed_up(summary: dict[str, Any]) -> None:
    final = summary["rows"][-1]["speedup"]["vs_baseline"]
    summary["factors"] = {"solver": final["ratio"] / 4, "runner": 4.0}
    assert speedups.whole(summary) == final
    assert "214× [201, 227]" in charts.waterfall(summary["factors"], speedups.whole(summary))
    summary["factors"]["runner"] = 5.0  # does not lead to the final row
    assert speedups.whole(summary) == pytest.approx(final["ratio"] * 5 / 4)


def test_a_speed_up_without_interval_leaves_no_gap() -> None:
    row = {
        "variant": "final",
        "batch": 1,
        "status": "done",
        "noisy": True,
        "images_per_s": 2.0,
        "speedup": {"vs_baseline": 3.0},
    }
    text = speedups.noise({"rows": [row]})
    assert "3.00× against the baseline" in text and "  " not in text
