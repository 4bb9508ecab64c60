"""Weights that are no numbers are named; a watched network must give numbers, and so must the torch network beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from optimize.architectures.finite import Watched, broken_weights, require_finite_weights
from optimize.diffusion.network import TensorSpec
from optimize.errors import ArtifactError, GateFailed

INPUTS = (TensorSpec("sample", ("B", 2)), TensorSpec("timestep", ("B",)))


class Several(nn.Module):
    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(count))
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))


def test_numbers_and_masks_of_minus_infinity_are_fine() -> None:
    module = Several()
    module.layers[0].weight.data.fill_(3e38)  # whose sum is infinite
    assert broken_weights(module) == [] and require_finite_weights(module, "x") is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_weight_that_is_no_number_is_named_with_how_many(value: float, dtype: torch.dtype) -> None:
    module = Several().to(dtype)
    module.layers[0].weight.data[1, 0] = value
    kind = "NaN" if value != value else "infinite"
    with pytest.raises(ArtifactError, match=rf"onnx: Several .* layers.0.weight \(1 of 4 {kind}\)\. Give a checkpoint"):
        require_finite_weights(module, "onnx")


def test_a_buffer_of_nan_is_named() -> None:
    module = Several()
    module.mask[0, 0] = torch.nan  # type: ignore[index, operator]
    assert broken_weights(module) == ["mask (1 of 4 NaN)"]


def test_at_most_ten_names_are_given() -> None:
    module = Several(20)
    for layer in module.layers:
        layer.bias.data.fill_(torch.nan)
    with pytest.raises(ArtifactError, match=r"layers.9.bias \(2 of 2 NaN\) and 10 more\.") as caught:
        require_finite_weights(module, "x")
    assert len(str(caught.value)) < 2000 and "layers.10" not in str(caught.value)


class Constant:
    """A network that gives one value, or another where the first input says so."""

    inputs = INPUTS

    def __init__(self, value: float, last: float | None = None) -> None:
        self.value, self.last, self.seen = value, value if last is None else last, []  # type: ignore[var-annotated]

    def __call__(self, **tensors: Tensor) -> Tensor:
        self.seen.append({k: v.shape for k, v in tensors.items()})
        made = torch.full_like(tensors["sample"], self.value)
        made[-1] = self.last
        return made


def feed(batch: int = 4) -> dict[str, Any]:
    return {"sample": torch.zeros(batch, 2), "timestep": torch.full((batch,), 7.0)}


def test_a_watched_network_gives_what_it_gives() -> None:
    witness = Constant(2.0)
    assert torch.equal(Watched(Constant(1.0), witness, "x")(**feed()), torch.ones(4, 2))
    assert witness.seen == [{"sample": (2, 2), "timestep": (2,)}]  # the first and the last sample


def test_a_batch_of_one_is_looked_at_once() -> None:
    witness = Constant(2.0)
    Watched(Constant(1.0), witness, "x")(**feed(1))
    assert witness.seen == [{"sample": (1, 2), "timestep": (1,)}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused_with_the_time(value: float) -> None:
    with pytest.raises(GateFailed, match=r"^final on torch gives NaN or infinities at timestep 7: 8 of 8 values$"):
        Watched(Constant(value), None, "final on torch")(**feed())
    with pytest.raises(GateFailed, match=r"final on x hides that the torch network gives NaN or infinities .*: 4 of 4"):
        Watched(Constant(1.0), Constant(value), "final on x")(**feed())


def test_the_last_sample_of_a_guided_batch_is_the_other_branch() -> None:
    with pytest.raises(GateFailed, match="hides"):
        Watched(Constant(1.0), Constant(1.0, float("nan")), "x")(**feed())
