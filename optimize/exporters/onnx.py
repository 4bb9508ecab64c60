"""One `model.onnx`: the raw network, diffusers' input names, symbolic dims, 8- and 16-bit weights stored as such.

The float network goes through torch's own exporters; Q/DQ nodes are then placed by the quantizer table of the model's
structure (the exporters cannot trace modelopt's fake quantizers), and what computes in 16 bit is written into the graph,
so the graph says exactly what the record says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from optimize.architectures.finite import require_finite_weights
from optimize.configs import Config
from optimize.exporters._compared import same_results
from optimize.onnx.file import EMBEDDED_BYTES, save
from optimize.onnx.precision import LOWEST_OPSET, lower
from optimize.onnx.symbols import opened
from optimize.onnx.trace import OUTPUT, Exporter, Traced, Tracing, traced
from optimize.registry import EXPORTERS

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from optimize.diffusion.context import Context, Keep
    from optimize.diffusion.model import Model
    from optimize.diffusion.network import TensorSpec

FILE = "onnx/model.onnx"
OPSETS = range(18, 24)
QDQ_16_BIT = 19  # the first operator set whose Q/DQ take 16-bit floats
LEVELS = 4  # noise levels at which activations are looked at
Feeds = Callable[[], Iterable[Mapping[str, "Tensor"]]]


@dataclass(frozen=True)
class Rounding:
    """What a quantization left: its table, the dtype of kept weights, and the module that holds the quantizers."""

    table: list[dict[str, Any]] = field(default_factory=list)
    kept: str = "fp32"
    module: nn.Module | None = None


@EXPORTERS.register("onnx")
class Onnx(Config):
    """The network as ONNX."""

    opset: Annotated[int, Field(json_schema_extra={"minimum": OPSETS[0], "maximum": OPSETS[-1]})] | None = None
    """ONNX operator set, 18 to 23; by default the lowest that holds the precision: 18, for fp16 20, for bf16 22."""
    precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """What floats compute in. In 16 bit, layers that must not stay FP32 do, and the record names them."""
    outside: Literal["float32", "same"] = "float32"
    """Inputs and outputs of a 16-bit graph: float32, which all that feeds the float network feeds, or 16 bit as
    well."""
    fp32_layers: tuple[str, ...] = ()
    """Module paths of layers that stay FP32 in a 16-bit graph besides those found."""
    exporter: Exporter = "auto"
    """torch.export's exporter, the older one, or auto: the older one where a network defeats the first."""
    symbolic: tuple[str, ...] | None = None
    """Dims that must stay symbolic, B H W L …; the others are fixed. By default all that the network's inputs leave
    open."""
    weights: Literal["as_stored", "fp32"] = "as_stored"
    """Kept weights of a quantized model: as stored in 16 bit, or widened to FP32."""
    embedded_bytes: Annotated[int, Field(ge=0, le=EMBEDDED_BYTES)] = EMBEDDED_BYTES
    """Bytes of weights above which they go into a file beside the graph; protobuf ends at 2 GiB."""

    @field_validator("opset")
    @classmethod
    def _known(cls, value: int | None) -> int | None:
        if value is not None and value not in OPSETS:
            raise ValueError(f"Allowed: {OPSETS[0]} to {OPSETS[-1]}, or none for the lowest that holds the precision")
        return value

    def export(self, model: Model, folder: Path, context: Context) -> dict[str, Any]:
        """Write `folder/onnx/model.onnx`; returns the record, see `export_network`.

        Raises EnvironmentLacks where onnx or onnxscript, disk or memory is missing, UserError for a network that cannot
        be traced as asked, ArtifactError for one whose weights hold NaN, GateFailed where cleaning changed the graph."""
        require_finite_weights(model.module, "onnx")
        rounding = _rounding(model)
        module = _plain(model.module, rounding.table)
        with context.progress("export onnx", 3) as advance:
            return self.export_network(
                module, model.inputs, folder, structure=_structure(model), keep=context.keep, rounding=rounding,
                feeds=lambda: _noised(model), advance=advance,
            )  # fmt: skip

    def export_network(
        self,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        folder: Path,
        *,
        structure: Any = None,
        keep: Keep | None = None,
        rounding: Rounding | None = None,
        feeds: Feeds | None = None,
        advance: Callable[[float, str], None] = lambda n, note: None,
    ) -> dict[str, Any]:
        """Any float network as `folder/onnx/model.onnx`; returns the record `{file, bytes, opset, inputs, output, exporter,
        reason, symbols, fixed, nodes, precision, .., int8_layers, fp8_layers, int8_weights_only, kept_dtype}`.

        `feeds` gives inputs on which FP16's range is tried; by default seeded ones over the noise levels."""
        rounding = rounding or Rounding()
        opset = self.resolved_opset(rounding.table)
        how = Tracing(opset, self.exporter, self.symbolic)
        made = traced(module, opened(inputs, self.symbolic or ()), how, structure, keep)
        advance(1, "traced")
        record = self._finish(made, module, rounding, feeds or (lambda: _examples(inputs)))
        advance(1, "cleaned")
        size = save(made.graph, folder / FILE, self.embedded_bytes)
        advance(1, f"{size} bytes")
        names = [s.name for s in inputs]
        about = {"file": FILE, "bytes": size, "opset": opset, "inputs": names, "output": OUTPUT}
        return about | made.record | record

    def resolved_opset(self, table: list[dict[str, Any]]) -> int:
        """The operator set asked for, or the lowest that holds the precision; never below what a quantizer table needs."""
        from optimize.onnx.qdq import least_opset

        halves = QDQ_16_BIT if table and self.precision != "fp32" else 1
        return max(self.opset or LOWEST_OPSET[self.precision], least_opset(table), halves)

    def _finish(self, made: Traced, module: nn.Module, rounding: Rounding, feeds: Feeds) -> dict[str, Any]:
        """Clean the graph, quantize it, give it its precision; the record of all three."""
        from optimize.onnx import graph as g
        from optimize.onnx.clean import simplify
        from optimize.onnx.qdq import quantize_layers

        nodes, doubles = {"traced": len(made.graph.graph)}, g.narrow_doubles(made.graph)
        with same_results(made.graph, feeds):
            simplify(made.graph)
        nodes["cleaned"] = len(made.graph.graph)
        lowered = self.precision != "fp32"
        about = self._lowered(made.graph, module, feeds) if lowered else {"precision": "fp32"}
        counts = quantize_layers(made.graph, rounding.module or module, rounding.table)
        stored = self.precision if lowered else rounding.kept if self.weights == "as_stored" else "fp32"
        if not lowered and stored != "fp32":
            g.store_16_bit(made.graph, stored)
        g.anonymize(made.graph)
        if lowered:
            made.graph.metadata_props[g.NOTE] = self.precision
        return {"nodes": nodes, "doubles_narrowed": doubles} | about | counts | {"kept_dtype": stored}

    def _lowered(self, graph: ir.Model, module: nn.Module, feeds: Feeds) -> dict[str, Any]:
        from optimize.onnx.overflow import overflowing

        assert self.precision != "fp32"
        found = overflowing(module, feeds()) if self.precision == "fp16" else {}
        return lower(graph, self.precision, {**dict.fromkeys(self._asked(module)), **found}, self.outside)

    def _asked(self, module: nn.Module) -> list[str]:
        """The layers in `fp32_layers` and all modules in them; UserError for a path that is none of the network's."""
        from optimize.errors import unknown

        paths = [path for path, _ in module.named_modules() if path]
        for asked in self.fp32_layers:
            if asked not in paths:
                raise unknown("fp32_layers", asked, paths)
        return [p for p in paths if any(p == a or p.startswith(f"{a}.") for a in self.fp32_layers)]


def _rounding(model: Model) -> Rounding:
    """What the last quantization left; nothing for a float model."""
    for edit in reversed(model.structure.edits):
        if "quantizers" in edit["record"]:
            table = edit["record"]["quantizers"]
            return Rounding(table, edit["record"]["kept_dtype"], model.module)
    return Rounding()


def _structure(model: Model) -> dict[str, Any]:
    """The structure of the float network: all edits but quantization, which `_plain` takes back."""
    structure = model.structure.to_json()
    return structure | {"edits": [e for e in structure["edits"] if "quantizers" not in e["record"]]}


def _plain(module: nn.Module, table: list[dict[str, Any]]) -> nn.Module:
    from optimize.quantization.fake_quant import float_copy

    return float_copy(module, table) if table else module


def _noised(model: Model) -> Iterable[Mapping[str, Tensor]]:
    """The model's own inputs over the noise range."""
    from optimize.diffusion.parity import noise_levels, noised_inputs

    return (noised_inputs(model, t, 2, 0) for t in noise_levels(model, LEVELS))


def _examples(inputs: tuple[TensorSpec, ...]) -> Iterable[Mapping[str, Tensor]]:
    """Seeded inputs at the network's own sizes; a batch's times go over the whole range."""
    from optimize.diffusion.network import example_inputs

    yield example_inputs(inputs, LEVELS)
