"""Every error a user can cause, with what was given, what is allowed and what to do. Exit codes of the CLI live here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class OptimizeError(Exception):
    """Base of all errors raised on purpose; the CLI prints its message without a traceback."""

    exit_code = 1


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


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`' Did you mean "x"?'`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f' Did you mean "{near[0]}"?' if near else ""


def unknown(kind: str, given: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not in a set of names."""
    names = sorted(allowed)
    return UserError(f'{kind}: "{given}" is not known. Allowed: {", ".join(names)}.{did_you_mean(given, names)}')
