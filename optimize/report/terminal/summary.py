"""The table at the end of a run: a row a variant, on one line where the terminal is wide, on up to four where not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.measure import wording
from optimize.measure.wording import DASH
from optimize.report import figures, speedups
from optimize.report.figures import Check, Row, Summary
from optimize.report.terminal.tables import Layout, one_each, print_layout

if TYPE_CHECKING:
    from rich.console import Console

TIMES: Layout = (
    (("call ms", "p99"), ("call50", "call99")),
    (("image ms", "p99"), ("image50", "image99")),
    (("images/s", "peak mem"), ("rate", "memory")),
    (("FD", "PSNR"), ("fd", "psnr")),
    (("speed-up", "interval"), ("ratio", "interval")),
    (("gates", "targets"), ("gates", "targets")),
)
TWOS: Layout = (
    (("variant", "runner"), ("variant", "runner")),
    (("size", "params"), ("size", "params")),
    (("MACs", "NFE"), ("macs", "nfe")),
    *TIMES,
)
THREES: Layout = (
    (("variant", "runner", "NFE"), ("variant", "runner", "evaluations")),
    (("size", "params", "MACs"), ("size", "params", "macs")),
    *TIMES,
)
FOURS: Layout = (
    (("variant", "runner", "NFE"), ("variant", "runner", "evaluations")),
    (("size", "params", "MACs", "peak mem"), ("size", "params", "macs", "memory")),
    (("call ms", "p99", "image ms", "p99"), ("call50", "call99", "image50", "image99")),
    (("images/s", "FD", "PSNR"), ("rate", "fd", "psnr")),
    (("speed-up", "interval", "gates", "targets"), ("ratio", "interval", "gates", "targets")),
)
LAYOUTS = (one_each(TWOS), TWOS, THREES, FOURS)
WORDS = ("variant", "runner")


def print_table(summary: Summary, console: Console) -> None:
    """Print the table of variants at the largest batch, then rows without figures, misses or the verdict, whether the
    timing was noisy, the factors of the speed-up, and the headline."""
    batch = figures.headline_batch(summary)
    _print_variants(summary, batch, console)
    for line in _problems(summary):
        console.print(line, highlight=False)
    for check in figures.misses(summary):
        console.print(_miss(check), highlight=False)
    if not figures.misses(summary):
        console.print(_verdict(summary), highlight=False)
    if noise := speedups.noise(summary):
        console.print(_text(f"~ {noise}", "bold yellow"), highlight=False)
    if factors := _factors(summary):
        console.print(_text(factors, ""), highlight=False)
    head = figures.headline(summary)
    console.print(_text(f"{head.sentence} {head.cost}".strip(), "bold"), highlight=False)


def _print_variants(summary: Summary, batch: int | None, console: Console) -> None:
    title = f"{summary.get('recipe') or 'run'} · batch {batch if batch is not None else DASH} · baseline is eager torch, others on their fastest runner"
    found = [r for v in figures.variants(summary) if (r := figures.shown(summary, v, batch)) is not None]
    strong = [i for i, row in enumerate(found) if row.get("variant") == "final"]
    print_layout(console, title, LAYOUTS, [_texts(summary, r) for r in found], words=WORDS, strong=strong)


def _texts(summary: Summary, row: Row) -> dict[str, str]:
    value = figures.speedup(row, "vs_baseline")
    low, high = figures.bounds(value)
    times = {f"{k}{p}": wording.digits(figures.latency(row, k, f"p{p}")) for k in ("call", "image") for p in (50, 99)}
    return times | {
        "variant": str(row.get("variant")),
        "runner": figures.runner(row),
        "size": wording.bytes_text(row.get("size_bytes")),
        "params": wording.count_text(row.get("params")),
        "macs": wording.count_text(row.get("macs")),
        "nfe": figures.any_text(row.get("nfe")),
        "evaluations": f"{figures.any_text(row.get('nfe'))} NFE",
        "rate": wording.digits(row.get("images_per_s")) + (" ~" if row.get("noisy") else ""),
        "memory": wording.bytes_text(row.get("peak_memory_bytes")),
        "fd": wording.digits(figures.quality(summary, row, "fd")),
        "psnr": wording.digits(figures.quality(summary, row, "psnr_db")),
        "ratio": figures.ratio_text(value),
        "interval": DASH if low is None else f"{wording.digits(low)}–{wording.digits(high)}",
        "gates": figures.tally(row.get("gates")),
        "targets": figures.tally(row.get("targets")),
    }


def _problems(summary: Summary) -> list[Any]:
    """A line for every row that has no figures, with its reason, and for what the run notes of itself."""
    lines = figures.lost(summary)
    lines += [f"! {note}" for note in summary.get("notes") or ()]
    lines += [f"! throttled: {figures.place(r)}: {', '.join(r['throttled'])}" for r in figures.throttled(summary)]
    return [_text(line, "yellow") for line in lines]


def _factors(summary: Summary) -> str:
    """`Speed-up: runner ×1.87 [1.80, 1.95], solver ×8.30 …`."""
    known = {k: v for k, v in speedups.factors(summary).items() if wording.number(v) is not None}
    told = [f"{figures.plain(k)} ×{wording.digits(v)} {figures.interval_text(v)}".strip() for k, v in known.items()]
    return f"Factors of the speed-up: {', '.join(told)}." if told else ""


def _miss(check: Check) -> Any:
    words = {"gate": "✗ GATE FAILED", "target": "✗ target missed"}[check.kind]
    note = f" ({check.note})" if check.note else ""
    style = "bold red" if check.kind == "gate" else "yellow"
    return _text(f"{words}: {check.name} is {check.value}, asked for {check.sign} {check.limit}{note}", style)


def _verdict(summary: Summary) -> Any:
    verdict = figures.verdict(summary)
    if verdict != "passed":
        return _text(
            {"failed": "✗ The gates did not pass", "missed": "✗ The targets were not met"}[verdict], "bold red"
        )
    counts = {kind: len(figures.checks(summary, kind)) for kind in ("gate", "target")}
    if not any(counts.values()):
        return _text("No gate and no target was judged", "yellow")
    targets = f", all {counts['target']} targets met" if counts["target"] else ""
    return _text(f"✓ All {counts['gate']} gates hold{targets}", "green")


def _text(line: str, style: str) -> Any:
    from rich.text import Text

    return Text(line, style)
