"""Every error a user can cause, with what was given, what is allowed and what to do. Exit codes of the CLI live here.

What is given may be anything, so it is shown shortened (`shown`, `some`), and no message is longer than `LONGEST`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from reprlib import Repr

LONGEST = 2000  # bytes of a message
SHOWN = 120  # characters of a given value
NAMES = 10  # of a list


class OptimizeError(Exception):
    """Base of all errors raised on purpose; the CLI prints its message without a traceback."""

    exit_code = 1

    def __init__(self, message: object = "", *rest: object) -> None:
        super().__init__(bounded(str(message)), *rest)


class UserError(OptimizeError):
    """The user's input (recipe, path, option) is wrong."""

    exit_code = 2


class EnvironmentLacks(OptimizeError):
    """A library, device or resource is missing; the message says which and how to get it."""

    exit_code = 3


class GateFailed(OptimizeError):
    """A gate on quality or parity did not hold."""

    exit_code = 1


class ArtifactError(UserError):
    """A checkpoint or artifact is missing, truncated, altered or of a format that is never loaded."""


def shown(value: object, length: int = SHOWN) -> str:
    """A value as a message shows it: its repr, cut in the middle, of whatever size and depth it is."""
    short = Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, length, length
    try:
        text = short.repr(value)
    except ValueError:  # a whole number of more digits than Python turns into text
        text = f"a {type(value).__name__} of too many digits"
    return cut(text, length)


def cut(text: str, length: int = SHOWN) -> str:
    """A text of at most this length, its middle left out."""
    return text if len(text) <= length else f"{text[: length * 2 // 3]}…{text[len(text) - length // 4 :]}"


def some(names: Iterable[object], most: int = NAMES) -> str:
    """Names separated by commas; of many the first, and how many more."""
    listed = [cut(str(name)) for name in names]
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def bounded(text: str) -> str:
    """A message of at most `LONGEST` bytes that any terminal can print: control characters and broken text are escaped."""
    plain = text.encode("utf-8", "backslashreplace").decode()
    plain = "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in plain)
    if len(plain.encode()) <= LONGEST:
        return plain
    whole = plain.encode()
    first, last = whole[: LONGEST * 3 // 4], whole[-LONGEST // 5 :]
    return f"{first.decode(errors='ignore')} … {last.decode(errors='ignore')}"


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`' Did you mean "x"?'`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(given[:SHOWN], list(allowed), n=1, cutoff=0.5)
    return f' Did you mean "{near[0]}"?' if near else ""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a set of names."""
    names = sorted(allowed)
    given = cut(str(given))
    return UserError(f'{kind}: "{given}" is not known. Allowed: {", ".join(names)}.{did_you_mean(given, names)}')
