"""The table of `optimize bench`: a row a variant, marks for what disturbed it, speed-up against the first row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.measure import wording
from optimize.measure.record import Measurement, speedup
from optimize.report import figures

if TYPE_CHECKING:
    from rich.console import Console

NOTES = {
    "~": "~ noisy: other work on this machine disturbed the timing; its interval says by how much",
    "!": "! throttled: the processor or GPU ran slower than it can during the turns",
}


WIDE = 170  # columns from which a row is one line


def print_bench(rows: list[Measurement], console: Console) -> None:
    """Print the rows, then those without figures with their reason, and what the marks mean."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    done = [m for m in rows if m.done]
    if done:
        table = Table(
            title=_title(done[0]), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        shown = columns(done)
        for name in shown:
            table.add_column(name, justify="left" if name == "row" else "right", no_wrap=True, overflow="ellipsis")
        between = "  " if console.width >= WIDE else "\n"
        for m in done:
            texts = cells(m, done[0])
            table.add_row(*(between.join(texts[name]) for name in shown))
        console.print(table)
    for m in rows:
        if not m.done:
            console.print(Text(f"{m.status}: {m.key}: {m.reason}", "yellow"), highlight=False)
    for note in notes(done):
        console.print(Text(note, "yellow"), highlight=False)


def _title(first: Measurement) -> str:
    return f"median, its 95 % interval, p95, p99 · speed-up an image against {first.key}"


def columns(done: list[Measurement]) -> list[str]:
    """Titles of the columns that hold a figure in any row."""
    found = [cells(m, done[0]) for m in done]
    return [name for name in found[0] if any(set(texts[name]) != {wording.DASH} for texts in found)]


def cells(m: Measurement, first: Measurement) -> dict[str, tuple[str, ...]]:
    """A row's texts, one to three lines each, by column title."""
    ratio = speedup(first, m)
    name, spec, batch = ([*m.key.rsplit("/", 2), "", ""])[:3]
    return {
        "row": (name + marks(m), f"{spec} · {batch}", f"{m.nfe} NFE"),
        "call ms": _latency(m.call_latency(), 1),
        "image ms": _latency(m.image_latency(), m.variant.batch),
        "images/s, peak": (wording.digits(m.images_per_s().value), wording.bytes_text(m.peak_memory_bytes)),
        "device peak": (wording.bytes_text(m.device_peak_bytes),),
        "J/image": (wording.digits(m.energy_j),),
        "speed-up": (figures.ratio_text(ratio.value), figures.interval_text(ratio.to_json())),
    }


def marks(m: Measurement) -> str:
    """` ~` where noisy, ` !` where throttled."""
    return (" ~" if m.noisy else "") + (" !" if m.throttled else "")


def notes(done: list[Measurement]) -> list[str]:
    """What the marks in the table mean, and why a column is empty."""
    seen = "".join(marks(m) for m in done)
    reasons = dict.fromkeys(m.energy["reason"] for m in done if "reason" in m.energy)
    return [text for mark, text in NOTES.items() if mark in seen] + [f"no figure: {r}" for r in reasons]


def _latency(latency: dict[str, Any], per: int) -> tuple[str, ...]:
    low, middle, high, p95, p99 = (wording.digits(latency[k] * 1e3 / per) for k in ("low", "p50", "high", "p95", "p99"))
    return middle, f"[{low}, {high}]", f"{p95}, {p99}"
