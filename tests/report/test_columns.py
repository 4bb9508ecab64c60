"""The table of measurements: columns that appear where rows have figures, predicted rows, order."""

from __future__ import annotations

from support.summaries import richer_summary, whole_summary

from optimize.report import charts, columns, figures
from optimize.report.html import render_html
from optimize.report.markdown import render_markdown


def test_columns_appear_where_rows_have_the_figures() -> None:
    summary = whole_summary()
    plain, rich = ({c["key"] for c in columns.table(s)[0]} for s in (summary, richer_summary()))
    assert rich - plain == {"image95", "call95", "cost", "energy"}
    assert "| Cost / 1,000 | Energy J |" in render_markdown(richer_summary())


def test_what_the_output_means_is_told_where_a_pass_changed_it() -> None:
    summary = whole_summary()
    for row in summary["rows"]:
        row["head"] = "epsilon"
    assert "head" not in {c["key"] for c in columns.table(summary)[0]}
    changed = [r for r in summary["rows"] if r["variant"] in ("distill", "quantize", "final")]
    for row in changed:
        row["head"] = "v"
    cells = [{c["key"]: c["text"] for c in r["cells"]}["head"] for r in columns.table(summary)[1]]
    assert cells.count("v") == len(changed) and cells[0] == "epsilon"
    summary["stages"] = [{"name": "distill", "id": "a" * 64, "record": {"head": "epsilon re-read as v"}}]
    text, page = render_markdown(summary), render_html(summary)
    assert "| distill: epsilon re-read as v |" in text and "| Precision | Head |" in text
    assert "epsilon re-read as v" in page


def test_a_predicted_row_is_marked_and_never_claimed() -> None:
    summary = whole_summary()
    rich = richer_summary()
    assert figures.headline(rich) == figures.headline(summary), "the predicted row is faster, and does not count"
    page, text = render_html(rich), render_markdown(rich)
    assert page.count('<span class="badge">predicted</span>') == 1 and "Dashed circles are predicted" in page
    assert "final *predicted*" in text and "were not measured" in text
    assert "stroke-dasharray='3 3'" in charts.pareto(rich) and "predicted: final" in charts.pareto(rich)
    plain = render_html(summary)
    assert '<span class="badge">' not in plain and "not measured" not in plain


def test_rows_stand_along_the_recipes_way_and_refused_ones_last() -> None:
    summary = whole_summary()
    names = [(r["variant"], r["status"]) for r in columns.table(summary)[1]]
    assert names[0] == ("baseline", "done") and names[-2:] == [("final", "done"), ("quantize", "refused")]
