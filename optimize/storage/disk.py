"""A disk that takes no more, in whatever words a library says so, is one error: EnvironmentLacks, exit code 3.

Python's own writers raise OSError with a number, numpy's without one, safetensors an error of its own, shutil a list:
`writing` turns all of them into the same sentence, so that no writer has to know.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.errors import EnvironmentLacks, OptimizeError

if TYPE_CHECKING:
    from torch import Tensor

FULL = (errno.ENOSPC, errno.EDQUOT)
NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")  # of Rust, and of errors that Python lists as text
SHORT = re.compile(r"\d+ requested and \d+ written")  # numpy's array.tofile
WORDS = ("SafetensorError", "PanicException")  # errors that tell of the disk in their text alone
TEMPORARY = re.compile(r"\.tmp-([^/]+)~(new|old|gone)\b")  # names of files and folders that are being made
LEAST = 2**20  # bytes: a disk with less is full, whatever an error without a number says
LONGEST = 300  # characters of an error that is passed on


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """Inside, whatever goes wrong with the disk of `place` is EnvironmentLacks; other errors pass as they are."""
    try:
        yield
    except BaseException as error:
        number = number_of(error)
        if number is None:
            raise
        raise explained(place, number, error) from error


def number_of(error: BaseException) -> int | None:
    """The system's number for an error of the disk, 0 where it tells none; None for errors of another kind."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if not isinstance(error, OSError) and type(error).__name__ not in WORDS:
        return _of_its_cause(error)
    told = NUMBER.search(str(error))
    if told:
        return int(told[1] or told[2])
    return (errno.ENOSPC if SHORT.search(str(error)) else 0) if isinstance(error, OSError) else None


def _of_its_cause(error: BaseException) -> int | None:
    """FULL's number where another library's error was made of one; none of our own errors, which say all already."""
    if isinstance(error, OptimizeError) or error.__cause__ is None:
        return None
    number = number_of(error.__cause__)
    return number if number in (*FULL, errno.EFBIG) else None


def explained(place: Path, number: int, error: BaseException) -> EnvironmentLacks:
    """The error that is raised for one of the disk of `place`: what it is, and what to do. A temporary name is told as
    the one that it stands for."""
    shown = TEMPORARY.sub(r"\1", str(place))
    if number in FULL or (number == 0 and _free(place) < LEAST):
        return EnvironmentLacks(
            f"{shown}: the disk is full; nothing was half-written and earlier results are intact. Free space, then run the same command again."
        )
    if number == errno.EFBIG:
        return EnvironmentLacks(
            f"{shown}: a file is larger than its file system, or ulimit -f, lets one be; nothing was half-written and earlier results are intact. Choose another disk or raise the limit, then run the same command again."
        )
    reason = os.strerror(number) if number else f"{error!s:.{LONGEST}}"
    return EnvironmentLacks(f"{shown}: cannot be written ({reason}). Nothing was half-written.")


def _free(place: Path) -> int:
    there = next(f for f in (place, *place.absolute().parents) if f.is_dir())
    return shutil.disk_usage(there).free


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file that whoever may read its neighbours may read: the library makes files of its owner's
    alone. Raises EnvironmentLacks where the disk does not take it; nothing is half-written then."""
    from safetensors.torch import save_file

    with writing(path):
        path.touch()  # the mode that a new file gets here
        mode = path.stat().st_mode & 0o777
        try:
            save_file(dict(tensors), path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        path.chmod(mode)
