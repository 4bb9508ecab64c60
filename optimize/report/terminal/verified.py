"""What `optimize verify` found, as a table: an artifact a line, then every file that differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_verified(report: dict[str, Any], console: Console) -> None:
    """Print a report of `optimize.storage.trust.inspect_trust`; its digest comes last, alone on its line."""
    from rich.table import Table

    table = Table("artifact", "files", "MiB", "state", "digest")
    for artifact in report["artifacts"]:
        wrong = len(artifact["differences"])
        state = f"[red]{wrong} differ[/red]" if wrong else "intact"
        size = f"{artifact['bytes'] / 2**20:.2f}"
        table.add_row(artifact["name"], str(artifact["files"]), size, state, artifact["digest"][:12])
    console.print(table)
    for artifact in report["artifacts"]:
        _print_differences(artifact, console)
    console.print(f"digest {report['digest']}", soft_wrap=True, markup=False)


def _print_differences(artifact: dict[str, Any], console: Console) -> None:
    for d in artifact["differences"]:
        line = f"{artifact['name']}/{d['file']}: {d['problem']}: expected {d['expected']}, found {d['found']}"
        console.print(line, style="red", markup=False, soft_wrap=True)
