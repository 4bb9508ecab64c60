"""Denoiser: network + parameterization + schedule + conditioning. One call is one network evaluation per sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from optimize.network import Network
from optimize.parameterization import Parameterization
from optimize.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the network is told: nothing, or a class label in [0, classes); `null` is the unconditional label."""

    kind: Literal["none", "class"] = "none"
    classes: int = 0
    null: int | None = None


@dataclass(frozen=True)
class Denoiser:
    """(z, t, labels) -> (x^, e^)."""

    network: Network
    parameterization: Parameterization
    schedule: Schedule
    conditioning: Conditioning = Conditioning()

    def __call__(self, z_BCHW: Tensor, t: float | Tensor, labels_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(x^, e^), each (B,C,H,W) in the dtype of `z`; t is native time, one number or one per sample (B,).

        The network itself is fed float32; casts of other precisions are the network's own.
        """
        alpha, sigma = coefficients(self.schedule, t, z_BCHW)
        raw = self.network(**self.feed(z_BCHW, t, labels_B)).to(z_BCHW.dtype)
        return self.parameterization.split(raw, z_BCHW, alpha, sigma)

    def feed(self, z_BCHW: Tensor, t: float | Tensor, labels_B: Tensor | None) -> dict[str, Tensor]:
        """The network's named inputs."""
        import torch

        times = torch.as_tensor(t, dtype=torch.float32, device=z_BCHW.device).expand(z_BCHW.shape[0])
        feed = {"sample": z_BCHW.to(torch.float32), "timestep": times}
        if self.conditioning.kind == "class":
            if labels_B is None:
                raise ValueError("this denoiser is class-conditional: labels (B,) int64 are needed")
            feed["class_labels"] = labels_B
        return feed

    def with_network(self, network: Network) -> Denoiser:
        """The same denoiser around another network, e.g. a runner."""
        return replace(self, network=network)


def coefficients(schedule: Schedule, t: float | Tensor, z: Tensor) -> tuple[Any, Any]:
    """(alpha, sigma) as floats for one time, or as tensors shaped to broadcast against `z` for times (B,)."""
    import torch

    if not isinstance(t, torch.Tensor):
        return float(schedule.alpha(t)), float(schedule.sigma(t))
    shape = (-1,) + (1,) * (z.dim() - 1)
    times = t.detach().cpu().double().numpy()
    return tuple(torch.as_tensor(f(times)).to(z).view(shape) for f in (schedule.alpha, schedule.sigma))
