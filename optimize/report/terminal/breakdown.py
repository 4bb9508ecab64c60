"""An inspected model as tables on a console and as a picture: where parameters, MACs, bytes and time go."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.measure.wording import DASH, bytes_text, count_text, percent_text, seconds_text
from optimize.report.terminal.tables import Layout, plain, print_layout
from optimize.storage import ledger
from optimize.storage.commit import write_bytes_atomically

if TYPE_CHECKING:
    from rich.console import Console

Report = dict[str, Any]
WRITTEN = ("layers.png", "layers.json")
WIDE = 100  # columns from which every figure has its place
PARTS: Layout = (
    (("part",), ("part",)),
    (("params", "MACs", "size"), ("params", "MACs", "size")),
    (("predicted", "90 %"), ("predicted", "90 %")),
    (("measured",), ("measured",)),
)
ALL: Layout = (
    *plain(["layer", "params", "MACs", "moved", "measured", "share", "roofline"]),
    (("share",), ("roofline share",)),
    (("bound by",), ("bound by",)),
)
FEWER: Layout = (
    *plain(["layer", "params", "MACs", "measured", "share"]),
    (("roofline",), ("roofline share",)),
    (("bound by",), ("bound by",)),
)
LAYERS: Layout = (
    (("layer", "bound by"), ("layer", "bound by")),
    (("params", "MACs"), ("params", "MACs")),
    (("measured", "share"), ("measured", "share")),
    (("roofline",), ("roofline share",)),
)
SHOWN = 20  # rows of a part in the table and in the picture; the rest is one row


def print_breakdown(report: Report, console: Console) -> None:
    """Totals of every part, its layers the longest first, remarks, and how an image divides between the parts."""
    _print_totals(report, console)
    for part in report["parts"]:
        if part["layers"]:
            _print_layers(part, console)
    for part in report["parts"]:
        if part["note"]:
            console.print(f"{part['name']}: {part['note']}", soft_wrap=True, markup=False)
    if report["measured_on"]:
        console.print(f"Measured: {report['measured_on']}.", soft_wrap=True)
    console.print(f"Predictions rest on: {report['rates']}.", soft_wrap=True)
    if report["balance"]:
        console.print(balance_text(report["balance"]), soft_wrap=True)


def balance_text(balance: dict[str, Any]) -> str:
    """When the denoiser stops dominating, in a sentence."""
    kind = "measured" if balance["measured"] else "predicted"
    one, rest = seconds_text(balance["denoiser_s"]), seconds_text(balance["rest_s"])
    says = f"One denoiser call takes {one}, the other parts {rest} an image ({kind})"
    if balance["calls"] < 1:
        return f"{says}: the denoiser dominates even with a single call."
    plural = "call" if balance["calls"] == 1 else "calls"
    return f"{says}: with {balance['calls']} {plural} or fewer the denoiser no longer dominates; a guided step is two."


def _print_totals(report: Report, console: Console) -> None:
    title = f"{report['model']} · batch {report['batch']} · {report['target']} {report['format']}, predicted"
    rows = [
        {
            "part": p["name"],
            "params": count_text(p["params"]),
            "MACs": count_text(p["macs"]),
            "size": bytes_text(p["size_bytes"]),
            "memory": bytes_text(p["memory_bytes"]),
            "predicted": seconds_text(p["predicted_s"]),
            "90 %": f"{seconds_text(p['low_s'])}–{seconds_text(p['high_s'])}" if p["low_s"] is not None else DASH,
            "measured": seconds_text(p["measured_s"]),
        }
        for p in report["parts"]
    ]
    every = list(rows[0]) if rows else ["part"]
    layouts = _by_width(console, plain(every), plain([k for k in every if k != "memory"]), PARTS)
    print_layout(console, title, layouts, rows, words=("part",))


def _print_layers(part: dict[str, Any], console: Console) -> None:
    title = f"{part['name']} ({part['class']}): layers by time"
    rows = [
        {
            "layer": row["path"],
            "params": count_text(row["params"]),
            "MACs": count_text(row["macs"]),
            "moved": bytes_text(row["bytes"]),
            "measured": seconds_text(row["measured_s"]),
            "share": _share(row, part, "measured_s"),
            "roofline": seconds_text(row["predicted_s"]),
            "roofline share": _share(row, part, "predicted_s"),
            "bound by": row["bound"],
        }
        for row in folded(part["layers"])
    ]
    print_layout(console, title, _by_width(console, ALL, FEWER, LAYERS), rows, words=("layer", "bound by"))


def _by_width(console: Console, wide: Layout, *others: Layout) -> tuple[Layout, ...]:
    """The layouts to try; the one with every figure on a wide terminal alone."""
    return (wide, *others) if console.width >= WIDE else others


def _share(row: dict[str, Any], part: dict[str, Any], key: str) -> str:
    return percent_text(row[key] / part[key]) if part[key] else DASH


def folded(rows: list[dict[str, Any]], shown: int = SHOWN) -> list[dict[str, Any]]:
    """The first `shown` rows, and one that sums those after them."""
    kept, rest = rows[:shown], rows[shown:]
    if not rest:
        return kept
    sums = {k: sum(r[k] for r in rest) for k in ("params", "macs", "bytes", "predicted_s")}
    measured = None if rest[0]["measured_s"] is None else sum(r["measured_s"] for r in rest)
    return [*kept, {"path": f"{len(rest)} others", "bound": DASH, "measured_s": measured, **sums}]


def picture(report: Report, path: Path) -> Path:
    """Write what `drawn` draws. The suffix (.png, .svg) is the format. Returns the path. Raises EnvironmentLacks where it
    cannot be written."""
    write_bytes_atomically(path, drawn(report, path.suffix.removeprefix(".")))
    return path


def drawn(report: Report, format: str = "png") -> bytes:
    """A picture file of horizontal bars, a panel a part: each layer's share of time, MACs and bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(p, folded(p["layers"])) for p in report["parts"] if p["layers"]]
    heights = [0.45 * len(rows) + 1.4 for _, rows in panels]
    figure = Figure(figsize=(10, sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{Path(report['model']).name}, batch {report['batch']}: where it goes")
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    for axis, (part, rows) in zip(axes, panels):
        _panel(axis, part, rows, report)
    made = io.BytesIO()
    figure.savefig(made, dpi=120, format=format)
    return made.getvalue()


def write_out(report: Report, out: Path) -> None:
    """The report as a picture and as JSON in the folder `out`; over what an inspection wrote there, and nothing else."""
    with ledger.opened(out, WRITTEN, _earlier) as put:
        put(WRITTEN[0], drawn(report))
        put(WRITTEN[1], (json.dumps(report, indent=1) + "\n").encode())


def check_out(out: Path) -> None:
    """Raise, before anything is measured, where `write_out` would."""
    ledger.refuse_edited(out, WRITTEN, _earlier)


def _earlier(out: Path) -> bool:
    """Whether an inspection of an earlier version, which kept no ledger, wrote into this folder."""
    try:
        found = json.loads((out / WRITTEN[1]).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"model", "batch", "parts"} <= found.keys()


def _panel(axis: Any, part: dict[str, Any], rows: list[dict[str, Any]], report: Report) -> None:
    """Bars of one part, the longest layer on top."""
    predicted = f"time, predicted ({report['target']})"
    series = [("time, measured", "measured_s", "#2f6fde"), (predicted, "predicted_s", "#8fb3f0")]
    series += [("MACs", "macs", "#b4610a"), ("bytes moved", "bytes", "#98a2b3")]
    known = [(label, key, colour) for label, key, colour in series if rows[0][key] is not None]
    thick = 0.84 / len(known)
    for i, (label, key, colour) in enumerate(known):
        total = sum(r[key] for r in rows) or 1
        places = [y + (i - (len(known) - 1) / 2) * thick for y in range(len(rows))]
        axis.barh(places, [100 * r[key] / total for r in rows], height=thick, color=colour, label=label)
    axis.set_yticks(range(len(rows)), [r["path"] for r in rows])
    axis.margins(y=0.01)
    axis.invert_yaxis()
    axis.set_xlabel("share, %")
    axis.set_title(f"{part['name']} ({part['class']})", loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False)
