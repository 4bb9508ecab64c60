"""Parity: how far one network is from another on the same inputs, over the whole noise range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize import rng
from optimize.diffusion.network import Network

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.diffusion.model import Model


def parity(
    reference: Model, other: Network, levels: int = 10, batch: int = 8, seed: int = 0, times: list[float] | None = None
) -> dict[str, Any]:
    """`{levels: [{t, max_abs, relative_l2}], max_abs, relative_l2}`, the last two the worst over levels.

    Inputs at native time t are `alpha_t x + sigma_t eps` with seeded x = clipped noise, eps normal, B = `batch`; `times` defaults to `levels`
    times from nearly clean to noisiest. relative_l2 = |a - b| / |b| over the batch; a NaN counts as infinite.
    """
    rows = [_level(reference, other, t, batch, seed) for t in times or noise_levels(reference, levels)]
    return {
        "levels": rows,
        "max_abs": max(r["max_abs"] for r in rows),
        "relative_l2": max(r["relative_l2"] for r in rows),
    }


def noise_levels(model: Model, levels: int) -> list[float]:
    """`levels` native times evenly from index 0 (or the smallest sigma) to the noisiest."""
    import numpy as np

    schedule = model.denoiser.schedule
    low = 0.0 if schedule.kind == "vp" else float(schedule.time(0.01))
    return [float(t) for t in np.linspace(low, schedule.noisiest, levels).round(0 if schedule.kind == "vp" else 6)]


def _level(reference: Model, other: Network, t: float, batch: int, seed: int) -> dict[str, float]:
    import torch

    feed = noised_inputs(reference, t, batch, seed)
    with torch.inference_mode():
        a, b = reference.denoiser.network(**feed).double(), other(**feed).double()
    difference = relative_l2(b, a)
    largest = float((b - a).abs().max())
    big = float(torch.finfo(torch.float32).max)
    return {
        "t": t,
        "max_abs": largest if largest == largest else big,
        "relative_l2": difference if difference == difference else big,
    }


def relative_l2(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted| over all elements; NaN where either holds one."""
    return float((found - wanted).norm() / wanted.norm())


def noised_inputs(model: Model, t: float, batch: int, seed: int, first: int = 0) -> dict[str, Tensor]:
    """Seeded network inputs (B = batch) at one noise level, conditioned as the samples of seeds `first` and after."""
    import torch

    shape = (batch, *model.shape)
    x = torch.from_numpy(rng.normal(shape, "parity", seed, "x")).clamp(-1, 1)
    e = torch.from_numpy(rng.normal(shape, "parity", seed, "e"))
    schedule = model.denoiser.schedule
    z = float(schedule.alpha(t)) * x + float(schedule.sigma(t)) * e
    return model.denoiser.feed(z, t, model.condition(range(first, first + batch)))
