"""What a network itself is off where its inputs move as float kernels round.

Two processors, or two libraries on one, add the same numbers in another order. In a quantized network a value on the edge
between two codes then falls to the other side, and where the weights are random what follows makes that grow: a graph that
is right may be off by as much, and no bound that is one number holds on every processor.
"""

from __future__ import annotations

from typing import Any

ROUNDING = 1e-5  # relative: what float kernels change on the way through a network
OWN = 1.5  # times what the network itself makes of such a change, that a quantized one's graph may be off by


def shaken(feed: dict[str, Any], time: str, draw: int = 0, by: float = ROUNDING) -> dict[str, Any]:
    """The inputs with every float but the time moved by `by` of itself, normally distributed; seeded, another for each draw."""
    import torch

    from optimize import rng

    floats = {k: v for k, v in feed.items() if v.is_floating_point() and k != time}
    at = (draw,) if draw else ()
    return feed | {k: v * (1 + by * torch.from_numpy(rng.normal(tuple(v.shape), "moved", k, *at)).to(v)) for k, v in floats.items()}  # fmt: skip


def own_movement(model: Any, feed: dict[str, Any], draws: int = 1) -> float:
    """How far (relative L2) the network's output on `feed` moves where its inputs are shaken: the worst of `draws`."""
    import torch

    from optimize.diffusion.parity import relative_l2

    network, time = model.denoiser.network, model.inputs[1].name
    with torch.inference_mode():
        still = network(**feed).double()
        moved = [network(**shaken(feed, time, draw)).double() for draw in range(draws)]
    return max(relative_l2(other, still) for other in moved)
