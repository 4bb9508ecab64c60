"""Parity: how far one network is from another on the same inputs, over the whole noise range and at its edges.

A network whose own output is not finite is no reference: what a runtime makes of it, however finite, is no result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from optimize import rng
from optimize.diffusion.network import Network

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.diffusion.model import Model

EDGES = (
    0.0,
    1.0,
)  # latents of one value everywhere: there a norm or a sum may be zero, and an epsilon all that is left
FARTHEST = 3.4028234663852886e38  # stands for a distance that is no number: JSON has none of those


def parity(
    reference: Model, other: Network, levels: int = 10, batch: int = 8, seed: int = 0, times: list[float] | None = None
) -> dict[str, Any]:
    """`{levels: [{t, max_abs, relative_l2}], edges: [{t, relative_l2}], max_abs, relative_l2}`, the last two the worst over
    levels (`worst` is that over edges as well), and `not_finite`, a sentence, where a network gives NaN or infinities.

    Inputs at native time t are `alpha_t x + sigma_t eps` with seeded x = clipped noise, eps normal, B = `batch`; `times` defaults to `levels`
    times from nearly clean to noisiest. relative_l2 = |a - b| / |b| over the batch; a NaN counts as infinite. At the
    first and the last time latents of one value are tried as well, their distance relative to the largest |b| seen.
    """
    times = times or noise_levels(reference, levels)
    seen = [_level(reference, other, t, batch, seed) for t in times]
    rows, scale = [row for row, _, _ in seen], max(size for _, size, _ in seen)
    edges = [_edge(reference, other, z, t, scale) for t in (times[0], times[-1]) for z in _edges(reference, batch)]
    said = [text for _, _, text in seen if text] + [text for _, text in edges if text]
    return {
        "levels": rows,
        "edges": [row for row, _ in edges],
        "max_abs": max(r["max_abs"] for r in rows),
        "relative_l2": max(r["relative_l2"] for r in rows),
        **({"not_finite": said[0]} if said else {}),
    }


def worst(found: Mapping[str, Any], precision: str) -> float:
    """The largest distance of a parity, over noise levels and edges: what a gate holds against its limit. In 8 bits over the
    levels alone: latents of one value lie outside what was calibrated, and how far rounding carries there says nothing."""
    if {"int8", "fp8"} & set(precision.split("+")):
        return float(found["relative_l2"])
    return max([found["relative_l2"], *(r["relative_l2"] for r in found.get("edges", ()))])


def noise_levels(model: Model, levels: int) -> list[float]:
    """`levels` native times evenly from index 0 (or the smallest sigma) to the noisiest."""
    import numpy as np

    schedule = model.denoiser.schedule
    low = 0.0 if schedule.kind == "vp" else float(schedule.time(0.01))
    return [float(t) for t in np.linspace(low, schedule.noisiest, levels).round(0 if schedule.kind == "vp" else 6)]


def _level(reference: Model, other: Network, t: float, batch: int, seed: int) -> tuple[dict[str, float], float, str]:
    """The row of one noise level, the root mean square of the reference's output there, and what is not finite."""
    feed = noised_inputs(reference, t, batch, seed)
    a, b = _both(reference, other, feed)
    row = {"t": t, "max_abs": _number(float((b - a).abs().max())), "relative_l2": _number(relative_l2(b, a))}
    return row, _rms(a), _not_finite(a, "the network itself", t) or _not_finite(b, "the file as it is run", t)


def _edges(model: Model, batch: int) -> Iterator[Tensor]:
    """Latents of one value, every sample its own; as few batches as hold all of them."""
    import torch

    for first in range(0, len(EDGES), batch):
        values = [EDGES[(first + i) % len(EDGES)] for i in range(batch)]
        yield torch.tensor(values).view(-1, *[1] * len(model.shape)).expand(batch, *model.shape).contiguous()


def _edge(reference: Model, other: Network, z: Tensor, t: float, scale: float) -> tuple[dict[str, float], str]:
    """The row of one batch of edges; samples for which the network itself gives no numbers are no reference."""
    import torch

    a, b = _both(reference, other, _fed(reference, z, t))
    sound = torch.isfinite(a.flatten(1)).all(1)
    a, b = a[sound], b[sound]
    if not len(a):
        return {"t": t, "relative_l2": 0.0}, ""
    largest = max(_rms(a), scale)
    far = _rms(b - a) / largest if largest else float((b - a).abs().max())
    return {"t": t, "relative_l2": _number(far)}, _not_finite(b, "for latents of one value the file as it is run", t)


def _both(reference: Model, other: Network, feed: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    import torch

    with torch.inference_mode():
        return reference.denoiser.network(**feed).double(), other(**feed).double()


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _number(value: float) -> float:
    return value if math.isfinite(value) else FARTHEST


def _not_finite(x: Tensor, who: str, t: float) -> str:
    import torch

    bad = int((~torch.isfinite(x)).sum())
    return f"{who} gives NaN or infinities at time {t:g} ({bad} of {x.numel()} values)" if bad else ""


def relative_l2(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted| over all elements, 0 where they are equal; NaN where either holds one."""
    gap = float((found - wanted).norm())
    return gap / float(wanted.norm() or math.nan) if gap else 0.0


def noised_inputs(model: Model, t: float, batch: int, seed: int, first: int = 0) -> dict[str, Tensor]:
    """Seeded network inputs (B = batch) at one noise level, conditioned as the samples of seeds `first` and after."""
    import torch

    shape = (batch, *model.shape)
    x = torch.from_numpy(rng.normal(shape, "parity", seed, "x")).clamp(-1, 1)
    e = torch.from_numpy(rng.normal(shape, "parity", seed, "e"))
    schedule = model.denoiser.schedule
    return _fed(model, float(schedule.alpha(t)) * x + float(schedule.sigma(t)) * e, t, first)


def _fed(model: Model, z: Tensor, t: float, first: int = 0) -> dict[str, Tensor]:
    """Network inputs for these latents, conditioned as the samples of seeds `first` and after."""
    return model.denoiser.feed(z, t, model.condition(range(first, first + len(z))))
