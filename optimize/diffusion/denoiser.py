"""Denoiser: network + parameterization + schedule + conditioning. One call is one network evaluation per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from optimize.diffusion.network import Network, TensorSpec
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.schedule import Schedule

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """What the network is told: nothing; a class label in [0, classes), where `null` is the unconditional label; or
    `tensors` by the names of its inputs, of which those in `nulled` have another value in the unconditional branch.

    A tensor that has the name of the latents holds further channels, which go behind those of the latents (a mask and
    a masked image, say).
    """

    kind: Literal["none", "class", "tensors"] = "none"
    classes: int = 0
    null: int | None = None
    tensors: tuple[TensorSpec, ...] = ()
    nulled: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """JSON form."""
        common = {"kind": self.kind, "classes": self.classes, "null": self.null}
        if self.kind != "tensors":
            return common
        return {**common, "tensors": [spec.to_json() for spec in self.tensors], "nulled": list(self.nulled)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Conditioning:
        """Inverse of `to_json`."""
        tensors = tuple(TensorSpec.from_json(spec) for spec in value.get("tensors", ()))
        null = tuple(value.get("nulled", ()))
        return cls(value["kind"], value.get("classes", 0), value.get("null"), tensors, null)


@dataclass(frozen=True)
class Denoiser:
    """(z, t, condition) -> (x^, e^)."""

    network: Network
    parameterization: Parameterization
    schedule: Schedule
    conditioning: Conditioning = Conditioning()

    def __call__(self, z: Tensor, t: float | Tensor, condition: Any = None) -> tuple[Tensor, Tensor]:
        """(x^, e^), each shaped like `z` (B,C,H,W), (B,C,L) or (B,L,C), in its dtype; t is native time, one number or one
        per sample (B,); `condition` is labels (B,) or tensors by name.

        The network itself is fed float32; casts of other precisions are the network's own.
        """
        alpha, sigma = coefficients(self.schedule, t, z)
        raw = self.network(**self.feed(z, t, condition)).to(z.dtype)
        return self.parameterization.split(self.parameterization.mean(raw), z, alpha, sigma)

    def feed(self, z: Tensor, t: float | Tensor, condition: Any) -> dict[str, Tensor]:
        """The network's named inputs. Raises ValueError where a condition is missing."""
        import torch

        latents, time = self.names
        times = torch.as_tensor(t, dtype=torch.float32, device=z.device).expand(z.shape[0])
        seen = self.parameterization.network_input(z, coefficients(self.schedule, t, z)[1])
        feed = {latents: seen.to(torch.float32), time: self.parameterization.network_time(times)}
        if self.conditioning.kind == "none":
            return feed
        if self.conditioning.kind == "class":
            if condition is None:
                raise ValueError("this denoiser is class-conditional: labels (B,) int64 are needed")
            return {**feed, "class_labels": condition}
        wanted = [spec.name for spec in self.conditioning.tensors]
        missing = [name for name in wanted if name not in (condition or {})]
        if missing:
            raise ValueError(f"this denoiser is conditional: {', '.join(missing)} missing among the given tensors")
        if latents in wanted:
            feed[latents] = torch.cat([feed[latents], condition[latents].to(feed[latents])], 1)
        return {**feed, **{name: condition[name] for name in wanted if name != latents}}

    @property
    def names(self) -> tuple[str, str]:
        """Names of the network's latents and time, its first two inputs."""
        inputs = self.network.inputs
        return (inputs[0].name, inputs[1].name) if len(inputs) > 1 else ("sample", "timestep")

    def unconditional(self, condition: Any) -> Any:
        """What takes the place of a batch's condition in the unconditional branch; None where there is no such branch."""
        import torch

        about = self.conditioning
        if condition is None or (about.null is None and not about.nulled):
            return None
        if about.kind == "class":
            return torch.full_like(condition, about.null)
        return {
            **condition,
            **{name: _null(condition, spec) for spec in about.tensors if (name := spec.name) in about.nulled},
        }

    def dropped(self, condition: Any, gone_B: Tensor) -> Any:
        """The condition with the unconditional one in the rows of the mask (B,), where there is such a branch."""
        import torch

        null = self.unconditional(condition)
        if null is None:
            return condition
        if not isinstance(condition, Mapping):
            return torch.where(gone_B.to(condition.device), null, condition)

        def mixed(value: Tensor, other: Tensor) -> Tensor:
            mask = gone_B.to(value.device).view(-1, *[1] * (value.dim() - 1))
            return torch.where(mask, other, value)

        names = self.conditioning.nulled
        return {k: mixed(v, null[k]) if k in names else v for k, v in condition.items()}

    def both(self, condition: Any, null: Any) -> Any:
        """Two conditions behind one another, for a batch of both branches."""
        import torch

        if not isinstance(condition, Mapping):
            return torch.cat([condition, null])
        shared = {spec.name for spec in self.conditioning.tensors if not spec.batched}
        kept = {k: v for k, v in condition.items() if not k.startswith(NULL)}
        return {k: v if k in shared else torch.cat([v, null[k]]) for k, v in kept.items()}

    def with_network(self, network: Network) -> Denoiser:
        """The same denoiser around another network, e.g. a runner."""
        return replace(self, network=network)


NULL = "null."  # before a name: the tensor that takes its place in the unconditional branch


def _null(condition: Mapping[str, Tensor], spec: TensorSpec) -> Tensor:
    """The given null tensor of an input, its constant stand-in (as it is), or zeros."""
    import torch

    value = condition[spec.name]
    if NULL + spec.name in condition:
        return condition[NULL + spec.name].to(value).expand_as(value)
    return torch.zeros_like(value) if spec.fill == "normal" else value


def moved(condition: Any, device: Any) -> Any:
    """A condition on another device."""
    if isinstance(condition, Mapping):
        return {name: value.to(device) for name, value in condition.items()}
    return None if condition is None else condition.to(device)


def coefficients(schedule: Schedule, t: float | Tensor, z: Tensor) -> tuple[Any, Any]:
    """(alpha, sigma) as floats for one time, or as tensors shaped to broadcast against `z` for times (B,)."""
    import torch

    if not isinstance(t, torch.Tensor):
        return float(schedule.alpha(t)), float(schedule.sigma(t))
    shape = (-1,) + (1,) * (z.dim() - 1)
    times = t.detach().cpu().double().numpy()
    return tuple(torch.as_tensor(f(times)).to(z).view(shape) for f in (schedule.alpha, schedule.sigma))
