"""One writer a name: whoever writes `place` holds `.lock-<name>` beside it, and others wait or are told.

The kernel lets go of a lock when its process ends, however it ends, so nothing stays locked after a kill and no number
of a process is ever looked up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from optimize.storage.disk import writing

log = logging.getLogger(__name__)
LOCK = ".lock-"
PATIENCE_S = 0.5  # before a line is said


def lock_of(place: Path) -> Path:
    """The file that is locked for `place`."""
    return place.with_name(f"{LOCK}{place.name}")


@contextmanager
def held(place: Path, wait: bool = True, what: str = "") -> Iterator[bool]:
    """Hold the name `place` against every other process and thread; the folder it stands in is made.

    Yields whether it is held: with `wait` always, after a line in the log where another has it, which calls it `what`;
    without, False at once.
    Raises EnvironmentLacks where no lock can be made there."""
    path, process = lock_of(place), os.getpid()
    with writing(place):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        got = _taken(lock, what or str(place), wait)
    try:
        yield got
    finally:
        if got and os.getpid() == process:  # a forked child leaves what is its parent's
            with suppress(OSError):
                path.unlink()  # whoever waits for the file sees that it is gone, and makes another
            lock.release()


def _taken(lock: FileLock, what: str, wait: bool) -> bool:
    try:
        lock.acquire(timeout=PATIENCE_S if wait else 0)
    except Timeout:
        if not wait:
            return False
        log.warning("%s: another optimize command is at work on it; this one waits until that is done", what)
        lock.acquire()
        log.info("%s: it is free now", what)
    return True
