"""Cleaning leaves what a graph computes as it is: the same inputs through the graph as traced and as cleaned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from optimize.diffusion.network import TensorSpec, example_inputs
from optimize.onnx.clean import RULES, simplify
from optimize.onnx.graph import SCOPE, array, narrow_doubles
from optimize.onnx.symbols import opened, sizes_of
from optimize.onnx.trace import Tracing, traced

SLOW = ("sdxl", "flux", "unet1d", "controlnet")


def named(name: str, exporter: str) -> tuple[ir.Model, list[dict[str, Tensor]]]:
    """The graph of a tiny network as traced, and inputs at its own sizes and at larger ones where dims are symbolic."""
    model = networks.model(networks.TINY[name])
    inputs = opened(model.inputs, ("H", "W", "L"))
    made = traced(model.module, inputs, Tracing(20, exporter), {})  # type: ignore[arg-type]
    narrow_doubles(made.graph)
    own = {s: n for s, n in sizes_of(inputs).items() if s != "B"}
    larger = {s: n * 3 // 2 for s, n in own.items() if s in made.record["symbols"] and n % 16 == 0}
    return made.graph, [example_inputs(inputs, 2, **own), example_inputs(inputs, 1, **own | larger)]


def outcome(graph: ir.Model, feed: dict[str, Tensor], folder: Path) -> np.ndarray:
    """What ONNX Runtime computes, operator by operator, without cleaning of its own."""
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    ir.save(graph, folder / "g.onnx")
    session = onnxruntime.InferenceSession(folder / "g.onnx", settings, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {k: v.numpy() for k, v in feed.items()})[0]
    return found


@pytest.mark.parametrize(
    ("name", "exporter"),
    [
        ("dit", "dynamo"),
        ("sd", "torchscript"),
        ("pixart", "torchscript"),
        *(pytest.param(n, "dynamo", marks=pytest.mark.slow) for n in SLOW),
    ],
)
def test_cleaned_graphs_compute_what_traced_ones_do(name: str, exporter: str, tmp_path: Path) -> None:
    graph, feeds = named(name, exporter)
    before, nodes = [outcome(graph, f, tmp_path) for f in feeds], len(graph.graph)
    simplify(graph)
    assert len(graph.graph) < 0.8 * nodes
    for feed, wanted in zip(feeds, before):
        found = outcome(graph, feed, tmp_path)
        assert found.shape == wanted.shape
        # merged constants and products of constants may be rounded once less
        assert np.linalg.norm(found - wanted) <= 2e-6 * np.linalg.norm(wanted)


@pytest.mark.parametrize(("name", "exporter"), [("pixart", "torchscript"), ("dit", "dynamo")])
def test_onnxslim_finds_next_to_nothing_more_and_changes_no_result(name: str, exporter: str, tmp_path: Path) -> None:
    onnxslim = pytest.importorskip("onnxslim")
    graph, feeds = named(name, exporter)
    simplify(graph)
    slimmed = ir.from_proto(onnxslim.slim(ir.to_proto(graph)))
    assert 0.9 * len(graph.graph) <= len(slimmed.graph) <= len(graph.graph)
    for feed in feeds:
        np.testing.assert_array_equal(outcome(slimmed, feed, tmp_path), outcome(graph, feed, tmp_path))


class Untidy(nn.Module):
    """All that cleaning is for: products of constants, twice the same, what does nothing, and what nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("scale", torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x * (self.scale * 3.0)) + self.first(x * (self.scale * 3.0))
        idle = torch.cos(h)  # noqa: F841
        return self.second(h.reshape(-1, 2, 3).reshape(-1, 6) * 1.0 + 0.0)


def untidy() -> tuple[ir.Model, nn.Module, tuple[TensorSpec, ...]]:
    module, inputs = Untidy().eval(), (TensorSpec("x", ("B", 4)),)
    return traced(module, inputs, Tracing(20, "torchscript"), {}).graph, module, inputs


def test_what_does_nothing_or_is_there_twice_is_gone_and_weights_are_whole(tmp_path: Path) -> None:
    graph, module, inputs = untidy()
    feed = example_inputs(inputs, 3)
    with torch.inference_mode():
        wanted = module(**feed).numpy()
    simplify(graph)
    kinds = [n.op_type for n in graph.graph]
    assert not {"Cos", "Identity", "Transpose", "Constant"} & set(kinds)
    assert kinds.count("MatMul") + kinds.count("Gemm") == 2
    held = graph.graph.initializers
    assert {"first.weight", "first.weight.T"} & set(held) and {"second.weight", "second.weight.T"} & set(held)
    np.testing.assert_allclose(outcome(graph, feed, tmp_path), wanted, rtol=1e-6, atol=1e-6)


def test_inputs_are_the_networks_own_again_and_nodes_know_their_module() -> None:
    graph, _, _ = untidy()
    simplify(graph)
    assert [v.name for v in graph.graph.inputs] == ["x"]
    products = [n for n in graph.graph if n.op_type in ("MatMul", "Gemm")]
    assert {n.metadata_props[SCOPE] for n in products} == {"first", "second"}


def test_turned_weights_are_the_networks_own_memory() -> None:
    graph, module, _ = untidy()
    simplify(graph)
    for layer in ("first", "second"):
        turned: Any = graph.graph.initializers.get(f"{layer}.weight.T")
        if turned is not None:
            weight = module.get_submodule(layer).weight.detach().numpy()
            assert np.shares_memory(array(turned), weight) and np.array_equal(array(turned), weight.T)


def test_every_rule_is_one_of_onnxscripts() -> None:
    from onnxscript.rewriter.rules import common

    assert all(hasattr(common, name) for name in RULES)


def test_an_error_while_cleaning_leaves_no_weight_among_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    from optimize.onnx import clean

    graph, _, _ = untidy()

    def fail(model: ir.Model) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(clean, "_by_onnxscript", fail)
    with pytest.raises(RuntimeError, match="no"):
        simplify(graph)
    assert [v.name for v in graph.graph.inputs] == ["x"]
