"""Options that several commands share, and where they print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Exported = Annotated[Path, typer.Option(help="Folder that results go to.")]
PriceTable = Annotated[Path | None, typer.Option("--prices", help="Price table instead of the shipped one.")]
Configs = Annotated[
    Path | None,
    typer.Option(
        "--config", help="Of a checkpoint in one file: folder of its pipeline's configs; no weights are needed in it."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def console_of(stderr: bool = False) -> Console:
    """A console on stdout, or on stderr where stdout is for JSON."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)
