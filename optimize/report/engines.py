"""The table of `optimize export`: a row an engine or a kit, what it took, and what became of the graph's precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.report import figures

if TYPE_CHECKING:
    from rich.console import Console

TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def print_engines(rows: list[dict[str, Any]], console: Console) -> None:
    """Print what was made, then what was refused and why, then where it lies and the formats of its layers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    done = [row for row in rows if row["status"] == "done"]
    if done:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        texts = [cells(row) for row in done]
        for title in texts[0]:
            table.add_column(title, justify="left" if title in ("target", "what") else "right", no_wrap=True)
        for cell in texts:
            table.add_row(*cell.values())
        console.print(table)
    for row in rows:
        if row["status"] != "done":
            console.print(
                Text(f"{row['status']}: {row['target']} {name(row)}: {row['reason']}", "yellow"), soft_wrap=True
            )
        for problem in row.get("problems", ()):
            console.print(Text(f"! {row['target']} {name(row)}: {problem}", "red"), soft_wrap=True)
    for row in done:
        found = layers(row)
        told = f" ({'layers found/expected' if 'found' in row else 'layers'}: {found})" if found else ""
        console.print(Text(f"{row['target']} {name(row)}: {row['path']}{told}"), soft_wrap=True)


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row's texts by column title; few enough for 80 columns."""
    return {
        "target": f"{row['target']} (SM {row['sm']})" if row.get("sm") else row["target"],
        "what": name(row),
        "seconds": figures.digits(row["seconds"]) if "seconds" in row else figures.DASH,
        "peak memory": figures.bytes_text(row.get("peak_memory_bytes")),
        "plan": figures.bytes_text(row.get("plan_bytes")),
    }


def layers(row: dict[str, Any]) -> str:
    """ "int8 37/37, fp32 6/6"; of a kit only what is expected; empty for other files."""
    expected, found = row.get("expected", {}), row.get("found")
    if found is None:
        return ", ".join(f"{f} {n}" for f, n in expected.items())
    if not found:
        return "not told"
    return ", ".join(f"{f} {found.get(f, 0)}/{expected.get(f, 0)}" for f in dict.fromkeys([*expected, *found]))


def name(row: dict[str, Any]) -> str:
    """What a row is, in words."""
    if row["what"] == "kit":
        return "build kit"
    return f"{TITLES.get(row.get('module', ''), row['what'])} {row.get('version', '')}".strip()
