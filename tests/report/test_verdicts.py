"""The quality section: a line a figure, equal variants in one column, figures by class, remarks."""

from __future__ import annotations

from support.summaries import richer_summary

from optimize.report import verdicts
from optimize.report.html import render_html
from optimize.report.markdown import render_markdown


def test_quality_has_a_line_a_figure_and_equal_variants_share_a_column() -> None:
    names, lines = verdicts.table(richer_summary())
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
    (accuracy, classes, rows), _ = verdicts.by_class(rich)
    assert (accuracy, classes) == ("Accuracy", ["0", "7"])
    assert [t for t, _ in rows[0][1]] == ["100.0 %", "90.0 %"] and rows[0][1][0][1] == 0.0 < rows[0][1][1][1]
    said = verdicts.notes(rich)
    assert "FD · dinov2: too few images (every variant)" in said
    assert "FD, worst class: left out class 3. Class 3: 4 images (every variant)" in said
    for row in rich["rows"][:4]:  # the baseline's
        row["quality"]["fd_dinov2"].pop("note")
    assert any(n.startswith("FD · dinov2: too few images (fair, prune") for n in verdicts.notes(rich))
    assert "### Accuracy by class" in render_markdown(rich)


def test_what_judged_and_how_images_reached_it_is_said() -> None:
    rich = richer_summary()
    assert verdicts.judges(rich) == ["features: dinov2 a/b (the class token)", "classifier: c"]
    assert "- judged by features: dinov2 a/b (the class token)" in render_markdown(rich)
    page = " ".join(render_html(rich).split())
    assert "Judged by features: dinov2 a/b (the class token); classifier: c. 1,000 images of every variant." in page
