"""The table at the end of a run: a row a variant, on one line where the terminal is wide, on two or three where not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.measure import wording
from optimize.measure.wording import DASH
from optimize.report import figures
from optimize.report.figures import Check, Row, Summary

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ONE_LINE = 160  # columns from which every figure has a column of its own

TWO_LINES = 100  # columns from which two figures share a column; below, some share it in threes

# (titles, keys) of the figures that share a column where space is short
Groups = tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
TIMES: Groups = (
    (("call ms", "p99"), ("call50", "call99")),
    (("image ms", "p99"), ("image50", "image99")),
    (("images/s", "peak mem"), ("rate", "memory")),
    (("FD", "PSNR"), ("fd", "psnr")),
    (("speed-up", "interval"), ("ratio", "interval")),
    (("gates", "targets"), ("gates", "targets")),
)
TWOS: Groups = (
    (("variant", "runner"), ("variant", "runner")),
    (("size", "params"), ("size", "params")),
    (("MACs", "NFE"), ("macs", "nfe")),
    *TIMES,
)
THREES: Groups = (
    (("variant", "runner", "NFE"), ("variant", "runner", "evaluations")),
    (("size", "params", "MACs"), ("size", "params", "macs")),
    *TIMES,
)


def print_table(summary: Summary, console: Console) -> None:
    """Print the table of variants at the largest batch, then misses, rows without figures, and the headline."""
    batch = figures.headline_batch(summary)
    console.print(_table(summary, batch, console.width))
    for line in _problems(summary):
        console.print(line, highlight=False)
    for check in figures.misses(summary):
        console.print(_miss(check), highlight=False)
    if not figures.misses(summary):
        console.print(_verdict(summary), highlight=False)
    head = figures.headline(summary)
    console.print(_text(f"{head.sentence} {head.cost}".strip(), "bold"), highlight=False)


def _table(summary: Summary, batch: int | None, width: int) -> Table:
    from rich import box
    from rich.table import Table

    title = f"{summary.get('recipe') or 'run'} · batch {batch if batch is not None else DASH} · baseline is eager torch, others on their fastest runner"
    groups = _groups(width)
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for titles, keys in groups:
        left = keys[0] in ("variant", "runner")
        table.add_column("\n".join(titles), justify="left" if left else "right", no_wrap=True, overflow="ellipsis")
    for variant in figures.variants(summary):
        row = figures.shown(summary, variant, batch)
        if row is not None:
            texts = _texts(summary, row)
            cells = [_styled(*(texts[k] for k in keys)) for _, keys in groups]
            table.add_row(*cells, style="bold" if variant == "final" else "")
    return table


def _groups(width: int) -> Groups:
    if width >= ONE_LINE:
        return tuple(((title,), (key,)) for titles, keys in TWOS for title, key in zip(titles, keys))
    return TWOS if width >= TWO_LINES else THREES


def _styled(*lines: str) -> Any:
    """Lines in one cell; marks carry a colour beside their sign, second lines are dim."""
    from rich.text import Text

    text = Text()
    for i, line in enumerate(lines):
        style = {"✓": "green", "✗": "bold red"}.get(line[:1], "dim" if i else "")
        text.append(("\n" if i else "") + line, style)
    return text


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
    """A line for every row that has no figures, with its reason."""
    lines = figures.lost(summary)
    if any(r.get("noisy") for r in figures.done(summary)):
        lines.append("~ noisy: other work on this machine disturbed the timing; its interval says by how much")
    lines += [f"! throttled: {figures.place(r)}: {', '.join(r['throttled'])}" for r in figures.throttled(summary)]
    return [_text(line, "yellow") for line in lines]


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
