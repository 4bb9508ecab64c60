"""What an ONNX file says before TensorRT sees it: inputs, bytes of weights, and the format every convolution and matrix
product is to be computed in, which is what the engine is checked against later."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.diffusion.network import TensorSpec
from optimize.onnx.check import check_onnx
from optimize.onnx.file import weight_bytes
from optimize.storage.weights import file_sha256

if TYPE_CHECKING:
    import onnx_ir as ir

HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PASSING = (
    "Transpose",
    "Reshape",
    "Identity",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
)  # between a DequantizeLinear and its layer
NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64", "INT8": "int8", "UINT8": "int8"}
FP8 = ("FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT8E4M3FNUZ", "FLOAT8E5M2FNUZ")
NARROW = ("int8", "fp8")


@dataclass(frozen=True)
class GraphFacts:
    """`layers` is (operator, format) -> count over convolutions and matrix products; a format is what the layer computes
    in: int8 or fp8 where both operands come through Q/DQ, else the floating-point type of its operands."""

    inputs: tuple[TensorSpec, ...]
    weight_bytes: int  # as stored in the file
    layers: dict[tuple[str, str], int]
    weights_only: int  # layers whose weights alone are stored narrow
    files: dict[str, str]  # file -> SHA-256, external data included

    def count(self, format: str, conv: bool | None = None) -> int:
        """Layers in this format: convolutions, matrix products, or (None) both."""
        return sum(n for (op, f), n in self.layers.items() if f == format and conv in (None, op.startswith("Conv")))

    @property
    def formats(self) -> dict[str, int]:
        """format -> layers."""
        found: Counter[str] = Counter()
        for (_, format), count in self.layers.items():
            found[format] += count
        return dict(sorted(found.items()))

    @property
    def expected(self) -> dict[str, int]:
        """Layers by kind and format, "conv int8": what an engine of the graph is compared with."""
        found: Counter[str] = Counter()
        for (op, format), count in self.layers.items():
            found[f"{'conv' if op.startswith('Conv') else 'matmul'} {format}"] += count
        return dict(sorted(found.items()))

    @property
    def symbols(self) -> tuple[str, ...]:
        """Symbolic dimensions in the order of their first use."""
        return tuple(dict.fromkeys(d for spec in self.inputs for d in spec.dims if isinstance(d, str)))


def read_graph(path: Path) -> GraphFacts:
    """Facts of an ONNX file that keeps the rules of `optimize.onnx.check`; ArtifactError where it does not: missing,
    truncated, hostile, or with data outside its folder."""
    import onnx_ir as ir
    import onnx_ir.passes.common as passes

    files = {name: file_sha256(path.parent / name) for name in (path.name, *check_onnx(path))}
    model = ir.load(path)  # its weights stay on disk until they are asked for
    stored, inputs = weight_bytes(model), tuple(_spec(value) for value in model.graph.inputs)
    passes.ShapeInferencePass()(model)
    layers: Counter[tuple[str, str]] = Counter()
    weights_only = 0
    for node in model.graph:
        if node.op_type in HEAVY and node.domain in ("", "ai.onnx"):
            format, only = format_of(node)
            layers[node.op_type, format] += 1
            weights_only += only
    return GraphFacts(inputs, stored, dict(layers), weights_only, files)


def _spec(value: Any) -> TensorSpec:
    dims = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape or ())
    names = {"FLOAT": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "INT64": "int64", "INT32": "int32"}
    kind = value.dtype.name if value.dtype is not None else "?"
    return TensorSpec(value.name, dims, names.get(kind, kind.lower()))


def format_of(node: ir.Node) -> tuple[str, bool]:
    """(format the layer computes in, whether only its weights are narrow). See `GraphFacts.layers`."""
    codes = [_codes(node.inputs[i]) for i in range(2)]
    if codes[0] in NARROW and codes[0] == codes[1]:
        return str(codes[0]), False
    kinds = [v.dtype.name for v in node.inputs[:2] if v is not None and v.dtype is not None]
    wide = next((NAMES[k] for k in kinds if k in NAMES), "unknown")
    return wide, codes[1] is not None


def _codes(value: Any) -> str | None:
    """int8 or fp8 where a tensor comes out of a DequantizeLinear, looked for through reshaping; None where it does not."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in (*PASSING, "Cast"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    kind = node.inputs[0].dtype
    name = kind.name if kind is not None else ""
    return "fp8" if name in FP8 else NAMES.get(name, name.lower() or None)
