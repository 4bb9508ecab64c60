"""What cleaning did is compared before a file counts, and an export of what gives NaN is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.not_finite import ENDS, Hiding, Quotient, artifact, from_module, hiding
from torch import Tensor, nn

from optimize.delivery.as_onnx import export_model
from optimize.diffusion.backend import open_runner
from optimize.diffusion.network import TensorSpec, example_inputs
from optimize.diffusion.parity import parity
from optimize.errors import ArtifactError, GateFailed
from optimize.exporters import _compared
from optimize.exporters._compared import distance, same_results
from optimize.exporters.onnx import Onnx
from optimize.onnx.trace import Tracing, traced

INPUTS = (TensorSpec("sample", ("B", 4)),)


class Guarded(nn.Module):
    """x / (|x| + eps) after a linear layer whose output is zero where its input is."""

    def __init__(self, eps: float = 1e-15) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.eps = nn.Linear(4, 4, bias=False), eps

    def forward(self, sample: Tensor) -> Tensor:
        h = self.layer(sample)
        return h / (h.abs() + self.eps)


def guarded() -> ir.Model:
    return traced(Guarded().eval(), INPUTS, Tracing(20, "torchscript"), {}).graph


def feeds() -> list[dict[str, Tensor]]:
    return [example_inputs(INPUTS, 2)]


def drop(graph: ir.Model, op: str) -> None:
    """Take out a node, as a rule does that holds it for neutral."""
    node = next(n for n in graph.graph if n.op_type == op)
    node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]
    graph.graph.remove(node, safe=True)


def test_a_graph_that_stays_as_it_is_passes() -> None:
    graph = guarded()
    with same_results(graph, feeds):
        pass


@pytest.mark.parametrize("op", ["Abs", "Add"])
def test_a_graph_that_computes_something_else_afterwards_is_refused(op: str) -> None:
    """Without the sum, only latents of zero tell: 0 / 0."""
    graph = guarded()
    with (
        pytest.raises(GateFailed, match=r"cleaning the graph changed what it computes by .*Nothing was written. Try the other exporter"),
        same_results(graph, feeds),
    ):  # fmt: skip
        drop(graph, op)


def test_a_graph_that_no_longer_runs_is_refused() -> None:
    graph = guarded()
    with pytest.raises(GateFailed, match="changed what it computes by inf"), same_results(graph, feeds):
        next(n for n in graph.graph if n.op_type == "Add").op_type = "MatMul"


def test_large_graphs_are_left_to_parity_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compared, "COMPARED_BYTES", 1)
    graph = guarded()
    with same_results(graph, lambda: pytest.fail("nothing is run")):
        drop(graph, "Add")


def test_an_error_of_the_cleaning_stays_what_it_is() -> None:
    with pytest.raises(KeyError, match="own"), same_results(guarded(), feeds):
        raise KeyError("own")


def test_what_is_not_finite_must_be_so_on_both_sides() -> None:
    a, b = np.array([1.0, np.nan]), np.array([1.0, 2.0])
    assert distance(a, a) == 0 and distance(a, b) == np.inf == distance(b, a) == distance(a, a[:1])
    assert distance(np.array([1.0, np.nan]), np.array([2.0, np.nan])) == 1


@pytest.mark.parametrize("precision", ["fp16", *(pytest.param(p, marks=pytest.mark.slow) for p in ("fp32", "bf16"))])
def test_an_epsilon_survives_an_export_in_every_precision(tmp_path: Path, precision: str) -> None:
    model = from_module(
        tmp_path, Quotient(), "support.not_finite:Quotient", {"sample": ["B", 1, 4, 4], "timestep": ["B"]}, {}
    )
    export_model(model, tmp_path / "out", Onnx(precision=precision))  # type: ignore[arg-type]
    with open_runner(tmp_path / "out", "onnxruntime") as network:
        found = network(sample=torch.zeros(2, 1, 4, 4), timestep=torch.zeros(2))
    assert torch.equal(found, torch.zeros_like(found))


def test_sana_whose_attention_divides_by_a_sum_and_an_epsilon_exports_right(tmp_path: Path) -> None:
    from diffusers import SanaTransformer2DModel

    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_cross_attention_heads": 2}
    widths = {"cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 8, "sample_size": 8}
    arguments = {"in_channels": 4, "out_channels": 4, "num_layers": 1, "patch_size": 1} | heads | widths
    torch.manual_seed(0)
    inputs = {"hidden_states": ["B", 4, 8, 8], "timestep": ["B"], "encoder_hidden_states": ["B", 5, 8]}
    network = SanaTransformer2DModel(**arguments)
    model = from_module(tmp_path, network, "diffusers:SanaTransformer2DModel", inputs, arguments)
    made = export_model(model, tmp_path / "out")
    assert made["parity"]["onnxruntime"]["relative_l2"] < 1e-4
    assert "not_finite" not in made["parity"]["onnxruntime"]


@pytest.mark.parametrize("end", ENDS)
def test_a_nan_weight_is_refused_before_anything_is_traced(tmp_path: Path, end: str) -> None:
    model = hiding(tmp_path, end=end)
    model.module.first.weight.data[0, 0, 0, 0] = (
        torch.nan
    )  # as a pass may leave it: a file of such weights does not load
    said = r"onnx: Hiding has weights that are no numbers: first.weight \(1 of 36 NaN\)\. Give a checkpoint"
    with pytest.raises(ArtifactError, match=said):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_overflows_at_large_noise_is_no_export(tmp_path: Path) -> None:
    model = hiding(tmp_path, overflow=True)
    said = r"onnx: the network itself gives NaN or infinities at time 999 \(128 of 128 values\)\. Nothing was written"
    with pytest.raises(GateFailed, match=said):
        export_model(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "end", ["clip", *(pytest.param(e, marks=pytest.mark.slow) for e in ("relu", "max", "softmax"))]
)
def test_no_runner_of_the_cpu_passes_a_network_that_gives_nan(tmp_path: Path, end: str) -> None:
    """OpenVINO draws finite images of it: only the torch network tells."""
    model = hiding(tmp_path, poisoned=True, end=end)
    made, hidden = artifact(tmp_path / "a", model), {}
    for runner in ("torch", "onnxruntime", "openvino"):
        with open_runner(made, runner) as network:
            far: dict[str, Any] = parity(model, network, levels=2, batch=2)
            hidden[runner] = bool(network(**example_inputs(network.inputs, 2)).isfinite().all())
        assert far["relative_l2"] > 1e38 and far["not_finite"].startswith("the network itself gives NaN")
    assert not hidden["torch"] and not hidden["onnxruntime"]


def test_the_tiny_network_itself_is_sound() -> None:
    assert Hiding()(torch.zeros(1, 1, 8, 8), torch.zeros(1)).isfinite().all()
