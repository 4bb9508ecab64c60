"""Q/DQ in the exported graph: the codes, scales and places the quantizer table says, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable
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
from optimize.onnx.graph import array, initializer
from optimize.onnx.lowering import widen
from optimize.onnx.qdq import least_opset, quantize_layers
from optimize.passes.quantize import Quantize
from optimize.sources.diffusers import DiffusersSource

NARROW = {"int8": TensorProto.INT8, "fp8": TensorProto.FLOAT8E4M3FN}


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, Model]:
    plain = DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=2))
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


# What the comparison layer by layer refuses: a graph for each way to be wrong.
LAYER = "mid_block.resnets.0.conv2"  # 32 -> 32 channels, so that its scales fit either axis
Graph = ir.Model


def feed_of(model: Model) -> dict[str, torch.Tensor]:
    return example_inputs(model.inputs, 2, classes=10)


def nodes(graph: Graph) -> tuple[ir.Node, ir.Node, ir.Node, ir.Node]:
    """The layer's QuantizeLinear, its two DequantizeLinears (of the input, of the weight), and the layer's own node."""
    codes = next(v for n, v in graph.graph.initializers.items() if n.startswith(f"{LAYER}.weight."))
    ((weight, _),) = [u for u in codes.uses() if u[0].op_type == "DequantizeLinear"]
    ((layer, _),) = weight.outputs[0].uses()
    inputs = layer.inputs[0].producer()
    return inputs.inputs[0].producer(), inputs, weight, layer


def put(graph: Graph, node: ir.Node, index: int, change: Callable[[Any], Any]) -> None:
    """Another constant in the place of an input of `node` alone."""
    wrong = initializer(graph, f"wrong.{node.op_type}.{index}", change(array(node.inputs[index])))
    node.replace_input_with(index, wrong)


def step_of_the_input(graph: Graph) -> None:
    q, dq, _, _ = nodes(graph)
    for node in (q, dq):
        put(graph, node, 1, lambda s: (s * 1.001).astype(s.dtype))


def step_of_a_channel(graph: Graph) -> None:
    put(graph, nodes(graph)[2], 1, lambda s: np.where(np.arange(s.size) == 3, s * np.float32(1.01), s).astype(s.dtype))


def step_of_the_weight(graph: Graph) -> None:
    put(graph, nodes(graph)[2], 1, lambda s: (s * 1.001).astype(s.dtype))


def channels_in_another_order(graph: Graph) -> None:
    put(graph, nodes(graph)[2], 1, lambda s: np.roll(s, 1))


def axis(graph: Graph) -> None:
    nodes(graph)[2].attributes["axis"] = ir.AttrInt64("axis", 1)


def zero_point(graph: Graph) -> None:
    put(graph, nodes(graph)[0], 2, lambda z: np.ones_like(z))


def one_code(graph: Graph) -> None:
    codes = nodes(graph)[2].inputs[0]  # keeps its name, which says whose it is
    other = array(codes).copy()
    other.reshape(-1)[5] = 0 if other.reshape(-1)[5] else 1
    codes.const_value = ir.tensor(other, dtype=codes.dtype, name=codes.name)


def input_not_rounded(graph: Graph) -> None:
    q, _, _, layer = nodes(graph)
    layer.replace_input_with(0, q.inputs[0])


def bias(graph: Graph) -> None:
    stored = nodes(graph)[3].inputs[2].producer()  # a Cast of 16 bits
    put(graph, stored, 0, lambda b: (b * 1.01).astype(b.dtype))


WRONG = [(c, "int8") for c in (step_of_the_input, step_of_a_channel, step_of_the_weight, channels_in_another_order, axis, zero_point, one_code, input_not_rounded, bias)]  # fmt: skip
WRONG += [(c, "fp8") for c in (step_of_the_input, step_of_the_weight, one_code, input_not_rounded, bias)]  # per tensor


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_the_right_graph_is_taken_whichever_kernels_computed_the_network(
    format: str, models: Any, exported: Any
) -> None:
    model, (file, _) = models[format], exported[format]
    assert differences(model, file, feed_of(model)) == []
    with torch.backends.mkldnn.flags(enabled=False):
        assert differences(model, file, feed_of(model)) == []


@pytest.mark.parametrize(("wrong", "format"), WRONG, ids=lambda v: getattr(v, "__name__", v))
def test_a_wrong_graph_is_refused(
    wrong: Callable[[Graph], None], format: str, models: Any, exported: Any, tmp_path: Path
) -> None:
    model, (file, _) = models[format], exported[format]
    graph = ir.load(file)
    wrong(graph)
    ir.save(graph, tmp_path / "wrong.onnx")
    said = differences(model, tmp_path / "wrong.onnx", feed_of(model))
    assert said, f"{wrong.__name__} is not seen"
    if wrong in (step_of_the_input, zero_point, input_not_rounded):
        assert said[0].startswith(f"{LAYER}: ") and "round" in said[0]
    # nothing grows: the layers that run before are right
    assert not any(s.startswith("mid_block.resnets.0.conv1") for s in said)
