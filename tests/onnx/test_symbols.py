"""Symbolic dims: which a network has, at which sizes it is traced, and how the graph's own names become theirs."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from torch import nn

from optimize.diffusion.network import TensorSpec
from optimize.onnx.symbols import example, lost, multiple, opened, rename, sizes_of, symbols

INPUTS = (
    TensorSpec("sample", ("B", 4, "H", "W"), sizes=(("H", 16), ("W", 8))),
    TensorSpec("timestep", ("B",)),
    TensorSpec("down.0", ("B", 8, "H/2", "W/2"), sizes=(("H", 16), ("W", 8))),
)


def graph(sample: list[int | str], output: list[int | str]) -> ir.Model:
    """A graph that gives its input."""
    x = ir.Value(name="sample", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(sample))
    node = ir.node("Identity", [x])
    node.outputs[0].shape, node.outputs[0].type = ir.Shape(output), x.type
    return ir.Model(ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 18}), ir_version=10)


def test_symbols_and_sizes_come_from_the_inputs() -> None:
    assert symbols(INPUTS) == {"B", "H", "W"} and sizes_of(INPUTS) == {"B": 1, "H": 16, "W": 8}


def test_a_network_is_traced_at_sizes_that_no_two_dims_share() -> None:
    feed = example(INPUTS, {"B", "H", "W"}, nn.Identity())
    assert feed["sample"].shape == (3, 4, 24, 32) and feed["down.0"].shape == (3, 8, 12, 16)


def test_dims_that_stay_numbers_have_the_networks_own_sizes() -> None:
    feed = example(INPUTS, {"H"}, nn.Identity())
    assert feed["sample"].shape == (1, 4, 24, 8)


def test_sizes_are_multiples_of_what_a_unet_halves_and_of_what_its_own_sizes_are() -> None:
    deep = nn.Identity()
    deep.config = {"block_out_channels": [8] * 6}  # type: ignore[assignment]
    wide = (TensorSpec("sample", ("B", 4, "H", "W"), sizes=(("H", 64), ("W", 96))),)
    assert multiple(wide, deep) == 32 and multiple(wide, nn.Identity()) == 8
    assert multiple((TensorSpec("sample", ("B", 4, "H", "W"), sizes=(("H", 28), ("W", 28))),), deep) == 4


def test_height_and_width_given_as_numbers_are_opened_where_asked() -> None:
    first = TensorSpec("sample", ("B", 1, 28, 20))
    (found,) = opened((first,), ("H", "W"))
    assert found.dims == ("B", 1, "H", "W") and dict(found.sizes) == {"H": 28, "W": 20}
    assert opened((first,), ("H",))[0].dims == ("B", 1, "H", 20)
    assert opened((first,), ()) == (first,)


def test_a_dim_that_became_a_number_is_lost() -> None:
    for number in (24, "24"):  # the exporter writes what it found to be constant as text
        made = graph(["s1", 4, number, "s2"], ["s1", 4, number, "s2"])
        assert lost(made, INPUTS, {"B", "H", "W"}) == {"H"}


def test_multiples_of_an_exporters_symbol_are_ours() -> None:
    made = graph(["s1", 4, "8*_H", "8*_W"], ["s1", 4, "8*_H", "4*_W"])
    rename(made, INPUTS)
    shape = made.graph.outputs[0].shape
    assert shape is not None and [str(d) for d in shape] == ["B", "4", "H", "W/2"]


@pytest.mark.parametrize(
    ("written", "becomes"),
    [
        ("s7", "H"),
        ("8*((s7//8))", "H"),
        ("2*(((s7 - 2)//2)) + 2", "H"),
        ("2*s7", "2*H"),
        ("s7 + s9", "H + W"),
        ("s7//2", "floor(H/2)"),
        (6, 6),
    ],
)
def test_expressions_that_equal_a_symbol_are_called_by_it(written: str | int, becomes: str | int) -> None:
    made = graph(["s1", 4, "s7", "s9"], ["s1", 4, written, "s9"])
    rename(made, INPUTS)
    shape = made.graph.outputs[0].shape
    assert shape is not None
    found = [d if isinstance(d, int) else d.value for d in shape]
    assert found == ["B", 4, becomes, "W"]
