"""What `optimize export` wrote of a pipeline, as a table: a graph a line, and what the layout has no place for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from optimize.report.terminal.tables import Layout, plain, print_layout

if TYPE_CHECKING:
    from rich.console import Console


LAYOUT: Layout = (*plain(["graph", "MiB", "inputs"]), (("relative L2", "to torch"), ("far",)))
NARROW: Layout = ((("graph", "inputs"), ("graph", "inputs")), *plain(["MiB"]), (("relative L2", "to torch"), ("far",)))


def print_exported(manifest: dict[str, Any], out: Path, console: Console) -> None:
    """Print the manifest of an exported pipeline."""
    rows = [_texts(name, part, manifest["files"]) for name, part in manifest["parts"].items()]
    print_layout(console, "", (LAYOUT, NARROW), rows, words=("graph", "inputs", "far"))
    if manifest["left_out"]:
        console.print(
            f"~ left out, since the layout has no place for it: {', '.join(manifest['left_out'])}", markup=False
        )
    console.print(f"Pipeline: [bold]{escape(str(out))}[/bold]", soft_wrap=True)


def _texts(name: str, part: dict[str, Any], files: dict[str, Any]) -> dict[str, str]:
    size = sum(f["bytes"] for file, f in files.items() if file.startswith(f"{name}/model.onnx"))
    far = part.get("parity", {}).get("relative_l2")
    return {
        "graph": name,
        "MiB": f"{size / 2**20:.1f}",
        "inputs": ", ".join(i["name"] for i in part["inputs"]),
        "far": f"{far:.1e}" if far is not None else "the artifact's own file",
    }
