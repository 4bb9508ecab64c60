"""A whole folder in the place of another, so that a kill at any moment leaves one of them whole under its name, or,
where a file system cannot exchange two names, under one that `tidy` brings back.

All this is done by whoever holds the name (`locks.py`); temporary names say what they are: `~new` is being made or is
what was replaced, `~old` was moved aside for a moment and may be the only copy, `~gone` is being removed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from optimize.storage.disk import TEMPORARY
from optimize.storage.locks import LOCK, held

EARLIER = re.compile(r"\.tmp-(old-)?(.+)-(\d+)")  # of versions that named the process
AT_CWD, EXCHANGE = -100, 2  # Linux: AT_FDCWD, RENAME_EXCHANGE
# what a system says that cannot exchange names: no such call, not on this file system, not in this container
CANNOT = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def beside(place: Path, kind: Literal["new", "old", "gone"]) -> Path:
    """A temporary name for `place`, in the same folder."""
    return place.with_name(f".tmp-{place.name}~{kind}")


def put(made: Path, place: Path) -> None:
    """Give `made` the name `place`; whatever had it is removed."""
    if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
        made.rename(place)
    elif exchange(made, place):
        remove(made)
    else:
        _by_two_renames(made, place)
    sync(place.parent)


def exchange(a: Path, b: Path) -> bool:
    """Exchange two names at one stroke; False where this system or file system cannot."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    if call(AT_CWD, os.fsencode(a), AT_CWD, os.fsencode(b), EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in CANNOT:
        return False
    raise OSError(number, os.strerror(number), str(b))


def _by_two_renames(made: Path, place: Path) -> None:
    old = beside(place, "old")
    place.rename(old)
    try:
        made.rename(place)
    except BaseException:
        old.rename(place)
        raise
    remove(old)


def discard(place: Path) -> None:
    """Remove `place` so that a kill meanwhile leaves no part of it under its name."""
    gone = beside(place, "gone")
    place.rename(gone)
    remove(gone)


def tidy(place: Path) -> None:
    """Put right what a killed process left for `place`, whose lock is held: a copy that was moved aside comes back where
    there is no other, the rest goes."""
    for old in (beside(place, "old"), *_earlier(place, aside=True)):
        if os.path.lexists(old):
            remove(old) if os.path.lexists(place) else old.rename(place)
    for part in (beside(place, "new"), beside(place, "gone"), *_earlier(place, aside=False)):
        if os.path.lexists(part):
            remove(part)


def restore(place: Path) -> None:
    """Bring back what a killed process moved aside and nobody has put back, for one who is about to read it."""
    if os.path.lexists(place) or not place.parent.is_dir():
        return
    if os.path.lexists(beside(place, "old")) or any(_earlier(place, aside=True)):
        with held(place):
            tidy(place)


def sweep(folder: Path, known: Callable[[str], bool] = lambda name: False) -> None:
    """`tidy` every name directly in `folder` that a killed process left something for and nobody holds. Locks, and names
    that earlier versions used, could be anybody's, so of these only what `known` says is ours."""
    for name in sorted(_left(folder, known)):
        with held(folder / name, wait=False) as free:
            if free:
                tidy(folder / name)


def _left(folder: Path, known: Callable[[str], bool]) -> set[str]:
    found = set()
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := TEMPORARY.fullmatch(path.name):
            found.add(match[1])
        elif (match := EARLIER.fullmatch(path.name)) and known(match[2]):
            found.add(match[2])
        elif path.name.startswith(LOCK) and known(path.name.removeprefix(LOCK)):
            found.add(path.name.removeprefix(LOCK))  # who lets go of a lock removes its file
    return found


def _earlier(place: Path, aside: bool) -> Iterator[Path]:
    """What earlier versions left for `place`, of processes that have ended."""
    for path in sorted(place.parent.iterdir()):
        match = EARLIER.fullmatch(path.name)
        if match and match[2] == place.name and bool(match[1]) == aside and not Path(f"/proc/{match[3]}").exists():
            yield path


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; links are not followed. What the system keeps is left for the next `tidy`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """See a file's bytes, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
