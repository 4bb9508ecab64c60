"""One `model.onnx`: the raw network, diffusers' input names, symbolic batch, 8- and 16-bit weights stored as such.

The float network goes through torch's own exporter; Q/DQ nodes are then placed by the quantizer table of the model's
structure (the exporter cannot trace modelopt's fake quantizers), so the graph says exactly what the record says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from optimize.configs import Config
from optimize.onnx_trace import OUTPUT, traced
from optimize.registry import EXPORTERS

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from optimize.context import Context
    from optimize.model import Model

FILE = "onnx/model.onnx"
EMBEDDED_BYTES = 2_000_000_000  # above this the weights go into a file of their own


@EXPORTERS.register("onnx")
class Onnx(Config):
    """The network as ONNX."""

    opset: Annotated[int, Field(ge=18, le=20)] = 18  # ONNX operator set at least; FP8 needs 19
    weights: Literal["as_stored", "fp32"] = "as_stored"  # kept weights of a quantized model: 16 bit, or widened to FP32

    def export(self, model: Model, folder: Path, context: Context) -> dict[str, Any]:
        """Write `folder/onnx/model.onnx`; returns the record {file, bytes, opset, inputs, output, int8_layers,
        fp8_layers, int8_weights_only, kept_dtype}.

        Raises EnvironmentLacks where onnx or onnxscript is missing."""
        from optimize.onnx_quantize import least_opset

        table, kept = _quantization(model)
        opset = max(self.opset, least_opset(table))
        with context.progress("export onnx", 3) as advance:
            graph = traced(_plain(model.module, table), model.inputs, opset, _structure(model), context.keep)
            advance(1, "traced")
            record = self._finish(graph, model, table, kept)
            advance(1, "cleaned")
            path = folder / FILE
            path.parent.mkdir(parents=True, exist_ok=True)
            save(graph, path)
            advance(1, f"{path.stat().st_size} bytes")
        names = [s.name for s in model.inputs]
        return {
            "file": FILE,
            "bytes": path.stat().st_size,
            "opset": opset,
            "inputs": names,
            "output": OUTPUT,
            **record,
        }

    def _finish(self, graph: ir.Model, model: Model, table: list[dict[str, Any]], kept: str) -> dict[str, Any]:
        from optimize import onnx_graph as g
        from optimize.onnx_quantize import quantize_layers

        g.simplify(graph)
        counts = quantize_layers(graph, model.module, table)
        stored = kept if self.weights == "as_stored" else "fp32"
        if stored != "fp32":
            g.store_16_bit(graph, stored)
        g.anonymize(graph)
        return {**counts, "kept_dtype": stored}


def _quantization(model: Model) -> tuple[list[dict[str, Any]], str]:
    """The quantizer table and the dtype of what is kept; empty and fp32 for a float model."""
    for edit in reversed(model.structure.edits):
        if "quantizers" in edit["record"]:
            return edit["record"]["quantizers"], edit["record"]["kept_dtype"]
    return [], "fp32"


def _structure(model: Model) -> dict[str, Any]:
    """The structure of the float network: all edits but quantization, which `_plain` takes back."""
    structure = model.structure.to_json()
    return structure | {"edits": [e for e in structure["edits"] if "quantizers" not in e["record"]]}


def _plain(module: nn.Module, table: list[dict[str, Any]]) -> nn.Module:
    from optimize.quantizers import float_copy

    return float_copy(module, table) if table else module


def save(graph: ir.Model, path: Path) -> None:
    """Write and check the file; weights go beside it only where they exceed protobuf's 2 GB."""
    import onnx
    import onnx_ir as ir

    size = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    ir.save(graph, path, external_data="model.onnx.data" if size > EMBEDDED_BYTES else None)
    onnx.checker.check_model(str(path), full_check=True)
