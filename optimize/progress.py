"""Progress of long work, as a value that is handed down: `with progress(description, total) as advance: advance(1)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable


class Advance(Protocol):
    """Tells a running task that `n` more units are done, optionally with a short text such as the loss."""

    def __call__(self, n: float = 1, note: str = "") -> None: ...


@runtime_checkable
class Timed(Protocol):
    """An `Advance` that forecasts when its task is done."""

    def hold(self) -> None: ...

    def begin(self) -> None: ...


@contextmanager
def preparation(advance: Advance) -> Iterator[None]:
    """What is done inside, such as starting workers, is no measure of the time left, which counts from the end of it."""
    if isinstance(advance, Timed):
        advance.hold()
    yield
    if isinstance(advance, Timed):
        advance.begin()


Progress = Callable[[str, float], AbstractContextManager[Advance]]


@contextmanager
def silent(description: str, total: float) -> Iterator[Advance]:
    """A progress that shows nothing."""

    def advance(n: float = 1, note: str = "") -> None:
        return None

    yield advance
