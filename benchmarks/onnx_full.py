"""A full-size network with random weights as ONNX: seconds, peak memory, bytes, and parity on one small input.

Export and comparison run in a process of their own each, so that each peak is its own. The reference is torch's output
for one input of reduced height and width, kept as a file between the two.

    python benchmarks/onnx_full.py sdxl fp16 [--record]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from networks import FULL
from recorded import append

LIMITS = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
SMALL = {"H": 16, "W": 24, "L": 16, "S": 96}  # sizes of the one input that is compared
PEAK = 20e9  # bytes a full-size export may take


def measured(name: str, precision: str) -> dict[str, Any]:
    """The row of one network and precision, made by two processes."""
    row: dict[str, Any] = {"network": name, "precision": precision, "exporter": "auto"}
    with tempfile.TemporaryDirectory() as scratch:
        for step in ("export", "compare"):
            done = subprocess.run(
                [sys.executable, __file__, name, precision, "--step", step, "--folder", scratch],
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                return row | {"status": "failed", "reason": f"{step}: exit code {done.returncode}: {last}"}
            row |= json.loads(done.stdout.splitlines()[-1])
    return row | judged(row)


def judged(row: dict[str, Any]) -> dict[str, Any]:
    """Status and reason: parity within its limit, and the export's peak memory within its own."""
    limit = LIMITS[row["precision"]]
    problems = []
    if not row["parity"]["relative_l2"] <= limit:
        problems.append(f"relative L2 {row['parity']['relative_l2']:.1e} is above {limit:.0e}")
    if row["peak_bytes"] > PEAK:
        problems.append(f"the export took {row['peak_bytes'] / 1e9:.1f} GB")
    reason = "; ".join(problems) or f"{row['params'] / 1e6:,.1f} M parameters, peak {row['peak_bytes'] / 1e9:.1f} GB"
    return {"status": "failed" if problems else "done", "reason": reason}


def network(name: str) -> tuple[Any, Any]:
    """(module, inputs) with seeded random weights, each made once and in place; height and width symbolic."""
    import torch
    from accelerate import init_empty_weights

    from optimize.architectures.known import architecture
    from optimize.onnx.symbols import opened

    config = FULL[name]
    entry = architecture(config["_class_name"])
    with init_empty_weights(include_buffers=False):
        module = entry.build(config)
    generator = torch.Generator().manual_seed(0)
    for path, parameter in list(module.named_parameters()):
        owner, _, key = path.rpartition(".")
        values = torch.empty(parameter.shape)
        bound = (3.0 / max(1, values[0].numel())) ** 0.5 if values.dim() > 1 else 0.05
        values.uniform_(-bound, bound, generator=generator)
        if values.dim() == 1 and key == "weight":
            values += 1.0  # of a norm
        setattr(module.get_submodule(owner), key, torch.nn.Parameter(values, requires_grad=False))
    return module.eval(), opened(entry.inputs(config), ("H", "W", "L"))


def feed(inputs: Any) -> dict[str, Any]:
    """The input that is compared."""
    from optimize.diffusion.network import example_inputs
    from optimize.onnx.symbols import symbols

    return example_inputs(inputs, 1, **{s: SMALL[s] for s in symbols(inputs) - {"B"}})


def export(name: str, precision: str, folder: Path) -> dict[str, Any]:
    """Export into `folder`, and keep torch's output beside it. Seconds are the clock's and the processor's."""
    import torch
    from safetensors.torch import save_file

    from optimize.diffusion.network import nested, raw_output
    from optimize.exporters.onnx import Onnx

    module, inputs = network(name)
    given = feed(inputs)
    with torch.inference_mode():
        save_file({"out": raw_output(module(**nested(given))).contiguous()}, folder / "reference.safetensors")
    start, before, steps = perf_counter(), process_time(), {}

    def advance(n: float, note: str) -> None:
        step = note if note in ("traced", "cleaned") else "written"
        steps[step] = round(perf_counter() - start, 1)

    record = Onnx(precision=precision).export_network(module, inputs, folder, feeds=lambda: [given], advance=advance)
    about = {"seconds": round(perf_counter() - start, 1), "cpu_seconds": round(process_time() - before, 1)}
    params = sum(p.numel() for p in module.parameters())
    return {"record": record, **about, "done_after_s": steps, "params": params, "peak_bytes": _peak()}


def compare(name: str, precision: str, folder: Path) -> dict[str, Any]:
    """ONNX Runtime's output against torch's."""
    from safetensors.torch import load_file

    from optimize.architectures.known import architecture
    from optimize.diffusion.backend import open_runner
    from optimize.diffusion.parity import relative_l2
    from optimize.onnx.symbols import opened

    config = FULL[name]
    inputs = opened(architecture(config["_class_name"]).inputs(config), ("H", "W", "L"))
    wanted = load_file(folder / "reference.safetensors")["out"].double()
    with open_runner(folder, "onnxruntime", threads=1) as runner:
        found = runner(**feed(inputs)).double()
    parity = {"relative_l2": relative_l2(found, wanted), "max_abs": float((found - wanted).abs().max())}
    return {"parity": parity, "compare_peak_bytes": _peak()}


def _peak() -> int:
    """Peak memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """One step in this process, or the whole row, as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(FULL))
    parser.add_argument("precision", choices=list(LIMITS))
    parser.add_argument("--step", choices=["export", "compare"])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--record", action="store_true", help="append the row to benchmarks/records/onnx_full.json")
    args = parser.parse_args()
    if args.step is None:
        row = measured(args.network, args.precision)
        print(json.dumps(row))
        if args.record:
            append("onnx_full", f"onnx_full.py {args.network} {args.precision}", [row])
        return
    step = {"export": export, "compare": compare}[args.step]
    print(json.dumps(step(args.network, args.precision, args.folder)))


if __name__ == "__main__":
    main()
