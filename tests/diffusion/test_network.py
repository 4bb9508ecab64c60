"""Inputs of networks: symbols and their sizes, stand-ins, nested names."""

from __future__ import annotations

import pytest
import torch

from optimize.diffusion.network import TensorSpec, example_inputs, nested
from optimize.errors import UserError

LATENTS = TensorSpec("sample", ("B", 4, "H", "W"), sizes=(("H", 16), ("W", 24)))


def test_a_shape_takes_the_default_sizes_unless_others_are_given() -> None:
    assert LATENTS.shape(3) == (3, 4, 16, 24)
    assert LATENTS.shape(1, H=32) == (1, 4, 32, 24)
    assert LATENTS.shape(1, L=7) == (1, 4, 16, 24)


def test_a_fraction_of_a_symbol_is_rounded_up_as_strided_convolutions_round() -> None:
    spec = TensorSpec("r", ("B", 8, "H/2", "W/4"))
    assert spec.shape(1, H=33, W=33) == (1, 8, 17, 9)
    conv = torch.nn.Conv2d(1, 1, 3, stride=2, padding=1)
    assert conv(torch.zeros(1, 1, 33, 33)).shape[-1] == 17


def test_a_symbol_without_a_size_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r'text: its dim "L" has no size. Give one, e.g. L=64'):
        TensorSpec("text", ("B", "L", 8)).shape(1)


@pytest.mark.parametrize(
    "spec",
    [
        LATENTS,
        TensorSpec("timestep", ("B",)),
        TensorSpec("class_labels", ("B",), "int64"),
        TensorSpec("ids", ("S", 3), sizes=(("S", 9),), fill="grid"),
        TensorSpec("a.b", ("B", 2), fill=(1.5, 2.0)),
    ],
)
def test_a_spec_survives_json(spec: TensorSpec) -> None:
    assert TensorSpec.from_json(spec.to_json()) == spec


def test_shared_inputs_have_no_batch() -> None:
    assert LATENTS.batched and not TensorSpec("ids", ("S", 3)).batched and not TensorSpec("scalar", ()).batched


def test_examples_hold_what_the_specs_prescribe() -> None:
    inputs = (
        LATENTS,
        TensorSpec("timestep", ("B",), fill=(1.0,)),
        TensorSpec("ids", ("S", 3), sizes=(("S", 4),), fill="grid"),
        TensorSpec("sizes", ("B", 2), fill=(8.0, 9.0)),
        TensorSpec("labels", ("B",), "int64"),
    )
    made = example_inputs(inputs, 3, H=8)
    assert made["sample"].shape == (3, 4, 8, 24)
    assert made["timestep"].tolist() == [0.0, 0.5, 1.0]
    assert made["ids"].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert made["sizes"].tolist() == [[8.0, 9.0]] * 3
    assert made["labels"].dtype == torch.int64 and made["labels"].tolist() == [0, 0, 0]
    assert all(torch.equal(a, b) for a, b in zip(made.values(), example_inputs(inputs, 3, H=8).values(), strict=True))


def test_timesteps_of_index_networks_are_whole_numbers_up_to_the_last() -> None:
    spec = (TensorSpec("timestep", ("B",)),)
    assert example_inputs(spec, 3)["timestep"].tolist() == [0.0, 500.0, 999.0]
    assert example_inputs(spec, 1)["timestep"].tolist() == [500.0]


def test_names_nest_into_dictionaries_and_numbered_ones_into_lists() -> None:
    given = {"x": 1, "added.text": 2, "added.ids": 3, **{f"down.{i}": 10 + i for i in range(11)}}
    found = nested(given)
    assert found == {"x": 1, "added": {"text": 2, "ids": 3}, "down": list(range(10, 21))}
