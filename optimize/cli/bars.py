"""Progress bars with time left, on a terminal; plain lines where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from optimize.progress import Advance, Progress, silent

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def rich_progress(console: Console, quiet: bool = False) -> Iterator[Progress]:
    """A `Progress` for the length of a run."""
    if quiet:
        yield silent
    elif console.is_terminal:
        yield from _bars(console)
    else:
        yield _lines(console)


def _bars(console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as bars:

        @contextmanager
        def progress(description: str, total: float) -> Iterator[Advance]:
            task = bars.add_task(description, total=total, note="")

            def advance(n: float = 1, note: str = "") -> None:
                bars.update(task, advance=n, note=note)

            yield advance

        yield progress


def _lines(console: Console, every_s: float = 10.0) -> Progress:
    """A line at most every ten seconds a task, and one at its end, for logs."""

    @contextmanager
    def progress(description: str, total: float) -> Iterator[Advance]:
        start = said = time.perf_counter()
        done = 0.0

        def advance(n: float = 1, note: str = "") -> None:
            nonlocal done, said
            done, now = done + n, time.perf_counter()
            if now - said >= every_s:
                said = now
                left = (now - start) / done * (total - done) if done else 0.0
                console.print(f"{description}: {done:g}/{total:g}, {left:.0f} s left {note}", soft_wrap=True)

        yield advance
        console.print(f"{description}: done in {time.perf_counter() - start:.1f} s", soft_wrap=True)

    return progress
