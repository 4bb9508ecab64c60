"""A process killed with signal 9 at the n-th call that changes a folder, for every n."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count

from optimize.storage import swap

CHANGES = ("rename", "replace", "unlink", "rmdir", "mkdir", "fsync", "link")


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Carry out `act` in a forked process that kills itself before change `number`; whether it came to that."""
    process = os.fork()
    if process == 0:
        try:
            _count_to(number)
            act()
        finally:
            os._exit(0)
    _, status = os.waitpid(process, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def kill_everywhere(before: Callable[[], None], act: Callable[[], object], after: Callable[[], None]) -> int:
    """`before`, `act` killed at its n-th change, `after`, for n = 1, 2, … until it ends first; how often it was killed."""
    for number in count(1):
        before()
        killed = killed_at(number, act)
        after()
        if not killed:
            return number - 1
    raise AssertionError("count ended")


def _count_to(number: int) -> None:
    """From now on the `number`-th change ends this process instead."""
    numbers = count(1)

    def counted(change: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            if next(numbers) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **named)

        return call

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))
    swap.exchange = counted(swap.exchange)  # type: ignore[assignment]
