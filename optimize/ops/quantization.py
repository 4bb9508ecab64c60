"""Symmetric integer arithmetic: q = round(w * bound / amax), w' = q / (bound / amax), bit for bit as modelopt computes it.

`bound` is 127 for 8 bits and 63 for 7; both are stored as INT8 codes. amax broadcasts against the tensor: one value per
tensor, or (O,1,..) per output channel. All in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1.0 / (1 << 24)  # an amax at or below it quantizes everything to zero
NOTHING = 1e30  # the step size that stands for it: every value rounds to code 0


def bound(bits: int) -> int:
    """Largest code of `bits` bits, symmetric and signed: 127, 63, .."""
    return (1 << (bits - 1)) - 1


def to_codes(x: Tensor, amax: Tensor, bits: int = 8) -> Tensor:
    """int8 codes of `x`, -bound-1..bound."""
    import torch

    largest = bound(bits)
    return torch.clamp((x.float() * _codes_per_unit(amax, bits)).round(), -largest - 1, largest).to(torch.int8)


def from_codes(q: Tensor, amax: Tensor, bits: int = 8) -> Tensor:
    """float32 values of int8 codes; the exact inverse of the rounding in `to_codes`."""
    import torch

    steps = _codes_per_unit(amax, bits)
    return q.float() / torch.where(steps == 0, torch.ones_like(steps), steps)


def step_size(amax: Tensor, bits: int = 8) -> Tensor:
    """Width of one code, amax / bound, as a Q/DQ node wants it; positive."""
    import torch

    amax = amax.float()
    return torch.where(amax > SMALLEST, amax / bound(bits), torch.full_like(amax, NOTHING))


def _codes_per_unit(amax: Tensor, bits: int) -> Tensor:
    import torch

    amax = amax.float()
    live = amax > SMALLEST
    largest = torch.tensor(float(bound(bits)), device=amax.device)  # a tensor: number / tensor is one rounding more
    return torch.where(live, largest / torch.where(live, amax, torch.ones_like(amax)), torch.zeros_like(amax))


def relative_l2(reference: Tensor, other: Tensor) -> float:
    """|other - reference| / |reference| over all elements, in float64; 0 where both are zero."""
    a, b = reference.double(), other.double()
    size, difference = float(a.norm()), float((b - a).norm())
    return difference / size if size else (0.0 if not difference else float("inf"))
