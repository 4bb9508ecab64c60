"""The teacher of a student: its guided x^, clipped as its sampler clips, and the noise levels both are asked at.

Guidance in one call of both branches: x^ = (1 + w) x_cond - w x_null (Meng et al. 2022, arXiv 2210.03142).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimize.errors import UserError

Clock = Callable[["np.ndarray"], "np.ndarray"]  # fractions u of the way, 0 clean and 1 noisiest -> native times

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from optimize.diffusion.denoiser import Denoiser
    from optimize.diffusion.sampling import Sampler


@dataclass(frozen=True)
class Guide:
    """The guided teacher: x^ = (1 + w) x_cond - w x_null (Meng et al.), both branches in one call."""

    denoiser: Denoiser
    sampler: Sampler
    weight: float

    def __call__(self, z: Tensor, t_B: Tensor, condition: Any) -> Tensor:
        """x^ (B,C,H,W) without gradients, clipped as the teacher's sampler clips."""
        import torch

        with torch.no_grad():
            self.denoiser.network.module.to(z.device)  # type: ignore[attr-defined]
            x = self._guided(z, t_B, condition) if self.weight else self.denoiser(z, t_B, condition)[0]
            return x if self.sampler.clip is None else x.clamp(-self.sampler.clip, self.sampler.clip)

    def _guided(self, z: Tensor, t_B: Tensor, condition: Any) -> Tensor:
        import torch

        null = self.denoiser.unconditional(condition)
        if null is None:
            raise UserError(f"distill.guidance: {self.weight:g} given, but the teacher has no null class. Set it to 0.")
        both = self.denoiser.both(condition, null)
        x_c, x_u = self.denoiser(torch.cat([z, z]), torch.cat([t_B, t_B]), both)[0].chunk(2)
        return x_c + self._weights(t_B, z) * (x_c - x_u)

    def _weights(self, t_B: Tensor, z: Tensor) -> Tensor:
        """(B,1,1,1): the weight, 0 outside the sampler's guidance interval."""
        import torch

        interval = self.sampler.guidance.interval
        weights = torch.full_like(t_B, self.weight)
        if interval is not None:
            weights = weights * ((t_B >= interval[0]) & (t_B <= interval[1]))
        return weights.to(z.dtype).view(-1, *[1] * (z.dim() - 1))


@dataclass(frozen=True)
class Levels:
    """From fractions u (B,) to native times, by `clock`, and coefficients, on the device of `like` and shaped against it."""

    denoiser: Denoiser
    like: Tensor
    clock: Clock

    def __call__(self, u_B: np.ndarray) -> tuple[Tensor, tuple[Any, Any]]:
        """Native times (B,) float64 and (alpha, sigma), each (B,1,1,1) in the dtype of `like`."""
        import torch

        from optimize.diffusion.denoiser import coefficients

        t = torch.from_numpy(self.clock(u_B)).to(self.like.device)
        return t, coefficients(self.denoiser.schedule, t, self.like)

    def expand(self, mask_B: np.ndarray) -> Tensor:
        """A mask (B,) as (B,1,1,1)."""
        import torch

        return torch.from_numpy(mask_B).to(self.like.device).view(-1, *[1] * (self.like.dim() - 1))
