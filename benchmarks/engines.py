"""What engines take to build without a GPU: seconds, peak memory, plan bytes, and whether the graph's formats arrived.

    python benchmarks/engines.py --artifact exported/digits/final --case digits
    python benchmarks/engines.py --case unet-fp16 --case unet-int8 --case transformer-fp8

TensorRT-RTX builds digits final for SM 8.0, 8.6, 8.9 and 12.0; a U-Net of Stable Diffusion 1.5's size in FP16 and in
INT8 with FP16 for the same; and a transformer of DiT-XL/2's size in FP8 for SM 8.9. The large networks have random
weights and step sizes without calibration: builds are measured, not quality. Rows are appended to the record.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from optimize import environment
from optimize.engines.graph import read_graph
from optimize.engines.make import Order, make
from optimize.engines.memory import gb
from optimize.engines.modules import found_version, sm_text
from optimize.engines.profiles import defaults, plan_profiles
from optimize.engines.settings import EngineSettings
from optimize.network import TensorSpec, nested, raw_output

MODULE = "tensorrt_rtx"
OUT = Path(__file__).parent / "records" / "engines.json"
SMS = ((8, 0), (8, 6), (8, 9), (12, 0))
RANGE = 6.0  # of every activation
# diffusers' defaults of UNet2DConditionModel are Stable Diffusion 1.5's but for these
UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
UNET_INPUTS = (
    TensorSpec("sample", ("B", 4, 64, 64)),
    TensorSpec("timestep", ("B",)),
    TensorSpec("encoder_hidden_states", ("B", 77, 768)),
)
# facebook/DiT-XL-2-256: transformer/config.json
DIT = {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 28,
       "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000}  # fmt: skip
DIT_INPUTS = (
    TensorSpec("hidden_states", ("B", 4, 32, 32)),
    TensorSpec("timestep", ("B",), "int64"),
    TensorSpec("class_labels", ("B",), "int64"),
)


def unet(folder: Path, format: str) -> Path:
    """A U-Net of Stable Diffusion 1.5's size in FP16, convolutions and linear layers in `format` where it is narrower."""
    from diffusers import UNet2DConditionModel

    return half_onnx(lambda: UNet2DConditionModel(**UNET), UNET_INPUTS, folder, format)


def transformer(folder: Path, format: str) -> Path:
    """A transformer of DiT-XL/2's size, likewise."""
    from diffusers import DiTTransformer2DModel

    return half_onnx(lambda: DiTTransformer2DModel(**DIT), DIT_INPUTS, folder, format)


CASES: dict[str, tuple[Callable[[Path, str], Path], str, tuple[tuple[int, int], ...]]] = {
    "unet-fp16": (unet, "fp16", SMS),
    "unet-int8": (unet, "int8", SMS),
    "transformer-fp8": (transformer, "fp8", ((8, 9),)),
}


def half_onnx(build: Callable[[], Any], inputs: tuple[TensorSpec, ...], folder: Path, format: str) -> Path:
    """The network traced in FP16 (float32 outside), with Q/DQ before and in the weights of its layers where asked."""
    import onnx_ir as ir
    import torch

    from optimize import onnx_graph as g
    from optimize.onnx_clean import simplify

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)  # weights are made in it: half the memory
    module = build().eval().requires_grad_(False)
    torch.set_default_dtype(torch.float32)
    graph = trace(module, inputs)
    simplify(graph)
    if format != "fp16":
        quantize(graph, module, format)
    g.anonymize(graph)
    path = folder / "model.onnx"
    ir.save(graph, path, external_data="model.onnx.data")
    return path


def trace(module: Any, inputs: tuple[TensorSpec, ...]) -> Any:
    """torch's exporter, with a symbolic batch; weights keep their names."""
    import torch

    from optimize.network import example_inputs

    class Half(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, *given: Any) -> Any:
            narrow = {
                s.name: x.half() if x.is_floating_point() and s.name != "timestep" else x for s, x in zip(inputs, given)
            }
            return raw_output(self.network(**nested(narrow))).float()

    batch = torch.export.Dim("B", min=1, max=63)
    shapes = tuple({i: batch for i, d in enumerate(s.dims) if d == "B"} for s in inputs)
    program = torch.onnx.export(
        Half(), tuple(example_inputs(inputs, 2).values()), dynamo=True, opset_version=19, input_names=[s.name for s in inputs],
        output_names=["out_sample"], dynamic_shapes=(shapes,), optimize=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    for value in list(program.model.graph.initializers.values()):
        value.name = (value.name or "").removeprefix("network.")
    return program.model


def quantize(graph: Any, module: Any, format: str) -> None:
    """Q/DQ around every convolution and linear layer whose channels tensor cores take (multiples of 16)."""
    import torch

    from optimize.onnx_quantize import quantize_layers

    bits, table = (8 if format == "int8" else "e4m3"), []
    for path, layer in module.named_modules():
        if not isinstance(layer, torch.nn.Conv2d | torch.nn.Linear) or any(n % 16 for n in layer.weight.shape[:2]):
            continue
        axis = 0 if format == "int8" else None
        others = tuple(range(1 if axis == 0 else 0, layer.weight.dim()))
        layer.weight_quantizer = SimpleNamespace(amax=layer.weight.abs().amax(dim=others, keepdim=True).float())
        layer.input_quantizer = SimpleNamespace(amax=torch.tensor(RANGE))
        table.append({"module": path, "weight": {"bits": bits, "axis": axis}, "input": {"bits": bits, "axis": None}})
    quantize_layers(graph, module, table)


def digits(artifact: Path) -> Path:
    """The exported file of an artifact."""
    return artifact / "onnx" / "model.onnx"


def measure(name: str, path: Path, sm: tuple[int, int], sample: tuple[int, ...]) -> dict[str, Any]:
    """Build one engine; a row of figures, or of the reason it failed."""
    settings, facts = EngineSettings(batch=(1, 4)), read_graph(path)
    profiles = plan_profiles(facts.inputs, defaults(facts.inputs, settings.batch, sample))
    order = Order(path, facts, MODULE, str(found_version(MODULE)), sm, profiles, settings)
    row = {
        "case": name,
        "sm": sm_text(sm),
        "module": MODULE,
        "version": order.version,
        "weight_bytes": facts.weight_bytes,
    }
    with tempfile.TemporaryDirectory(dir=path.parent.parent if name != "digits" else None) as scratch:
        record = make(order, Path(scratch))
    figures = (
        "seconds",
        "peak_memory_bytes",
        "estimated_memory_bytes",
        "plan_bytes",
        "expected",
        "found",
        "problems",
        "targets",
    )
    return row | {k: record[k] for k in figures}


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    layers = ", ".join(f"{f} {row['found'].get(f, 0)}/{n}" for f, n in row["expected"].items())
    sizes = (gb(row["weight_bytes"]), gb(row["peak_memory_bytes"]), gb(row["estimated_memory_bytes"]))
    plan = f"{row['plan_bytes'] / 1e6:,.1f} MB"
    return f"{row['case']:16}{row['sm']:>6}{row['seconds']:>9.1f} s{sizes[0]:>10}{sizes[1]:>10}{sizes[2]:>10}{plan:>13}  {layers}"


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put a run's rows at the end of the record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = json.loads(path.read_text()) if path.is_file() else []
    run = {"date": time.strftime("%Y-%m-%d", time.gmtime()), "environment": environment.environment(), "rows": rows}
    path.write_text(json.dumps([*held, run], indent=1) + "\n")


def main() -> None:
    """Build what was asked for, print a line each, append to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", choices=["digits", *CASES], help="digits by default")
    parser.add_argument("--artifact", type=Path, default=Path("exported/digits/final"))
    parser.add_argument("--sm", action="append", help="only these, e.g. 8.6")
    parser.add_argument("--scratch", type=Path, help="folder for large files, emptied afterwards")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    print(
        f"{'case':16}{'SM':>6}{'build':>11}{'weights':>10}{'peak':>10}{'estimate':>10}{'plan':>13}  layers found/expected"
    )
    for name in args.case or ["digits"]:
        rows = []
        scratch = Path(tempfile.mkdtemp(dir=args.scratch))
        try:
            (scratch / "onnx").mkdir()
            if name == "digits":
                path, sms, sample = digits(args.artifact), SMS, (1, 16, 16)
            else:
                make_file, format, sms = CASES[name]
                path, sample = make_file(scratch / "onnx", format), (4, 64, 64)
            for sm in sms:
                if not args.sm or sm_text(sm) in args.sm:
                    rows.append(measure(name, path, sm, sample))
                    print(line(rows[-1]), flush=True)
        finally:
            shutil.rmtree(scratch)
        append(args.out, rows)


if __name__ == "__main__":
    main()
