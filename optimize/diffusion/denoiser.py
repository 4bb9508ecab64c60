"""Denoiser: network + parameterization + schedule + conditioning. One call is one network evaluation per sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from optimize.diffusion.network import Network, TensorSpec
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.schedule import Schedule
from optimize.errors import UserError, shown

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


CLASS = "class_labels"  # the input that a class is told by


@dataclass(frozen=True)
class Conditioning:
    """What the network is told: nothing; a class label; or `tensors` by the names of its inputs, of which those in `nulled`
    have another value in the unconditional branch.

    There are `classes` labels, counted from 0; `null` is the unconditional one, which is none of them and left out where
    it stands among them. Where tensors hold `class_labels`, `classes` and `null` are theirs.

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

    def label(self, number: int) -> int:
        """Class `number mod classes`; the null label is passed over."""
        which = number % self.classes
        return which + 1 if self.null is not None and which >= self.null else which

    @property
    def labels(self) -> str:
        """The labels that are classes, in words."""
        last = self.label(self.classes - 1)
        within = self.null is not None and self.label(0) < self.null < last
        return f"{self.label(0)} to {last}" + (f" without {self.null}, the null class" if within else "")

    def named(self, classes: int | None, null: int | None) -> Conditioning:
        """The same where the source says how many of a network's labels are classes and which is null. Raises UserError
        for what the network does not have."""
        if classes is None and null is None:
            return self
        for name, value in (("classes", classes), ("null_class", null)):
            if value is not None and type(value) is not int:
                raise UserError(f"source.{name}: given {shown(value, 40)}. A whole number is needed.")
        rows = max(self.classes, -1 if self.null is None else self.null + 1)
        if not rows:
            given = "source.null_class" if classes is None else "source.classes"
            raise UserError(f"{given}: this network is told no class. Leave it out.")
        null = self._null_among(rows, null)
        most = rows - (null is not None)
        if classes is not None and not 1 <= classes <= most:
            raise UserError(f"source.classes: given {shown(classes, 40)}. This network has 1 to {most} classes.")
        nulled = (*self.nulled, CLASS) if self.kind == "tensors" and null is not None else self.nulled
        return replace(
            self, classes=most if classes is None else classes, null=null, nulled=tuple(dict.fromkeys(nulled))
        )

    def _null_among(self, rows: int, null: int | None) -> int | None:
        if null is None or null == self.null:
            return self.null
        if self.null is not None:
            raise UserError(
                f"source.null_class: given {shown(null, 40)}. The null class of this network is {self.null}."
            )
        if not 0 <= null < rows:
            raise UserError(f"source.null_class: given {shown(null, 40)}. This network's labels are 0 to {rows - 1}.")
        return null

    def check_labels(self, labels_N: np.ndarray | None, where: str) -> None:
        """Raise UserError for samples without labels of a network that is told a class, and for labels that are none."""
        if self.kind != "class":
            return
        if labels_N is None:
            raise UserError(f"{where}: no labels, and this network is told a class. Give `labels` (N,), {self.labels}.")
        last = self.label(self.classes - 1)
        wrong = labels_N[(labels_N < 0) | (labels_N > last) | (labels_N == (-1 if self.null is None else self.null))]
        if len(wrong):
            raise UserError(f"{where}: a label is {int(wrong[0])}. The classes of this network are {self.labels}.")

    def check_guidance(self, cfg: float | None) -> None:
        """Raise UserError where guidance is asked for and no unconditional branch is known."""
        if not cfg or self.null is not None or self.nulled:
            return
        told = {
            "none": "this network is told nothing. Leave cfg out.",
            "class": "which label means no class is not known. Say it in source.null_class (optimize.load: null_class), "
            f"e.g. {self.classes - 1} where the last of its {self.classes} labels was trained as that; else leave cfg out.",
            "tensors": "none of what this network is told has another value without it. Leave cfg out.",
        }
        raise UserError(f"sampler.guidance.cfg: given {cfg:g}. It needs an unconditional branch, and {told[self.kind]}")


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
            **{name: _null(about, condition, spec) for spec in about.tensors if (name := spec.name) in about.nulled},
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


def _null(about: Conditioning, condition: Mapping[str, Tensor], spec: TensorSpec) -> Tensor:
    """The given null tensor of an input, the null class, its constant stand-in (as it is), or zeros."""
    import torch

    value = condition[spec.name]
    if NULL + spec.name in condition:
        return condition[NULL + spec.name].to(value).expand_as(value)
    if spec.name == CLASS and about.null is not None:
        return torch.full_like(value, about.null)
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
