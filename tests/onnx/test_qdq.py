"""Q/DQ in the exported graph: the codes, scales and places the quantizer table says, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from moved import OWN, own_movement
from onnx import TensorProto, numpy_helper
from support.quantized_checks import differences

from optimize.diffusion.backend import open_runner
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.network import example_inputs
from optimize.diffusion.parity import relative_l2
from optimize.diffusion.sampling import Sampler
from optimize.exporters.onnx import FILE, Onnx
from optimize.onnx.lowering import widen
from optimize.onnx.qdq import least_opset, quantize_layers
from optimize.passes.quantize import Quantize
from optimize.sources.diffusers import DiffusersSource

NARROW = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, Model]:
    plain = DiffusersSource(tiny_folder).load(Sampler(steps=2))
    return {f: Quantize(format=f, samples=4, batch=4).apply(plain, Context())[0] for f in ("int8", "fp8")}


@pytest.fixture(scope="module")
def exported(
    models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("qdq")
    return {n: (folder / n / FILE, Onnx().export(m, folder / n, Context())) for n, m in models.items()}


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_the_graph_holds_codes_between_quantize_and_dequantize(format: str, exported: dict[str, Any]) -> None:
    path, record = exported[format]
    graph = onnx.load(path).graph
    made = {o: n for n in graph.node for o in n.output}
    held = {t.name: t for t in graph.initializer}
    rounded = [
        n for n in graph.node
        if n.op_type in ("Conv", "Gemm", "MatMul") and made.get(n.input[0]) and made[n.input[0]].op_type == "DequantizeLinear"
    ]  # fmt: skip
    assert len(rounded) == record[f"{format}_layers"] > 20
    for node in rounded:
        weight, x = made[node.input[1]], made[made[node.input[0]].input[0]]
        assert weight.op_type == "DequantizeLinear" and x.op_type == "QuantizeLinear"
        assert held[weight.input[0]].data_type == held[x.input[2]].data_type == NARROW[format]


def test_fp8_needs_opset_19_and_gets_it(exported: dict[str, Any], models: dict[str, Model]) -> None:
    assert exported["fp8"][1]["opset"] == onnx.load(exported["fp8"][0]).opset_import[0].version == 19
    assert exported["int8"][1]["opset"] == 18
    assert least_opset(models["fp8"].structure.edits[-1]["record"]["quantizers"]) == 19 and least_opset([]) == 1


def test_fp8_codes_are_torchs_casts_and_their_scale_is_one_number(
    exported: dict[str, Any], models: dict[str, Model]
) -> None:
    held = {t.name: numpy_helper.to_array(t) for t in onnx.load(exported["fp8"][0]).graph.initializer}
    layer = models["fp8"].module.get_submodule("mid_block.resnets.0.conv1")
    codes, scale = held["mid_block.resnets.0.conv1.weight.fp8"], held["mid_block.resnets.0.conv1.weight.scale"]
    assert scale.shape == () and float(scale) * 448 == float(layer.weight_quantizer.amax)
    np.testing.assert_allclose(codes.astype(np.float32) * scale, layer.weight.detach().numpy(), rtol=3e-7)


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_the_graph_computes_what_the_fake_quantized_network_does(
    format: str, exported: dict[str, Any], models: dict[str, Model]
) -> None:
    model = models[format]
    feed = example_inputs(model.inputs, 3, classes=10)
    assert differences(model, exported[format][0], feed) == []
    with torch.inference_mode():
        theirs = model.denoiser.network(**feed)
    with open_runner(exported[format][0].parents[1], "onnxruntime", int8="as_is", threads=1) as network:
        ours = network(**feed)
    # end to end values on the edge between two codes fall to either side: as when the inputs move by a rounding
    assert relative_l2(ours.double(), theirs.double()) < OWN * own_movement(model, feed, draws=4)


@pytest.mark.parametrize(("format", "name"), [("int8", "INT8"), ("fp8", "FP8")])
def test_widened_graphs_hold_no_codes_and_say_what_was_changed(
    format: str, name: str, exported: dict[str, Any]
) -> None:
    model = ir.load(exported[format][0])
    said = widen(model)
    assert said == [
        f"activations of {exported[format][1][f'{format}_layers']} {name} layers not rounded, {name} weights widened at load"
    ]
    assert not {n.op_type for n in model.graph} & {"QuantizeLinear", "DequantizeLinear"}


def _linear(dtype: ir.DataType) -> ir.Model:
    """x (B,16) -> MatMul with `a.weight.T` (16,16), in `dtype`."""
    weight = ir.tensor(np.zeros((16, 16), dtype.numpy()), name="a.weight.T")
    held = ir.Value(name="a.weight.T", const_value=weight, type=ir.TensorType(dtype), shape=ir.Shape((16, 16)))
    x = ir.Value(name="x", type=ir.TensorType(dtype), shape=ir.Shape(("B", 16)))
    node = ir.node("MatMul", [x, held])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[held], opset_imports={"": 19}, name="g")
    return ir.Model(graph, ir_version=10)


def _module(
    range_of_input: float = 2.0, row: dict[str, Any] | None = None
) -> tuple[torch.nn.Module, list[dict[str, Any]]]:
    from optimize.quantization import fake_quant as q

    table = [
        row
        or {
            "module": "a",
            "weight": {"bits": 8, "axis": 0, "shape": [16, 1]},
            "input": {"bits": 8, "axis": None, "shape": []},
        }
    ]
    module = torch.nn.Module()
    module.a = torch.nn.Linear(16, 16, bias=False)
    q.insert(module, table)
    module.a.weight_quantizer.amax = module.a.weight.detach().abs().amax(1, keepdim=True)
    module.a.input_quantizer.amax = torch.tensor(range_of_input)
    return module, table


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_scales_have_the_dtype_the_layer_computes_in(dtype: ir.DataType) -> None:
    graph = _linear(dtype)
    assert quantize_layers(graph, *_module()) == {"int8_layers": 1, "fp8_layers": 0, "int8_weights_only": 0}
    scales = [v for n in graph.graph for v in n.inputs[1:2] if n.op_type != "MatMul"]
    assert len(scales) == 3 and {v.dtype for v in scales} == {dtype}


def test_scales_of_a_dead_range_stay_finite_in_fp16() -> None:
    graph = _linear(ir.DataType.FLOAT16)
    quantize_layers(graph, *_module(range_of_input=0.0))
    step = next(n for n in graph.graph if n.op_type == "QuantizeLinear").inputs[1]
    assert step.const_value.numpy() == np.float16(65504)


def test_a_layer_the_graph_lacks_is_named() -> None:
    module, table = _module()
    module.b = module.a
    with pytest.raises(RuntimeError, match="not found in the traced graph: b"):
        quantize_layers(_linear(ir.DataType.FLOAT), module, [*table, {**table[0], "module": "b"}])
