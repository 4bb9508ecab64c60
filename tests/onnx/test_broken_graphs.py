"""The comparison of a quantized graph with its network, layer by layer: it takes the right graph and refuses every wrong one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.quantized_checks import differences

from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.network import example_inputs
from optimize.diffusion.sampling import Sampler
from optimize.exporters.onnx import FILE, Onnx
from optimize.onnx.graph import array, initializer
from optimize.passes.quantize import Quantize
from optimize.sources.diffusers import DiffusersSource

LAYER = "mid_block.resnets.0.conv2"  # 32 -> 32 channels, so that its scales fit either axis
Graph = ir.Model


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Model, Path]]:
    plain, root = DiffusersSource(tiny_folder).load(Sampler(steps=2)), tmp_path_factory.mktemp("graphs")
    found = {}
    for format in ("int8", "fp8"):
        model = Quantize(format=format, samples=4, batch=4).apply(plain, Context())[0]
        Onnx().export(model, root / format, Context())
        found[format] = model, root / format / FILE
    return found


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
def test_the_right_graph_is_taken_whichever_kernels_computed_the_network(format: str, made: Any) -> None:
    model, file = made[format]
    assert differences(model, file, feed_of(model)) == []
    with torch.backends.mkldnn.flags(enabled=False):
        assert differences(model, file, feed_of(model)) == []


@pytest.mark.parametrize(("wrong", "format"), WRONG, ids=lambda v: getattr(v, "__name__", v))
def test_a_wrong_graph_is_refused(wrong: Callable[[Graph], None], format: str, made: Any, tmp_path: Path) -> None:
    model, file = made[format]
    graph = ir.load(file)
    wrong(graph)
    ir.save(graph, tmp_path / "wrong.onnx")
    said = differences(model, tmp_path / "wrong.onnx", feed_of(model))
    assert said, f"{wrong.__name__} is not seen"
    if wrong in (step_of_the_input, zero_point, input_not_rounded):
        assert said[0].startswith(f"{LAYER}: ") and "round" in said[0]
    # nothing grows: the layers that run before are right
    assert not any(s.startswith("mid_block.resnets.0.conv1") for s in said)
