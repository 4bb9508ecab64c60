"""Symmetric 8-bit arithmetic: codes = rounded(w * bound / amax), w' = codes / (bound / amax), bit for bit as modelopt
computes it.

Integers: `bound` is 127 for 8 bits and 63 for 7; both are stored as INT8 codes. "e4m3" is FP8 with 4 bits of exponent
and 3 of mantissa (Micikevicius et al., arXiv 2209.05433): `bound` is 448, its largest number, and a code is the nearest
such number. amax broadcasts against the tensor: one value per tensor, or (O,1,..) per output channel. All in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Bits = int | Literal["e4m3"]
SMALLEST = 1.0 / (1 << 24)  # an amax at or below it: integers quantize everything to zero, FP8 takes 1 in its place
NOTHING = 1e30  # the step size that stands for zero: every value rounds to code 0


def bound(bits: Bits) -> int:
    """Largest code: 127, 63, .. of symmetric signed integers, 448 of "e4m3"."""
    return 448 if bits == "e4m3" else (1 << (int(bits) - 1)) - 1


def to_codes(x: Tensor, amax: Tensor, bits: Bits = 8) -> Tensor:
    """Codes of `x`: int8 in -bound-1..bound, or float8_e4m3fn in -448..448."""
    import torch

    largest, scaled = bound(bits), x.float() * _codes_per_unit(amax, bits)
    if bits == "e4m3":
        return scaled.clamp(-largest, largest).to(torch.float8_e4m3fn)
    return torch.clamp(scaled.round(), -largest - 1, largest).to(torch.int8)


def from_codes(q: Tensor, amax: Tensor, bits: Bits = 8) -> Tensor:
    """float32 values of codes; the exact inverse of the rounding in `to_codes`."""
    import torch

    steps = _codes_per_unit(amax, bits)
    if bits == "e4m3":
        return q.float() * (1 / steps)
    return q.float() / torch.where(steps == 0, torch.ones_like(steps), steps)


def step_size(amax: Tensor, bits: Bits = 8) -> Tensor:
    """Width of one code, amax / bound, as a Q/DQ node wants it; positive."""
    import torch

    amax = amax.float()
    if bits == "e4m3":
        return _live(amax) / bound(bits)
    return torch.where(amax > SMALLEST, amax / bound(bits), torch.full_like(amax, NOTHING))


def exact_amax(amax: Tensor, bits: Bits, dtype: torch.dtype) -> Tensor:
    """The least amax, not below the given one, whose step size is a number of `dtype` (float16, bfloat16, float32).

    A graph that computes in 16 bit holds its step sizes in 16 bit; with these nothing is lost by it. Ranges of zero and
    those whose step exceeds `dtype` are left as they are.
    """
    import torch

    if dtype == torch.float32:
        return amax
    step = amax.float() / bound(bits)
    near = step.to(dtype)
    above = torch.where(near.float() < step, near.view(torch.int16) + 1, near.view(torch.int16)).view(dtype).float()
    return torch.where((amax > SMALLEST) & above.isfinite(), above * bound(bits), amax.float())


def _codes_per_unit(amax: Tensor, bits: Bits) -> Tensor:
    import torch

    amax = amax.float()
    if bits == "e4m3":
        return 448.0 / _live(amax)
    live = amax > SMALLEST
    largest = torch.tensor(float(bound(bits)), device=amax.device)  # a tensor: number / tensor is one rounding more
    return torch.where(live, largest / _live(amax), torch.zeros_like(amax))


def _live(amax: Tensor) -> Tensor:
    """amax with 1 in the place of zero."""
    import torch

    return torch.where(amax > SMALLEST, amax, torch.ones_like(amax))


def relative_l2(reference: Tensor, other: Tensor) -> float:
    """|other - reference| / |reference| over all elements, in float64; 0 where both are zero."""
    a, b = reference.double(), other.double()
    size, difference = float(a.norm()), float((b - a).norm())
    return difference / size if size else (0.0 if not difference else float("inf"))
