"""Progress bars with time left, on a terminal; plain lines where the output is no terminal.

Time left is told from real work alone: a task's clock starts where the task says that its work begins, else with the
end of its first unit, so that starting workers, loading and compiling are in no forecast, and neither are the units
that a resumed task finds done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from optimize.progress import Advance, Progress, silent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn

Now = Callable[[], float]  # seconds of a clock that only rises
EVERY_S = 10.0  # between two lines of a task
BAR = 12  # columns of a bar: what is drawn, and with what, has to stand beside it in 80


@dataclass
class Clock:
    """How far a task of `total` units is, and the seconds left."""

    total: float
    now: Now = perf_counter
    done: float = 0.0
    _counted: float = 0.0  # units done when the clock started
    _started: float | None = None
    _held: bool = False  # only prepares
    _last: float = 0.0  # when the last unit was done

    def hold(self) -> None:
        """What comes is preparation, until `begin`."""
        self._held, self._started = True, None

    def begin(self) -> None:
        """Work begins now."""
        self._held = False
        self._started = self._last = self.now()
        self._counted = self.done

    def advance(self, n: float) -> None:
        """`n` more units are done."""
        self.done += n
        if self._started is None and not self._held:
            self.begin()
        self._last = self.now()

    def left_s(self) -> float | None:
        """Seconds left at the pace of the work so far; None where nothing of it is done yet, or nothing is left."""
        worked = self.done - self._counted
        if self._started is None or worked <= 0 or self.done >= self.total:
            return None
        pace = (self._last - self._started) / worked
        return max(pace * (self.total - self.done) - (self.now() - self._last), 0.0)


class Task:
    """An `Advance` that knows its clock; `show` is called after every change with the note."""

    def __init__(self, clock: Clock, show: Callable[[float, str], None]) -> None:
        self.clock, self._show = clock, show

    def __call__(self, n: float = 1, note: str = "") -> None:
        self.clock.advance(n)
        self._show(n, note)

    def hold(self) -> None:
        """See `optimize.progress.preparation`."""
        self.clock.hold()

    def begin(self) -> None:
        """See `optimize.progress.preparation`."""
        self.clock.begin()


@contextmanager
def rich_progress(console: Console, quiet: bool = False, now: Now = perf_counter) -> Iterator[Progress]:
    """A `Progress` for the length of a run."""
    if quiet:
        yield silent
    elif console.is_terminal:
        yield from _bars(console, now)
    else:
        yield _lines(console, now)


def _bars(console: Console, now: Now) -> Iterator[Progress]:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    words = TextColumn("{task.description}", table_column=Column(overflow="fold"))
    notes = TextColumn("{task.fields[note]}", table_column=Column(overflow="fold"))
    figures = (
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        _left_column(),
    )
    columns = (words, BarColumn(BAR), *figures, notes)
    with Bars(*columns, console=console) as bars:

        @contextmanager
        def progress(description: str, total: float) -> Iterator[Advance]:
            yield _bar(bars, description, Clock(total, now))

        yield progress


def _bar(bars: Bars, description: str, clock: Clock) -> Task:
    task = bars.add_task(description, total=clock.total, note="", clock=clock)
    return Task(clock, lambda n, note: bars.update(task, advance=n, note=note))


def _left_column() -> ProgressColumn:
    from rich.progress import ProgressColumn
    from rich.progress import Task as Shown
    from rich.table import Column
    from rich.text import Text

    class Left(ProgressColumn):
        def render(self, task: Shown) -> Text:
            left = task.fields["clock"].left_s()
            return Text("" if left is None else f"{_text(left)} left", "cyan")

    return Left(table_column=Column(no_wrap=True))


def _lines(console: Console, now: Now) -> Progress:
    """A line at most every ten seconds a task, and one at its end, for logs."""

    @contextmanager
    def progress(description: str, total: float) -> Iterator[Advance]:
        start = said = now()
        clock = Clock(total, now)

        def show(n: float, note: str) -> None:
            nonlocal said
            if now() - said >= EVERY_S and clock.done < total:
                said, left = now(), clock.left_s()
                parts = [f"{clock.done:g}/{total:g}", *([] if left is None else [f"{_text(left)} left"]), note]
                console.print(f"{description}: {', '.join(p for p in parts if p)}", soft_wrap=True, markup=False)

        yield Task(clock, show)
        console.print(f"{description}: done in {now() - start:.1f} s", soft_wrap=True, markup=False)

    return progress


def _text(seconds: float) -> str:
    """`47 s`, `3:20`, `2:03:20`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
