"""Where a command's log goes: a line a step to a run's file, and what the storage warns of, such as waiting for another
command or making a damaged stage again, to stderr as well."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from optimize.storage.disk import explained, number_of, writing

FORM = "%(asctime)s %(levelname)s %(name)s %(message)s"


class RunLog(logging.FileHandler):
    """A file that a line which cannot be written to it ends the command with; logging itself would only print."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Raise EnvironmentLacks for what the disk refused."""
        error = sys.exc_info()[1]
        number = None if error is None else number_of(error)
        if error is None or number is None:
            return super().handleError(record)
        raise explained(Path(self.baseFilename), number, error) from error


class Warnings(logging.Handler):
    """Warnings on stderr, for who does not read the log."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        typer.echo(f"~ {record.getMessage()}", err=True)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Inside, this package's log goes to a file, and the storage's warnings to stderr too. EnvironmentLacks where the file
    cannot be opened."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = RunLog(path)
    file.setFormatter(logging.Formatter(FORM))
    package, storage = logging.getLogger("optimize"), logging.getLogger("optimize.storage")
    warnings = Warnings(logging.WARNING)  # others print what they warn of
    before = package.level
    package.setLevel(logging.INFO)
    package.addHandler(file)
    storage.addHandler(warnings)
    try:
        yield
    finally:
        storage.removeHandler(warnings)
        package.removeHandler(file)
        package.setLevel(before)
        with suppress(OSError):  # what found no room was said where it was written
            file.close()
