"""The matrix network x precision x exporter: every cell exported, checked by onnx, and compared with torch.

Parity is the worst over noise levels, sizes of every symbolic dim, and batches, in ONNX Runtime on the CPU. It has no
kernels for most 16-bit operators: there a graph is computed in FP32 and rounded to its 16 bits after every operator, so
that what overflows FP16 is seen. Rows pruned, distilled and quantized come from the artifacts of a run. Tiny networks by
default, each with random weights; `--full` exports the full-size ones, each in a process of its own. A quantized network
with random weights makes small changes grow; its graph may be off by what the network itself is off where its inputs
move as float kernels round. Exits with 1 where a cell failed.

    python benchmarks/onnx_matrix.py [--networks sd sdxl] [--precisions fp32 fp16] [--artifacts exported/digits] [--full]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

from moved import OWN, own_movement
from networks import FULL, TINY
from networks import model as tiny_model
from recorded import append

from optimize.diffusion.context import Context
from optimize.errors import OptimizeError
from optimize.hardware.environment import environment

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
QUANTIZED = ("int8", "fp8")
EXPORTERS = ("dynamo", "torchscript")
FREE = ("H", "W", "L")  # dims that are to be symbolic where an architecture gives numbers
# relative L2 that a cell may be off by: rounding errors of the format, several times over
LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 3e-2, "fp8": 6e-2}
LEVELS = (1.0, 0.5, 0.02)  # of the largest time
BATCHES = (1, 3)
ARTIFACTS = {"pruned": "prune", "distilled": "distill", "quantized": "quantize"}  # title of the row -> stage of the run


@dataclass(frozen=True)
class Cell:
    """One export: of what, how, and where the model comes from."""

    network: str
    precision: str
    exporter: str
    load: Callable[[], Any]  # () -> Model
    opset: int | None = None


def cells(args: argparse.Namespace) -> Iterator[Cell]:
    """Every cell asked for; the artifacts' rows behind the networks'."""
    for name in TINY if args.networks is None else args.networks:
        for exporter, precision in product(args.exporters, args.precisions):
            yield Cell(name, precision, exporter, lambda name=name: _free(tiny_model(TINY[name])), args.opset)
    for title, stage in ARTIFACTS.items() if args.artifacts else ():
        for exporter, precision in product(args.exporters, args.precisions):
            if not (title == "quantized" and precision in QUANTIZED):
                load = partial(_artifact, args.artifacts / stage)
                yield Cell(f"unet2d {title}", precision, exporter, load, args.opset)


def _free(model: Any) -> Any:
    """The model with height, width and length of its input symbolic."""
    from optimize.diffusion.network import TorchNetwork
    from optimize.onnx.symbols import opened

    return model.with_network(TorchNetwork(model.module, opened(model.inputs, FREE)))


def _artifact(folder: Path) -> Any:
    from optimize.architectures.artifact import load_model

    return load_model(folder)


def run(cell: Cell, folder: Path, keep: Any) -> dict[str, Any]:
    """The cell's row: status done, or failed with the reason, and what was measured."""
    row = {"network": cell.network, "precision": cell.precision, "exporter": cell.exporter}
    start = perf_counter()
    try:
        model = _quantized(cell.load(), cell.precision)
        found = _exported(model, cell, folder, keep)
        seconds = round(perf_counter() - start, 2)
        worst = compared(model, folder, found)
        limit = limit_of(cell, worst)
        good = worst["relative_l2"] <= limit
        reason = "" if good else f"relative L2 {worst['relative_l2']:.1e} is above {limit:.0e}"
        about = {"status": "done" if good else "failed", "reason": reason, "seconds": seconds, "limit": limit}
        return row | about | {"parity": worst, "record": found}
    except (
        OptimizeError,
        RuntimeError,
        ValueError,
        TypeError,
        AssertionError,
        OSError,
        *onnxruntime_errors(),
    ) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        return row | {"status": "failed", "reason": first[:300]}


def limit_of(cell: Cell, worst: dict[str, Any]) -> float:
    """What a cell's relative L2 may be."""
    limit = LIMITS[cell.precision]
    if "quantized" in cell.network:
        limit = max(LIMITS["int8"], limit)
    return max(limit, OWN * worst["own"]) if cell.precision in QUANTIZED else limit


def onnxruntime_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises for a graph it does not take."""
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, NotImplemented

    return (Fail, InvalidArgument, InvalidGraph, NotImplemented)


def _exported(model: Any, cell: Cell, folder: Path, keep: Any) -> dict[str, Any]:
    from optimize.registry import EXPORTERS as plugins

    precision = cell.precision if cell.precision in ("fp16", "bf16") else "fp32"
    exporter = plugins.get("onnx")(precision=precision, exporter=cell.exporter, opset=cell.opset)
    found: dict[str, Any] = exporter.export(model, folder, Context(keep=keep))
    return found


def _quantized(model: Any, precision: str) -> Any:
    """The model with its layers in INT8 or FP8, calibrated on a few images; itself for a float precision."""
    if precision not in QUANTIZED:
        return model
    from optimize.registry import PASSES

    return PASSES.get("quantize")(format=precision, samples=4, batch=2).apply(model, Context())[0]


def compared(model: Any, folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Worst relative L2 and largest difference from torch over levels x sizes x batches, every single comparison, and
    `own`: the worst that the network itself moves by where its inputs move as float kernels round."""
    from optimize.diffusion.backend import open_runner

    with open_runner(folder, "onnxruntime", int8="as_is", threads=1) as network:
        rows = [
            _compared(model, network, level, batch, sizes)
            for sizes in tried_sizes(model.inputs, record["symbols"])
            for level, batch in product(LEVELS, BATCHES)
        ]
        about = network.describe()
    worst = {k: max(r[k] for r in rows) for k in ("relative_l2", "max_abs", "own")}
    return worst | {"lowered": about["lowered"], "compared": rows}


def tried_sizes(inputs: Any, symbols: list[str]) -> list[dict[str, int]]:
    """The network's own sizes, and others of every symbolic dim: half as large again, a little more for odd ones."""
    from optimize.onnx.symbols import sizes_of

    own = {s: n for s, n in sizes_of(inputs).items() if s != "B"}
    free = [s for s in own if s in symbols]
    larger = {s: own[s] * 3 // 2 if own[s] % 16 == 0 else own[s] + 4 for s in free}
    mixed = {s: larger[s] for s in free[::2]}
    return [own, *([own | larger, own | mixed] if free else [])]


def _compared(model: Any, network: Any, level: float, batch: int, sizes: dict[str, int]) -> dict[str, Any]:
    import torch

    from optimize.diffusion.network import example_inputs
    from optimize.diffusion.parity import relative_l2

    feed = example_inputs(model.inputs, batch, **sizes)
    spec = model.inputs[1]
    largest = spec.fill[0] if isinstance(spec.fill, tuple) else 999.0
    feed[spec.name] = torch.full_like(feed[spec.name], level * largest)
    with torch.inference_mode():
        a, b = model.denoiser.network(**feed).double(), network(**feed).double()
    error = relative_l2(b, a)
    finite = error == error
    return {
        "level": level,
        "batch": batch,
        "sizes": sizes,
        "relative_l2": error if finite else float("inf"),
        "max_abs": float((b - a).abs().max()) if finite else float("inf"),
        "own": own_movement(model, feed),
    }


def keeper(folder: Path) -> Any:
    """Traces kept for the program's run, so that precisions of one operator set share them."""
    from optimize.configs import digest

    def keep(name: str, depends: dict[str, Any], write: Callable[[Path], None]) -> Path:
        place = folder / digest({"name": name, **depends})
        if not place.exists():
            made = folder / f"{place.name}.part"  # a trace that fails leaves nothing under its name
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir(parents=True)
            write(made)
            made.rename(place)
        return place

    return keep


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as an aligned text table."""
    head = (
        "network",
        "precision",
        "exporter",
        "status",
        "s",
        "bytes",
        "nodes",
        "symbols",
        "fp32",
        "parity",
        "own",
        "reason",
    )
    lines = [head, *(_line(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(text.ljust(w) for text, w in zip(line, widths)).rstrip() for line in lines)


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    found, parity = row.get("record", {}), row.get("parity", {})
    nodes = found.get("nodes")
    fixed = "".join(f" {s}={n}" for s, n in found.get("fixed", {}).items())
    return (
        row["network"],
        row["precision"],
        found.get("exporter", row["exporter"]),
        row["status"],
        str(row.get("seconds", "")),
        f"{found['bytes']:,}" if found else "",
        f"{nodes['traced']}>{nodes['cleaned']}" if nodes else "",
        "".join(found.get("symbols", [])) + fixed,
        str(found.get("nodes_fp32", "")),
        f"{parity['relative_l2']:.1e}" if parity else "",
        f"{parity['own']:.1e}" if row["precision"] in QUANTIZED and "own" in parity else "",
        row["reason"],
    )


def main() -> int:
    """0 where no cell failed, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="*", choices=[*TINY, *FULL], help="by default all tiny ones; none where none is named"
    )
    parser.add_argument("--precisions", nargs="*", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--exporters", nargs="*", choices=EXPORTERS, default=EXPORTERS)
    parser.add_argument("--opset", type=int, default=22, help="holds every precision, so that they share a trace")
    parser.add_argument("--artifacts", type=Path, help="variants of a run, e.g. exported/digits")
    parser.add_argument("--full", action="store_true", help="the full-size networks instead of the tiny ones")
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--record", action="store_true", help="append the rows to benchmarks/records/onnx_matrix.json")
    args = parser.parse_args()
    rows = full_rows(args) if args.full else tiny_rows(args)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1))
    if args.record:
        append("onnx_matrix", " ".join(["onnx_matrix.py", *sys.argv[1:]]), [lean(row) for row in rows])
    failed = [r for r in rows if r["status"] == "failed"]
    print(f"{len(rows)} cells, {len(failed)} failed")
    return 1 if failed else 0


def lean(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the record: without its single comparisons, and of the export's own record what tells rows apart."""
    kept = ("exporter", "opset", "bytes", "nodes", "symbols", "fixed", "multiple_of", "nodes_fp32", "int8_layers", "fp8_layers")  # fmt: skip
    slim = dict(row)
    if "parity" in row:
        slim["parity"] = {k: v for k, v in row["parity"].items() if k != "compared"}
        slim["parity"]["comparisons"] = len(row["parity"].get("compared", []))
    if "record" in row:
        slim["record"] = {k: row["record"][k] for k in kept if k in row["record"]}
    return slim


def tiny_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Every cell, one after the other; an export is deleted once it is compared."""
    with tempfile.TemporaryDirectory() as scratch:
        keep = keeper(Path(scratch) / "kept")
        rows = []
        for cell in cells(args):
            folder = Path(scratch) / "cell"
            rows.append(run(cell, folder, keep))
            shutil.rmtree(folder, ignore_errors=True)
            print(_progress(rows[-1]), file=sys.stderr, flush=True)
        return rows


def _progress(row: dict[str, Any]) -> str:
    return "  ".join(part for part in _line(row) if part)


def full_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The full-size networks: see onnx_full.py."""
    from onnx_full import measured

    names = args.networks or ["sd15", "sdxl", "flux_shaped"]
    return [measured(name, precision) for name in names for precision in args.precisions if precision in ("fp32", "fp16", "bf16")]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
