"""What `optimize verify` found, as a table: an artifact a line, then every file that differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.report.terminal.tables import Layout, plain, print_layout

if TYPE_CHECKING:
    from rich.console import Console


COLUMNS = ("artifact", "files", "MiB", "state", "digest")
NARROW: Layout = (
    (("artifact",), ("artifact",)),
    (("files", "MiB"), ("files", "MiB")),
    (("state", "digest"), ("state", "digest")),
)


def print_verified(report: dict[str, Any], console: Console) -> None:
    """Print a report of `optimize.storage.trust.inspect_trust`; its digest comes last, alone on its line."""
    rows = [_texts(artifact) for artifact in report["artifacts"]]
    layouts = (plain(COLUMNS), NARROW)
    print_layout(
        console, "", layouts, rows, words=("artifact",), style=lambda t: "red" if t.endswith(" differ") else ""
    )
    for artifact in report["artifacts"]:
        _print_differences(artifact, console)
    console.print(f"digest {report['digest']}", soft_wrap=True, markup=False)


def _texts(artifact: dict[str, Any]) -> dict[str, str]:
    wrong = len(artifact["differences"])
    return {
        "artifact": artifact["name"],
        "files": str(artifact["files"]),
        "MiB": f"{artifact['bytes'] / 2**20:.2f}",
        "state": f"{wrong} differ" if wrong else "intact",
        "digest": artifact["digest"][:12],
    }


def _print_differences(artifact: dict[str, Any], console: Console) -> None:
    for d in artifact["differences"]:
        line = f"{artifact['name']}/{d['file']}: {d['problem']}: expected {d['expected']}, found {d['found']}"
        console.print(line, style="red", markup=False, soft_wrap=True)
