"""Layers near FP16's largest number are found wherever the number is made: in modules, between them, inside attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from optimize.onnx.overflow import HEADROOM, LARGEST_FP16, largest_activations, overflowing


class Blown(nn.Module):
    """x -> 1e5 x -> back -> a third layer; the first two see 1e5."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.calm = (nn.Linear(4, 4, bias=False) for _ in range(3))
        with torch.no_grad():
            for layer, scale in ((self.up, 1e5), (self.down, 1e-5), (self.calm, 1.0)):
                layer.weight.copy_(scale * torch.eye(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.calm(self.down(self.up(x)))


class Gated(nn.Module):
    """A product of two modules' outputs, made by their parent."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1), nn.Linear(1, 1)
        with torch.no_grad():
            for layer in (self.a, self.b):
                layer.weight.fill_(300.0)
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) * self.b(x)


class Attention(nn.Module):
    """Attention whose logits are large while all its inputs and outputs are small."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x / 200, attn_mask=mask)


class Holder(nn.Module):
    """A network with one part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        return self.part(x, **more)


def test_a_layer_and_the_one_that_reads_it_are_found_and_no_other() -> None:
    found = overflowing(Blown(), [{"x": torch.ones(1, 4)}])
    assert set(found) == {"up", "down"} and found["up"] == pytest.approx(1e5)


def test_a_product_between_modules_counts_for_their_parent() -> None:
    assert overflowing(Gated(), [{"x": torch.ones(1, 1)}]) == {"": 90000.0}


def test_attention_logits_are_seen_though_nothing_outside_is_large() -> None:
    x = torch.full((1, 1, 3, 16), 200.0)
    found = overflowing(Holder(Attention()), [{"x": x}])
    assert set(found) == {"part"} and found["part"] == pytest.approx(200 * 200 * 16 / 4)


def test_an_infinite_mask_is_no_overflow_but_a_nan_is() -> None:
    x = torch.ones(1, 1, 2, 4)
    mask = torch.tensor([[0.0, float("-inf")], [0.0, 0.0]])
    assert overflowing(Holder(Attention()), [{"x": x, "mask": mask}]) == {}
    assert overflowing(nn.Identity(), [{"input": torch.ones(1)}]) == {}
    assert overflowing(nn.ReLU(), [{"input": torch.tensor([float("nan")])}]) == {"": float("inf")}


def test_the_largest_over_all_inputs_counts_and_headroom_is_left() -> None:
    feeds = [{"input": torch.full((1,), value)} for value in (1.0, 50.0, 7.0)]
    assert largest_activations(nn.ReLU(), feeds) == {"": 50.0}
    near = LARGEST_FP16 / HEADROOM
    assert overflowing(nn.ReLU(), [{"input": torch.tensor([near])}]) == {}
    assert overflowing(nn.ReLU(), [{"input": torch.tensor([near * 1.01])}])


def test_the_module_is_left_without_hooks_even_after_an_error() -> None:
    module = Blown()
    with pytest.raises(RuntimeError):
        overflowing(module, [{"x": torch.ones(1, 5)}])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
