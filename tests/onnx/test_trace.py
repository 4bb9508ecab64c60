"""Tracing any module: symbolic dims kept or named, and the older exporter with the reason where the first is defeated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimize.diffusion.network import TensorSpec
from optimize.errors import UserError
from optimize.onnx.graph import SCOPE
from optimize.onnx.trace import Traced, Tracing, traced

IMAGE = (TensorSpec("x", ("B", 2, "H", "W"), sizes=(("H", 4), ("W", 4))),)


class Plain(nn.Module):
    """A convolution in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Branching(Plain):
    """Chooses by a value of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x) if x.sum() > -1e9 else x


class Rows(nn.Module):
    """Counts its rows in Python."""

    def forward(self, x: Tensor) -> Tensor:
        total = x[:, :, 0]
        for i in range(1, x.shape[2]):
            total = total + x[:, :, i]
        return total


class Table(nn.Module):
    """Runs at 4 x 4 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.ones(1, 2, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.places


def shapes(made: Traced) -> list[list[Any]]:
    values = [*made.graph.graph.inputs, *made.graph.graph.outputs]
    return [[d if isinstance(d, int) else d.value for d in v.shape or ()] for v in values]


def trace(module: nn.Module, exporter: str = "auto", symbolic: tuple[str, ...] | None = None) -> Traced:
    return traced(module, IMAGE, Tracing(18, exporter, symbolic), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_all_dims_stay_symbolic_and_nodes_know_their_module(exporter: str) -> None:
    made = trace(Plain(), exporter)
    assert shapes(made)[0] == ["B", 2, "H", "W"] and shapes(made)[1][:2] == ["B", 3]
    assert made.record["symbols"] == ["B", "H", "W"] and made.record["fixed"] == {}
    assert made.record["exporter"] == exporter
    scopes = {n.op_type: n.metadata_props[SCOPE] for n in made.graph.graph}
    assert scopes["Conv"] == "block.0" and scopes["Sigmoid"] == "block.1"
    assert set(made.graph.graph.initializers) >= {"block.0.weight", "block.0.bias"}


def test_what_defeats_the_first_exporter_goes_through_the_older_one_and_says_why() -> None:
    made = trace(Branching())
    assert made.record["exporter"] == "torchscript"
    assert "data-dependent" in made.record["reason"]
    assert any("might cause the trace to be incorrect" in w for w in made.record["warnings"])


def test_a_network_that_defeats_the_exporter_asked_for_is_an_error() -> None:
    with pytest.raises(UserError, match=r"exporter: dynamo cannot trace Branching .*Use auto or torchscript"):
        trace(Branching(), "dynamo")


def test_an_operator_that_no_exporter_has_is_named_in_one_message_and_nothing_is_printed(capfd: Any) -> None:
    class Bessel(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(self.block(x))

    with pytest.raises(UserError, match=r"no exporter can trace Bessel\..*torchscript: .*special_bessel_j0"):
        trace(Bessel(), "torchscript")
    assert capfd.readouterr().out == ""


def test_a_dim_that_the_network_fixes_is_named_and_has_its_own_size() -> None:
    made = trace(Rows(), "dynamo")
    assert made.record["fixed"] == {"H": 4} and made.record["symbols"] == ["B", "W"]
    assert shapes(made)[0] == ["B", 2, 4, "W"]


def test_a_network_that_runs_at_its_own_size_alone_is_traced_there() -> None:
    made = trace(Table())
    assert made.record["fixed"] == {"H": 4, "W": 4} and shapes(made)[0] == ["B", 2, 4, 4]
    assert "must match" in made.record["fixed_because"]
    older = trace(Table(), "torchscript")
    assert older.record["fixed"] == {"H": 4, "W": 4} and shapes(older)[0] == ["B", 2, 4, 4]
    assert "must match" in older.record["fixed_because"]


def test_a_dim_asked_for_that_the_network_fixes_is_an_error() -> None:
    with pytest.raises(UserError, match=r"symbolic: Rows fixes H when it is traced. Leave out what it fixes"):
        trace(Rows(), "dynamo", ("B", "H", "W"))
    with pytest.raises(UserError, match="no exporter can trace Table"):
        trace(Table(), "auto", ("H", "W"))


def test_dims_that_are_not_asked_for_have_the_networks_own_size() -> None:
    made = trace(Plain(), "dynamo", ("B",))
    assert shapes(made)[0] == ["B", 2, 4, 4] and made.record["fixed"] == {"H": 4, "W": 4}


def test_a_symbol_no_input_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"symbolic: L is no symbolic dim of this network's inputs. Allowed: B, H, W"):
        trace(Plain(), "dynamo", ("L",))


def test_the_older_exporter_keeps_height_and_width_only_where_they_are_asked_for() -> None:
    made = trace(Branching())
    assert made.record["fixed"] == {"H": 4, "W": 4} and "may note a size as a number" in made.record["fixed_because"]
    assert trace(Branching(), "auto", ("B", "H", "W")).record["symbols"] == ["B", "H", "W"]


def test_a_squeeze_of_a_dim_that_is_not_one_is_left_out() -> None:
    class Squeezing(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return self.block(x).squeeze(2)

    made = trace(Squeezing(), "dynamo")
    assert made.record["symbols"] == ["B", "H", "W"]
    assert not [n for n in made.graph.graph if n.op_type == "Squeeze"]
