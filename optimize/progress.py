"""Progress of long work, as a value that is handed down: `with progress(description, total) as advance: advance(1)`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Advance(Protocol):
    """Tells a running task that `n` more units are done, optionally with a short text such as the loss."""

    def __call__(self, n: float = 1, note: str = "") -> None: ...


Progress = Callable[[str, float], AbstractContextManager[Advance]]


@contextmanager
def silent(description: str, total: float) -> Iterator[Advance]:
    """A progress that shows nothing."""

    def advance(n: float = 1, note: str = "") -> None:
        return None

    yield advance
