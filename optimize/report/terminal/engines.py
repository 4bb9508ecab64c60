"""The table of `optimize export`: a row an engine or a kit, what it took, and what became of the graph's precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimize.measure import wording
from optimize.report.terminal.tables import Layout, plain, print_layout

if TYPE_CHECKING:
    from rich.console import Console

NAMED = 4  # modules named in a line
NARROW: Layout = (
    (("target", "what"), ("target", "what")),
    (("seconds",), ("seconds",)),
    (("peak memory", "plan"), ("peak memory", "plan")),
)
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}


def print_engines(rows: list[dict[str, Any]], console: Console) -> None:
    """Print what was made, then what was refused and why, then where it lies and the formats of its layers."""
    from rich.text import Text

    done = [row for row in rows if row["status"] == "done"]
    if engines := [row for row in done if row["what"] in ("engine", "kit")]:
        texts = [cells(row) for row in engines]
        print_layout(console, "", (plain(list(texts[0])), NARROW), texts, words=("target", "what"))
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
        console.print(Text(f"{row['target']} {name(row)}: {row['path']}{told}".strip()), soft_wrap=True)
        if "precision" in row:
            console.print(Text(f"  {about_onnx(row)}"), soft_wrap=True)


def about_onnx(row: dict[str, Any]) -> str:
    """What an ONNX file is, in words: size, formats, symbolic dims, what traced it, and how far it is from the network."""
    layers = [f"{row[f'{f}_layers']} layers in {f}" for f in ("int8", "fp8") if row.get(f"{f}_layers")]
    kept = [f"fp32 for {why}: {_paths(paths)}" for why, paths in row.get("fp32_layers", {}).items() if paths]
    fixed = [f"{s} fixed at {n}" for s, n in row["fixed"].items()]
    by = {"dynamo": "torch.export", "torchscript": f"the older exporter ({row['reason']})"}[row["exporter"]]
    sizes = f"{', '.join(row['symbols']) or 'nothing'} symbolic"
    far = f"{row['relative_l2']:.1e} from the network (relative L2)"
    size = wording.bytes_text(row["bytes"])
    return " · ".join([size, row["precision"], *layers, *kept, f"opset {row['opset']}", sizes, *fixed, by, far])


def _paths(paths: Sequence[str]) -> str:
    """The first of several modules' paths, and how many more there are."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(list(paths)[:NAMED]) + more


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row's texts by column title; few enough for 80 columns."""
    return {
        "target": f"{row['target']} (SM {row['sm']})" if row.get("sm") else row["target"],
        "what": name(row),
        "seconds": wording.digits(row["seconds"]) if "seconds" in row else wording.DASH,
        "peak memory": wording.bytes_text(row.get("peak_memory_bytes")),
        "plan": wording.bytes_text(row.get("plan_bytes")),
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
