"""What a command line asks, checked before the command: odd numbers and names that no file can have are one short message.

`told` turns what the system itself says of a file or of memory into the error it is.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from optimize.configs import odd
from optimize.errors import EnvironmentLacks, OptimizeError, UserError, cut

LONGEST = 4096  # characters of an argument
LONGEST_NAME = 255  # bytes of a file's name
SAID = 400  # characters of a message about an argument
OF_THE_USER = (errno.ENOENT, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EEXIST, errno.EINVAL)  # fmt: skip


class Asked(TyperCommand):
    """A command whose arguments are checked before it begins."""

    def make_context(self, info_name: Any, args: list[str], *given: Any, **extra: Any) -> Any:
        """The context of the arguments; what is wrong with one of them is said in few words."""
        refuse_empty(args)
        with brief():
            return super().make_context(info_name, args, *given, **extra)

    def invoke(self, ctx: Any) -> Any:
        """The command's result; UserError for an argument that holds what none may."""
        for param in self.params:
            check(ctx.params.get(param.name or ""), param.opts)
        return super().invoke(ctx)


@contextmanager
def brief() -> Iterator[None]:
    """The message of an error about an argument, with the argument in it, is cut."""
    try:
        yield
    except Exception as error:
        if isinstance(said := getattr(error, "message", None), str):  # a UsageError of what typer is made of
            error.message = cut(said, SAID)  # type: ignore[attr-defined]
        raise


def refuse_empty(args: Sequence[str]) -> None:
    """Raise UserError for an argument without text, which as a path would be the working directory."""
    for before, arg in zip(["", *args], args):
        option = arg.partition("=")[0] if arg.startswith("--") and arg.find("=") == len(arg) - 1 else ""
        if option or not arg:
            name = option or (before if before.startswith("-") else "an argument")
            raise UserError(
                f'{cut(name, 60)}: "" is given, nothing. A variable of the shell may be empty; give a value.'
            )


def check(value: Any, names: Sequence[str]) -> None:
    """Raise UserError for a number that is not finite, text with a NUL or without end, or a name that no file can have."""
    name = names[0] if names else ""
    for one in value if isinstance(value, list | tuple) else (value,):
        text = os.fspath(one) if isinstance(one, str | Path) else ""
        if len(text) > LONGEST:
            raise UserError(f"{name}: {len(text)} characters; at most {LONGEST} are allowed.")
        if isinstance(one, Path) and any(len(os.fsencode(part)) > LONGEST_NAME for part in one.parts):
            raise UserError(f"{name}: {cut(text)}: a name in it is longer than {LONGEST_NAME} bytes.")
        if wrong := odd(text or one):
            raise UserError(f"{name}: given {cut(str(one), 40)}. {wrong}.")


def told(error: Exception) -> Exception:
    """What the system says of a file, or of memory, as an error of ours; other errors as they are."""
    if isinstance(error, MemoryError):
        return EnvironmentLacks(
            "out of memory. Close other programs, ask for smaller batches, or use a larger machine."
        )
    if isinstance(error, OptimizeError) or not isinstance(error, OSError) or error.errno is None:
        return error
    place = f"{cut(str(error.filename))}: " if error.filename else ""
    kind = UserError if error.errno in OF_THE_USER else EnvironmentLacks
    return kind(f"{place}{error.strerror or type(error).__name__}.")
