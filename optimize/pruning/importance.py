"""Importance of channels, from weights and gradients, and when diffusion-aware Taylor scoring stops.

First-order Taylor: removing w changes the loss by about w * dL/dw (Molchanov et al., arXiv 1611.06440). Diff-Pruning
(Fang et al., NeurIPS 2023) sums gradients over timesteps and leaves out the late, noisy ones whose loss is small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def taylor(weight: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """Sum of |w g| over everything but `dim`: (n,) float64 for a weight of size n along `dim`."""
    return _sums((weight.double() * gradient.double()).abs(), dim)


def magnitude(weight: Tensor, dim: int) -> Tensor:
    """Sum of |w| over everything but `dim`: (n,) float64."""
    return _sums(weight.double().abs(), dim)


def _sums(values: Tensor, dim: int) -> Tensor:
    return values.detach().movedim(dim, 0).flatten(1).sum(1) if values.dim() > 1 else values.detach()


def add_coupled(total_C: Tensor, sums_N: Tensor, own: Sequence[int], channel: Sequence[int]) -> None:
    """Add the sums of a coupled tensor to its group's channels, in place: entry `own[i]` belongs to `channel[i]`.

    After a concatenation a layer sees a group at an offset, or twice; the two index lists say where.
    """
    import torch

    total_C.index_add_(
        0, torch.as_tensor(channel, device=total_C.device), sums_N[torch.as_tensor(own, device=sums_N.device)]
    )


@dataclass
class Cutoff:
    """Diff-Pruning's stop: the first timestep whose loss falls below `threshold` times the largest loss so far."""

    threshold: float
    largest: float = field(default=0.0, init=False)

    def reached(self, loss: float) -> bool:
        """Whether to stop BEFORE this timestep's backward. Raises ValueError for a loss that is not finite."""
        if not math.isfinite(loss):
            raise ValueError(f"the loss is {loss}")
        self.largest = max(self.largest, loss)
        return loss < self.threshold * self.largest
