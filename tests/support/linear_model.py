"""A linear network on Gaussian data, whose optimal output is known for every head: cheap to train, exact to check."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from optimize import rng
from optimize.diffusion.context import Data
from optimize.diffusion.denoiser import Denoiser
from optimize.diffusion.model import Model, Structure
from optimize.diffusion.network import TensorSpec, TorchNetwork
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import Sampler
from optimize.diffusion.schedule import Schedule

WIDTH = 0.5  # standard deviation of the Gaussian data
INPUTS = (TensorSpec("sample", ("B", "C", "H", "W")), TensorSpec("timestep", ("B",)))


class Table(nn.Module):
    """raw = weight[t] z: a number for every training time."""

    def __init__(self, weight: np.ndarray) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(weight).float(), requires_grad=False)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.weight[timestep.long().clamp(min=0)].view(-1, 1, 1, 1) * sample


def levels(schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """alpha and sigma of every training time."""
    times = np.arange(len(schedule.alpha_bar))
    return schedule.alpha(times), schedule.sigma(times)


def exact(schedule: Schedule, head: str) -> np.ndarray:
    """What the optimal denoiser of N(0, WIDTH²) data multiplies z with, to give what the head means."""
    alpha, sigma = levels(schedule)
    x = alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)
    e = (1 - alpha * x) / sigma
    return {"epsilon": e, "sample": x, "v": alpha * e - sigma * x}[head]


def gaussian_model(schedule: Schedule, head: str = "epsilon", clip: float | None = None) -> Model:
    """The optimal denoiser of Gaussian data of a variance-preserving schedule."""
    network = TorchNetwork(Table(exact(schedule, head)), INPUTS)
    denoiser = Denoiser(network, Parameterization(head), schedule)  # type: ignore[arg-type]
    return Model(denoiser, Sampler(steps=4, clip=clip), Structure("table", {}), (1, 4, 4), limit=None)


def read(model: Model, schedule: Schedule, head: str = "epsilon", clip: float | None = 1.0) -> Model:
    """The same network, taken for one of another head and schedule."""
    about = replace(model.denoiser.parameterization, prediction=head)  # type: ignore[arg-type]
    denoiser = replace(model.denoiser, parameterization=about, schedule=schedule)
    return replace(model, denoiser=denoiser, sampler=model.sampler.model_copy(update={"clip": clip}))


def gaussian_data(count: int = 4096) -> Data:
    """Gaussian images (N, 1, 4, 4)."""
    return Data(torch.from_numpy(rng.normal((count, 1, 4, 4), "gaussian")) * WIDTH)
