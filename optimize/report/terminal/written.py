"""What `optimize export` wrote of a pipeline, as a table: a graph a line, and what the layout has no place for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def print_exported(manifest: dict[str, Any], out: Path, console: Console) -> None:
    """Print the manifest of an exported pipeline."""
    from rich.table import Table

    table = Table("graph", "MiB", "inputs", "relative L2 to torch")
    for name, part in manifest["parts"].items():
        size = sum(f["bytes"] for file, f in manifest["files"].items() if file.startswith(f"{name}/model.onnx"))
        far = part.get("parity", {}).get("relative_l2")
        inputs = ", ".join(i["name"] for i in part["inputs"])
        table.add_row(
            name, f"{size / 2**20:.1f}", inputs, f"{far:.1e}" if far is not None else "the artifact's own file"
        )
    console.print(table)
    if manifest["left_out"]:
        console.print(
            f"~ left out, since the layout has no place for it: {', '.join(manifest['left_out'])}", markup=False
        )
    console.print(f"Pipeline: [bold]{out}[/bold]", soft_wrap=True)
