"""The table of `optimize bench`: a row a variant, marks for what disturbed it, speed-up against the first row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.measure import wording
from optimize.measure.record import Measurement, speedup
from optimize.report import figures
from optimize.report.terminal.tables import Layout, plain, print_layout

if TYPE_CHECKING:
    from rich.console import Console

NOTES = {
    "~": "~ noisy: other work on this machine disturbed the timing; its interval says by how much",
    "!": "! throttled: the processor or GPU ran slower than it can during the turns",
}


LATENCY = ("low", "p50", "high", "p95", "p99")


def print_bench(rows: list[Measurement], console: Console) -> None:
    """Print the rows, then those without figures with their reason, and what the marks mean."""
    from rich.text import Text

    done = [m for m in rows if m.done]
    if done:
        shown = columns(done)
        layouts = (plain(shown), _stacked(done, shown), _narrow(shown))
        texts = [_texts(m, done[0]) for m in done]
        print_layout(console, _title(done[0]), layouts, texts, words=("row", "row 0"))
    for m in rows:
        if not m.done:
            console.print(Text(f"{m.status}: {m.key}: {m.reason}", "yellow"), highlight=False)
    for note in notes(done):
        console.print(Text(note, "yellow"), highlight=False)


def _texts(m: Measurement, first: Measurement) -> dict[str, str]:
    """A row's texts: a column's lines joined under its title, and each line under the title and its number; then what
    the narrow layout shows apart."""
    texts: dict[str, str] = {}
    for title, lines in cells(m, first).items():
        texts |= {title: "  ".join(lines)} | {f"{title} {i}": line for i, line in enumerate(lines)}
    low, high = (wording.digits(x) for x in figures.bounds(speedup(first, m).to_json()))
    texts |= {"speed-up low": low, "speed-up high": high}
    for title, latency, per in (("call", m.call_latency(), 1), ("image", m.image_latency(), m.variant.batch)):
        texts |= {f"{title} {k}": wording.digits(latency[k] * 1e3 / per) for k in LATENCY}
    return texts


def _stacked(done: list[Measurement], shown: list[str]) -> Layout:
    """A column a title, its lines above each other."""
    found = cells(done[0], done[0])
    return tuple((tuple(title.split(", ")), tuple(f"{title} {i}" for i in range(len(found[title])))) for title in shown)


def _narrow(shown: list[str]) -> Layout:
    """A column a kind of figure, the ends of intervals on lines of their own."""
    times = [
        (
            (f"{kind} ms", "low", "high", "p95", "p99"),
            tuple(f"{kind} {k}" for k in ("p50", "low", "high", "p95", "p99")),
        )
        for kind in ("call", "image")
    ]
    kept = {"images/s": "images/s, peak 0", "peak": "images/s, peak 1"} | {t: t for t in ("device peak", "J/image")}
    usage = {title: key for title, key in kept.items() if title in shown or key not in kept}
    return (
        (("row",), ("row 0", "row 1", "row 2")),
        *times,
        (tuple(usage), tuple(usage.values())),
        (("speed-up", "low", "high"), ("speed-up 0", "speed-up low", "speed-up high")),
    )


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
