"""The table of `optimize bench`: a row a variant, marks for what disturbed it, speed-up against the first row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.measure.measurement import Measurement, speedup
from optimize.report import figures

if TYPE_CHECKING:
    from rich.console import Console

NOTES = {
    "~": "~ noisy: other work on this machine disturbed the timing; its interval says by how much",
    "!": "! throttled: the processor or GPU ran slower than it can during the turns",
}


def print_bench(rows: list[Measurement], console: Console) -> None:
    """Print the rows, then those without figures with their reason, and what the marks mean."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    done = [m for m in rows if m.done]
    if done:
        title = f"latency in ms: median [95 % interval], p95, p99 · speed-up an image, against {done[0].key}"
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for i, name in enumerate(columns(done)):
            table.add_column(name, justify="right" if i else "left", no_wrap=not i, overflow="fold")
        for m in done:
            table.add_row(*cells(m, done[0]).values())
        console.print(table)
    for m in rows:
        if not m.done:
            console.print(Text(f"{m.status}: {m.key}: {m.reason}", "yellow"), highlight=False)
    for note in notes(done):
        console.print(Text(note, "yellow"), highlight=False)


def columns(done: list[Measurement]) -> list[str]:
    """Titles of the table's columns."""
    return list(cells(done[0], done[0]))


def cells(m: Measurement, first: Measurement) -> dict[str, str]:
    """A row's texts by column title."""
    call, image = m.call_latency(), m.image_latency()
    ratio = speedup(first, m)
    return {
        "row": m.key + marks(m),
        "NFE": str(m.nfe),
        "call": _latency(call, 1),
        "call p95": figures.digits(call["p95"] * 1e3),
        "call p99": figures.digits(call["p99"] * 1e3),
        "image": _latency(image, m.variant.batch),
        "image p95": figures.digits(image["p95"] * 1e3 / m.variant.batch),
        "image p99": figures.digits(image["p99"] * 1e3 / m.variant.batch),
        "images/s": figures.digits(m.images_per_s().value),
        "host peak": figures.bytes_text(m.peak_memory_bytes),
        "device peak": figures.bytes_text(device_peak(m)),
        "J/image": figures.digits(m.energy_j),
        "speed-up": f"{figures.ratio_text(ratio.value)} {figures.interval_text(ratio.to_json())}",
    }


def device_peak(m: Measurement) -> int | None:
    """Most device memory of the process: NVML's figure, which counts the context, else the allocator's."""
    return m.memory.get("device_process_peak_bytes") or m.memory.get("device_peak_bytes")


def marks(m: Measurement) -> str:
    """` ~` where noisy, ` !` where throttled."""
    return (" ~" if m.noisy else "") + (" !" if m.throttled else "")


def notes(done: list[Measurement]) -> list[str]:
    """What the marks in the table mean, and why a column is empty."""
    seen = "".join(marks(m) for m in done)
    reasons = dict.fromkeys(m.energy["reason"] for m in done if "reason" in m.energy)
    return [text for mark, text in NOTES.items() if mark in seen] + [f"no figure: {r}" for r in reasons]


def _latency(latency: dict[str, Any], per: int) -> str:
    low, middle, high = (figures.digits(latency[k] * 1e3 / per) for k in ("low", "p50", "high"))
    return f"{middle} [{low}, {high}]"
