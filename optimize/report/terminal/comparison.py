"""The tables of `optimize compare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.measure import wording
from optimize.report import figures
from optimize.report.terminal.tables import Layout, plain, print_layout

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {"faster": "green", "slower": "bold red", "changed": "bold", "not compared": "yellow"}


# what shares a column on a narrow terminal
ROW = (("row", "what"), ("row", "what"))
BOTH = (("a", "b"), ("a", "b"))
VERDICT = (("verdict",), ("verdict",))
LATENCY: Layout = (
    (("row",), ("row",)),
    (("ratio", "95 % interval"), ("ratio", "95 % interval")),
    (("verdict", "basis"), ("verdict", "basis")),
)
SIZES: Layout = (ROW, BOTH, (("change",), ("change",)))
QUALITY: Layout = (ROW, BOTH, (("difference", "95 % interval"), ("difference", "95 % interval")), VERDICT)
GATES: Layout = ((("what",), ("what",)), BOTH)


def print_comparison(found: dict[str, Any], console: Console) -> None:
    """Print latency, size, quality and gates, as far as there is something to say, and rows of one side only."""
    console.print(f"a: {found['a']}\nb: {found['b']}", highlight=False, soft_wrap=True, markup=False)
    bases = list(dict.fromkeys(line["basis"] for line in found["latency"]))
    _table(console, "latency an image (a / b: above 1, b is faster)", _latency_rows(found["latency"], bases), LATENCY)
    for i, basis in enumerate(bases, 1):
        console.print(f"({i}) {basis}", highlight=False, soft_wrap=True, markup=False)
    _table(console, "sizes that changed", [_size_row(x) for x in found["size"]], SIZES)
    changed = [x for x in found["quality"] if x["verdict"] == "changed"]
    _table(console, "quality that changed (b - a)", [_quality_row(x) for x in changed], QUALITY)
    if same := len(found["quality"]) - len(changed):
        console.print(f"{same} quality figures: no difference shown", highlight=False)
    _table(console, "gates and targets whose outcome changed", [_gate_row(x) for x in found["gates"]], GATES)
    for side in ("a", "b"):
        if rows := found[f"only_in_{side}"]:
            console.print(f"only in {side}: {', '.join(rows)}", highlight=False, soft_wrap=True, markup=False)


def _table(console: Console, title: str, rows: list[dict[str, str]], narrow: Layout) -> None:
    if rows:
        layouts = (plain(list(rows[0])), narrow)
        print_layout(console, title, layouts, rows, words=("row", "what"), style=lambda text: STYLES.get(text, ""))


def _latency_rows(lines: list[dict[str, Any]], bases: list[str]) -> list[dict[str, str]]:
    """The basis of a verdict by its number in `bases`."""
    return [
        {
            "row": x["row"],
            "ratio": figures.ratio_text(x["ratio"]),
            "95 % interval": figures.interval_text(x["ratio"]) or wording.DASH,
            "verdict": x["verdict"],
            "basis": f"({bases.index(x['basis']) + 1})",
        }
        for x in lines
    ]


def _size_row(x: dict[str, Any]) -> dict[str, str]:
    text = wording.bytes_text if x["what"] == "size_bytes" else wording.count_text
    change = f"{100 * (x['b'] / x['a'] - 1):+.1f} %" if x["a"] else wording.DASH
    return {
        "row": x["row"],
        "what": figures.plain(x["what"]),
        "a": text(x["a"]),
        "b": text(x["b"]),
        "change": change,
    }


def _quality_row(x: dict[str, Any]) -> dict[str, str]:
    low, high = figures.bounds(x["difference"])
    return {
        "row": x["row"],
        "what": figures.plain(x["what"]),
        "a": wording.digits(x["a"]),
        "b": wording.digits(x["b"]),
        "difference": wording.digits(x["difference"]),
        "95 % interval": f"[{wording.digits(low)}, {wording.digits(high)}]",
        "verdict": x["verdict"],
    }


def _gate_row(x: dict[str, Any]) -> dict[str, str]:
    words = {True: "holds", False: "fails" if x["kind"] == "gate" else "missed", None: "not judged"}
    return {
        "what": f"{x['kind']} {figures.plain(x['name'])}",
        "a": f"{words[x['a']]} ({figures.any_text(x['a_value'])})",
        "b": f"{words[x['b']]} ({figures.any_text(x['b_value'])})",
    }
