"""Q/DQ where the quantizer table says, explicit and strongly typed: what TensorRT, OpenVINO and ONNX Runtime read.

    x -> QuantizeLinear -> DequantizeLinear -> Conv | Gemm | MatMul <- DequantizeLinear <- INT8 or FP8 codes
Scales have the dtype of the layer's weight in the graph, so that a layer in FP16 lies between DequantizeLinears that
give FP16 and no Cast stands in the way of fusing them (a strongly typed TensorRT network knows no other conversion).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.onnx.graph import drop_unused, initializer, put
from optimize.quantization.codes import Bits, step_size, to_codes
from optimize.quantization.fake_quant import format_of

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from optimize.quantization.fake_quant import Table

FP8_OPSET = 19  # the first with FP8, and with scales in 16 bit


def least_opset(table: Table) -> int:
    """The ONNX operator set that the codes of `table` need."""
    return FP8_OPSET if any(_formats(row) & {"fp8"} for row in table) else 1


def quantize_layers(model: ir.Model, module: nn.Module, table: Table) -> dict[str, int]:
    """Insert Q/DQ around the layers of `table`, whose quantizers `module` holds; their weights become initializers of
    codes. Layers that share an input share its rounding.

    Returns {int8_layers, fp8_layers (both operands rounded), int8_weights_only}. Raises RuntimeError, naming the
    layers, where the graph lacks some.
    """
    counts = {"int8_layers": 0, "fp8_layers": 0, "int8_weights_only": 0}
    shared: dict[Any, ir.Value] = {}
    missing = []
    for row in table:
        path, layer = row["module"], module.get_submodule(row["module"])
        found = [(v, axis) for n, axis in _names(path) if (v := model.graph.initializers.get(n)) is not None]
        for value, axis in found:
            for node, index in list(value.uses()):
                if row["input"] is not None:
                    _round_input(model, node, layer.input_quantizer, row["input"]["bits"], value.dtype, shared)
                node.replace_input_with(index, _decoded(model, value, layer, row["weight"]["bits"], axis))
        if not found:
            missing.append(path)
        counts[f"{format_of(row['weight']['bits'])}_{'layers' if row['input'] else 'weights_only'}"] += 1
    if missing:
        raise RuntimeError(f"onnx: quantized layers not found in the traced graph: {', '.join(sorted(missing))}")
    drop_unused(model)
    model.graph.sort()  # layers that share an input run in an order of their own
    return counts


def _formats(row: dict[str, Any]) -> set[str]:
    return {format_of(row[kind]["bits"]) for kind in ("weight", "input") if row[kind]}


def _names(path: str) -> tuple[tuple[str, int], ...]:
    """(initializer, axis of its output channels) under which a layer's weight may stand."""
    return (f"{path}.weight", 0), (f"{path}.weight.T", 1)


def _decoded(model: ir.Model, value: ir.Value, layer: Any, bits: Bits, axis: int) -> ir.Value:
    """DequantizeLinear of the codes of a layer's weight, in the place of `value`; `axis` holds the output channels."""
    amax = layer.weight_quantizer.amax
    codes = _numpy(to_codes(layer.weight.detach(), amax, bits).cpu())
    stored = initializer(model, f"{value.name}.{format_of(bits)}", codes.T if axis else codes)
    steps = step_size(amax, bits).cpu().numpy()
    scale = initializer(
        model, f"{value.name}.scale", _in(value.dtype, steps.reshape(-1) if steps.size > 1 else steps.reshape(()))
    )
    attributes: dict[str, Any] = {"axis": axis} if steps.size > 1 else {}
    return put(model, "DequantizeLinear", [stored, scale], f"{value.name}.dq", **attributes)


def _round_input(
    model: ir.Model, node: ir.Node, quantizer: Any, bits: Bits, dtype: Any, shared: dict[Any, ir.Value]
) -> None:
    """Put x -> QuantizeLinear -> DequantizeLinear, per tensor and symmetric, before the node's first input."""
    x = node.inputs[0]
    assert x is not None
    step = _in(dtype, step_size(quantizer.amax, bits).cpu().numpy().reshape(()))
    key = (id(x), bits, step.tobytes())
    if key not in shared:
        steps = initializer(model, f"{x.name}.scale.{len(model.graph.initializers)}", step)
        zero = initializer(model, f"zero.{format_of(bits)}", _zero(bits))
        codes = put(model, "QuantizeLinear", [x, steps, zero], f"{steps.name}.q", before=node)
        shared[key] = put(model, "DequantizeLinear", [codes, steps, zero], f"{steps.name}.dq", before=node)
    node.replace_input_with(0, shared[key])


def _in(dtype: Any, steps: np.ndarray) -> np.ndarray:
    """Step sizes in the dtype a layer computes in; those too large for it become its largest number."""
    import ml_dtypes

    kind = dtype.numpy()
    return np.minimum(steps, np.float32(ml_dtypes.finfo(kind).max)).astype(kind)


def _zero(bits: Bits) -> np.ndarray:
    import ml_dtypes

    return np.zeros((), ml_dtypes.float8_e4m3fn if bits == "e4m3" else np.int8)


def _numpy(codes: Tensor) -> np.ndarray:
    """Codes as numpy has them; FP8 bit by bit, since torch does not convert it."""
    import ml_dtypes
    import torch

    if codes.dtype == torch.float8_e4m3fn:
        return codes.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return codes.numpy()
