"""Parity: the worst over noise levels and edges, and what is not finite is no distance but a reason."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from optimize.diffusion.model import Model
from optimize.diffusion.network import TensorSpec
from optimize.diffusion.parity import EDGES, FARTHEST, parity, relative_l2, worst


class Changed:
    """The model's own network with its output, or what goes in, looked at by a function."""

    def __init__(self, model: Model, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self._network, self._change = model.denoiser.network, change

    def __call__(self, **tensors: Tensor) -> Tensor:
        return self._change(self._network(**tensors), tensors["sample"])


def constant(z: Tensor) -> Tensor:
    """Rows of latents of one value everywhere."""
    return (z == z[:, :1, :1, :1]).flatten(1).all(1)


def test_a_network_is_no_distance_from_itself(tiny_model: Model) -> None:
    found = parity(tiny_model, tiny_model.denoiser.network, levels=3, batch=2)
    assert (found["relative_l2"], found["max_abs"]) == (0, 0) and "not_finite" not in found
    assert [r["t"] for r in found["levels"]] == [0, 500, 999] and [r["t"] for r in found["edges"]] == [0, 999]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_edges_are_tried_at_every_batch_size(tiny_model: Model, batch: int) -> None:
    seen: set[float] = set()

    def look(out: Tensor, z: Tensor) -> Tensor:
        seen.update(z[constant(z)][:, 0, 0, 0].tolist())
        return out

    parity(tiny_model, Changed(tiny_model, look), levels=1, batch=batch)
    assert seen == set(EDGES)


def test_what_differs_at_an_edge_alone_counts(tiny_model: Model) -> None:
    """As an epsilon that was dropped does: elsewhere it is nothing."""

    def lost(out: Tensor, z: Tensor) -> Tensor:
        return torch.where(constant(z).view(-1, 1, 1, 1), out + 10, out)

    found = parity(tiny_model, Changed(tiny_model, lost), levels=2, batch=2)
    assert found["relative_l2"] == 0 and worst(found, "fp32") > 1 and worst(found, "int8") == 0


def test_nan_at_an_edge_alone_is_said(tiny_model: Model) -> None:
    def divided(out: Tensor, z: Tensor) -> Tensor:
        return out + 0 * (z.abs().amax((1, 2, 3)) / z.abs().amax((1, 2, 3))).view(-1, 1, 1, 1)  # 0 / 0 at zero

    found = parity(tiny_model, Changed(tiny_model, divided), levels=2, batch=2)
    assert worst(found, "fp32") == FARTHEST
    assert found["not_finite"].startswith(
        "for latents of one value the file as it is run gives NaN or infinities at time 0"
    )


def test_nan_of_the_reference_is_said_though_the_other_hides_it(tiny_model: Model) -> None:
    other = tiny_model.clone()
    next(tiny_model.module.parameters()).data.view(-1)[0] = torch.nan
    found = parity(tiny_model, other.denoiser.network, levels=2, batch=2)
    assert found["relative_l2"] == FARTHEST and math.isfinite(found["max_abs"])
    assert found["not_finite"].startswith("the network itself gives NaN or infinities at time 0 (")


def test_an_infinity_of_both_is_no_agreement(tiny_model: Model) -> None:
    infinite = Changed(tiny_model, lambda out, z: out * torch.inf)
    broken = tiny_model.with_network(infinite)
    found = parity(broken, infinite, levels=2, batch=2)
    assert found["relative_l2"] == FARTHEST and "the network itself" in found["not_finite"]


def test_latents_for_which_the_network_itself_has_no_numbers_are_no_reference(tiny_model: Model) -> None:
    def normed(out: Tensor, z: Tensor) -> Tensor:
        return out / (z.abs().amax((1, 2, 3), keepdim=True) > 0)  # as a norm without epsilon at latents of zero

    reference = Changed(tiny_model, normed)
    found = parity(tiny_model.with_network(reference), reference, levels=2, batch=2)
    assert found["relative_l2"] == 0 and "not_finite" not in found


def test_equal_zeros_are_equal_and_anything_else_is_far_from_zero() -> None:
    zero, one = torch.zeros(3), torch.ones(3)
    assert relative_l2(zero, zero) == 0 == relative_l2(one, one)
    assert not math.isfinite(relative_l2(one, zero))
    assert relative_l2(one + 0.5, one) == pytest.approx(0.5)
    assert math.isnan(relative_l2(one * torch.nan, one))


def test_a_network_of_zeros_agrees_with_one(tiny_model: Model, tmp_path: Path) -> None:
    nothing = Changed(tiny_model, lambda out, z: out * 0)
    assert parity(tiny_model.with_network(nothing), nothing, levels=2, batch=2)["relative_l2"] == 0
    something = Changed(tiny_model, lambda out, z: out * 0 + 1)
    assert parity(tiny_model.with_network(nothing), something, levels=2, batch=2)["relative_l2"] == FARTHEST
