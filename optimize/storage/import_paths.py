"""Objects by import path, `package.module:name`. Such paths come from the user's command or recipe alone, never out of
an artifact."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optimize.errors import UserError, did_you_mean


def imported(path: str, wanted: str) -> Any:
    """`package.module:name`, found from the working directory as well. UserError where there is no such callable;
    `wanted` says what it should be."""
    module, _, names = path.partition(":")
    try:
        with _here():
            value: Any = importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"import: {module} cannot be imported: {error}.") from error
    for name in names.split("."):
        if not hasattr(value, name):
            offers = [n for n in vars(value) if not n.startswith("_")] if hasattr(value, "__dict__") else []
            raise UserError(f"import: {module} has no {name}.{did_you_mean(name, offers)}")
        value = getattr(value, name)
    if not callable(value):
        raise UserError(f"import: {path} is no callable; give {wanted}")
    return value


@contextmanager
def _here() -> Iterator[None]:
    """The working directory among the places that modules are imported from."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
