"""What engines take to build without a GPU: seconds, peak memory, plan bytes, and whether the graph's formats arrived.

    python benchmarks/engines.py --artifact exported/digits/final --case digits
    python benchmarks/engines.py --case unet-fp16 --case unet-int8 --case transformer-fp8 --scratch exports
    python benchmarks/engines.py --case tiny

TensorRT-RTX builds digits final for SM 8.0, 8.6, 8.9 and 12.0; a U-Net of Stable Diffusion 1.5's size in FP16 and in
INT8 with FP16 for the same; a transformer of DiT-XL/2's size in FP8 for SM 8.9; and every tiny network in all three.
They have random weights and activations' ranges without calibration: builds are measured, not quality. They go through
the library's own exporter and the quantize pass's own choice of layers. Rows come into the record as they are made.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

from networks import FULL, TINY
from recorded import put

from optimize.configs import digest
from optimize.engines.graph import GraphFacts, read_graph
from optimize.engines.libraries import found_version, sm_text
from optimize.engines.make import Order, make
from optimize.engines.place import profiles_for
from optimize.engines.settings import EngineSettings
from optimize.errors import OptimizeError
from optimize.hardware import environment
from optimize.hardware.memory import gb
from optimize.storage.commit import commit, write_json
from optimize.storage.weights import read_json

MODULE = "tensorrt_rtx"
OUT = Path(__file__).parent / "records" / "engines.json"
SMS = ((8, 0), (8, 6), (8, 9), (12, 0))
RANGE = 6.0  # of every activation
FIGURES = ("seconds", "process_seconds", "peak_memory_bytes", "estimated_memory_bytes", "plan_bytes", "expected", "found",
           "problems", "targets")  # fmt: skip
ONNX = "onnx/model.onnx"

# case -> (network of benchmarks/networks.py, what floats compute in, format of quantized layers, SMs)
CASES: dict[str, tuple[str, Literal["fp16", "fp32"], str, tuple[tuple[int, int], ...]]] = {
    "unet-fp16": ("sd15", "fp16", "", SMS),
    "unet-int8": ("sd15", "fp16", "int8", SMS),
    "transformer-fp8": ("dit_xl_2", "fp16", "fp8", ((8, 9),)),
    "flux-fp8": ("flux_shaped", "fp16", "fp8", ((8, 9),)),
}
CASES |= {f"tiny-{n}-{f or 'fp16'}": (n, "fp16", f, ((8, 9),)) for n in TINY for f in ("", "int8", "fp8")}
CASES |= {f"tiny-{n}-{f}-fp32": (n, "fp32", f, ((8, 9),)) for n in TINY for f in ("int8", "fp8")}


def export(case: str, folder: Path, traces: Path) -> dict[str, Any]:
    """The case's network as `folder/onnx/model.onnx`, its batch symbolic; returns what exporting took. `traces` keeps the
    traced graph of a network for the other cases."""
    from optimize.exporters.onnx import Onnx, Rounding

    name, precision, format, _ = CASES[case]
    start = time.perf_counter()
    module, inputs, given = network(name)
    made = time.perf_counter()
    rounding = Rounding(quantized(module, format), "fp16", module) if format else None
    record = Onnx(precision=precision, symbolic=("B",), embedded_bytes=0).export_network(
        module, inputs, folder, structure=name, keep=keeper(traces), rounding=rounding, feeds=lambda: [given]
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = {"network": round(made - start, 1), "export": round(time.perf_counter() - made, 1)}
    return {"record": record, "seconds": seconds, "peak_memory_bytes": peak}


def network(name: str) -> tuple[Any, Any, Any]:
    """(module, its inputs, one feed of reduced size) of a named network with random weights."""
    import networks
    import onnx_full

    from optimize.architectures.known import architecture
    from optimize.diffusion.network import example_inputs
    from optimize.onnx.symbols import symbols

    if name in TINY:
        model = networks.model(TINY[name])
        return model.module, model.inputs, example_inputs(model.inputs, 1)
    config = FULL[name]
    inputs = architecture(config["_class_name"]).inputs(config)
    free = {s: onnx_full.SMALL[s] for s in symbols(inputs) - {"B"}}
    return onnx_full.network(name)[0], inputs, example_inputs(inputs, 1, **free)


def quantized(module: Any, format: str) -> list[dict[str, Any]]:
    """The quantize pass's table of a network, with ranges: weights' own, and `RANGE` for every activation."""
    import torch

    from optimize.passes.quantize import Quantize
    from optimize.quantization.codes import exact_amax

    table, _ = Quantize(format=format).plan(module)
    for row in table:
        layer, axis = module.get_submodule(row["module"]), row["weight"]["axis"]
        others = tuple(i for i in range(layer.weight.dim()) if i != axis)
        amax = layer.weight.detach().abs().amax(dim=others, keepdim=True).float()
        layer.weight_quantizer = SimpleNamespace(amax=exact_amax(amax, row["weight"]["bits"], torch.float16))
        if row["input"] is not None:
            layer.input_quantizer = SimpleNamespace(
                amax=exact_amax(torch.tensor(RANGE), row["input"]["bits"], torch.float16)
            )
    return table


def keeper(root: Path) -> Callable[[str, dict[str, Any], Callable[[Path], None]], Path]:
    """Keeps what an export computes on the way in a folder, by content."""

    def keep(name: str, depends: dict[str, Any], write: Callable[[Path], None]) -> Path:
        place = root / f"{name}-{digest(depends)[:16]}"

        def fill(folder: Path) -> dict[str, Any]:
            write(folder)
            return {}

        if not (place / "manifest.json").is_file():
            commit(place, fill)
        return place

    return keep


def exported(case: str, scratch: Path) -> Path:
    """The case's ONNX file in `scratch`, exported in a process of its own where it is not there yet."""
    place = scratch / case
    if not (place / "manifest.json").is_file():

        def fill(folder: Path) -> dict[str, Any]:
            command = [
                sys.executable,
                __file__,
                "--case",
                case,
                "--export-into",
                str(folder),
                "--scratch",
                str(scratch),
            ]
            done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise OptimizeError(f"{case}: its export ended with code {done.returncode}: {last}")
            return {}

        commit(place, fill)
    return place / ONNX


def measure(case: str, path: Path, facts: GraphFacts, sm: tuple[int, int], scratch: Path) -> dict[str, Any]:
    """Build one engine; a row of figures, or of the reason it failed."""
    settings, sample = EngineSettings(batch=(1, 4)), (1, 16, 16) if case == "digits" else (4, 64, 64)
    profiles = profiles_for(settings, facts, sample)
    order = Order(path, facts, MODULE, str(found_version(MODULE)), sm, profiles, settings)
    about = {"case": case, "sm": sm_text(sm), "module": MODULE, "version": order.version}
    about |= {"weight_bytes": facts.weight_bytes, "expected": facts.expected}
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        try:
            record = make(order, Path(place))
        except OptimizeError as error:
            return about | {"status": "failed", "reason": str(error)}
    return about | {"status": "done"} | {k: record[k] for k in FIGURES}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    start = f"{row['case']:16}{row['sm']:>6}"
    if row["status"] != "done":
        return f"{start} {row['status']}: {row['reason']}"
    layers = ", ".join(f"{f} {row['found'].get(f, 0)}/{n}" for f, n in row["expected"].items())
    sizes = (gb(row["weight_bytes"]), gb(row["peak_memory_bytes"]), gb(row["estimated_memory_bytes"]))
    plan = f"{row['plan_bytes'] / 1e6:,.1f} MB"
    return f"{start}{row['seconds']:>9.1f} s{sizes[0]:>10}{sizes[1]:>10}{sizes[2]:>10}{plan:>13}  {layers}"


def build_all(args: argparse.Namespace, scratch: Path) -> None:
    """Every case asked for, a line and a row each."""
    run: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "start": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["python benchmarks/engines.py", *(f"--case {c}" for c in args.case)]),
        "environment": environment.environment(),
        "exports": {},
        "rows": [],
    }
    for case in args.case:
        sms = [sm for sm in SMS if case == "digits" or sm in CASES[case][3]]
        try:
            path = args.artifact / ONNX if case == "digits" else exported(case, scratch)
        except OptimizeError as error:
            add(run, args.out, {"case": case, "sm": "", "status": "failed", "reason": str(error)})
            continue
        if case != "digits":
            run["exports"][case] = read_json(path.parents[1] / "export.json")
        facts = read_graph(path)
        for sm in sms:
            if not args.sm or sm_text(sm) in args.sm:
                add(run, args.out, measure(case, path, facts, sm, scratch))


def add(run: dict[str, Any], out: Path, row: dict[str, Any]) -> None:
    """Print a row, and put it into the run and its record."""
    run["rows"].append(row)
    print(line(row), flush=True)
    put(out, run)


def main() -> None:
    """Build what was asked for, print a line each, add to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=["digits", "tiny", *CASES], help="digits by default")
    parser.add_argument("--artifact", type=Path, default=Path("exported/digits/final"))
    parser.add_argument("--sm", action="append", help="only these, e.g. 8.6")
    parser.add_argument("--scratch", type=Path, help="folder that keeps exported networks for the next time")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--export-into", type=Path, help=argparse.SUPPRESS)  # a step in a process of its own
    args = parser.parse_args()
    given = args.case or ["digits"]
    args.case = [c for g in given for c in ([n for n in CASES if n.startswith("tiny-")] if g == "tiny" else [g])]
    if args.export_into:
        write_json(args.export_into / "export.json", export(args.case[0], args.export_into, args.scratch))
        return
    print(
        f"{'case':16}{'SM':>6}{'build':>11}{'weights':>10}{'peak':>10}{'estimate':>10}{'plan':>13}  layers found/expected"
    )
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        build_all(args, scratch)


if __name__ == "__main__":
    main()
