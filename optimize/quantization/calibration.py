"""Calibration inputs: what the network really sees, recorded along the model's own sampler at its own steps.

Q-Diffusion (Li et al., arXiv 2302.04304): the inputs of a diffusion network change with the noise level, so they are
taken from the trajectories that will be run, every step equally often; a distilled student needs its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimize import rng
from optimize.diffusion.network import Network

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.diffusion.model import Model

Feed = dict[str, "Tensor"]


def trajectory_inputs(model: Model, samples: int = 256, seed: int = 0, batch: int = 64) -> list[Feed]:
    """Named network inputs of every evaluation while `samples` images are drawn, in order.

    Each entry is one evaluation of one batch (B, or 2B where guidance evaluates both branches at once). The images'
    seeds come from `seed` and lie above 2**32, apart from those images are usually drawn from.
    """
    recorder = Recorder(model.denoiser.network)
    start = (1 << 32) + int(rng.integers(0, 1 << 30, (1,), "calibration", seed)[0])
    model.with_network(recorder).sample(range(start, start + samples), batch=batch)
    return recorder.feeds


def noised_feeds(model: Model, samples: int, seed: int = 0, batch: int = 64, levels: int = 10) -> list[Feed]:
    """Named network inputs of `samples` noised samples at each of `levels` noise levels, in batches: what a network too
    large to draw images from here is calibrated with. What lies under the noise is noise as well (see `noised_inputs`).
    """
    from optimize.diffusion.parity import noise_levels, noised_inputs

    times, starts = noise_levels(model, levels), range(0, samples, batch)
    sizes = {start: min(batch, samples - start) for start in starts}
    return [noised_inputs(model, t, sizes[i], seed + (1 << 20) + i, first=i) for t in times for i in starts]


class Recorder:
    """A Network that keeps a copy of everything it is fed."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.inputs = network.inputs
        self.feeds: list[Feed] = []

    def __call__(self, **tensors: Tensor) -> Tensor:
        self.feeds.append({k: v.detach().clone() for k, v in tensors.items()})
        return self.network(**tensors)
