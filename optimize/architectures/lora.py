"""LoRA (Hu et al. 2021, arXiv:2106.09685): a layer's weights W become W + s B A, of rank r; s = strength * alpha / r.

Read from safetensors in the namings of the programs that write such files (`adapters/naming.py`), then merged into the
weights, or kept beside them as a switch whose strength is an input of the network. Every tensor and every alpha of a file
is merged, or the file is refused in an error that names them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.architectures.adapters.contents import Delta, read_updates
from optimize.architectures.adapters.foreign import short, some
from optimize.architectures.adapters.naming import DENOISERS, component_of, denoiser_of
from optimize.architectures.adapters.strength import described
from optimize.architectures.adapters.to_layers import Names, layers_of, modules_of, placed, twice
from optimize.errors import ArtifactError, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
Config = dict[str, Any]


@dataclass(frozen=True)
class Lora:
    """Updates by component ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3") and layer, and where
    they come from. Layers of a network whose config was not given are called as in the file, but for what `names` has:
    the whole names by component."""

    path: Path
    deltas: dict[str, dict[str, Delta]]
    strength: float = 1.0
    names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def lora_option(text: str) -> tuple[Path, float]:
    """(file, strength) of `FILE` or `FILE:strength`; UserError for a strength that is no finite number."""
    file, colon, strength = text.rpartition(":")
    if not colon or _exists(text):
        return Path(text), 1.0
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(
            f'--lora: "{short(strength)}" is no number. Give FILE or FILE:strength, e.g. style.safetensors:0.8.'
        )
    return Path(file), value


def _exists(text: str) -> bool:
    try:
        return Path(text).exists()
    except OSError:  # longer than names can be
        return False


def read_lora(
    path: Path, strength: float = 1.0, config: Config | None = None, encoders: Mapping[str, Config] | None = None
) -> Lora:
    """The updates in a LoRA file. `config` is the denoiser's: its class tells which component bare names are for, and its
    layers what the names of other programs stand for; `encoders` are those of the text encoders, by component.

    Raises ArtifactError for what is no safetensors file, for one with anything but plain LoRA in it, and for one that does
    not fit the networks whose configs are given."""
    updates, settings = read_updates(path), described(path)
    class_name = str((config or {}).get("_class_name", ""))
    denoiser = denoiser_of(updates, class_name)
    deltas: dict[str, dict[str, Delta]] = {}
    split = _by_component(path, updates, denoiser, class_name)
    for component, names in split.items():
        strengths = settings.of(component)
        found = {
            layer: Delta(updates[n].down, updates[n].up, strengths.scale(layer, updates[n]))
            for layer, n in names.items()
        }
        own = config if component == denoiser else (encoders or {}).get(component)
        deltas[component] = _placed(found, own, Names(path, component, names))
    _tell_silent(path, deltas)
    return Lora(path, deltas, strength, split)


def _by_component(path: Path, names: Iterable[str], denoiser: str, class_name: str) -> dict[str, dict[str, str]]:
    """{component: {a layer's name without the component's prefix: its name in the file}}."""
    split: dict[str, dict[str, str]] = {}
    for name in names:
        component, layer = component_of(name, denoiser, class_name)
        first = split.setdefault(component, {}).setdefault(layer, name)
        if first != name:
            raise twice(path, [f"{short(first)} and {short(name)}"])
    return split


def _placed(deltas: dict[str, Delta], config: Config | None, names: Names) -> dict[str, Delta]:
    """Updates by the layers of the network that a config describes, where it describes one that is known."""
    from optimize.architectures.components import COMPONENTS, class_name, skeleton

    if not config or class_name(config) not in COMPONENTS:
        return deltas
    return placed(deltas, layers_of(skeleton(config)[0]), names)


def _tell_silent(path: Path, deltas: dict[str, dict[str, Delta]]) -> None:
    """An alpha of 0 is a strength of 0, which is worth a word."""
    silent = [f"{part}.{layer}" for part, found in deltas.items() for layer, delta in found.items() if not delta.scale]
    if silent:
        log.warning("%s: alpha is 0, so that nothing changes, of %d layers: %s", path, len(silent), some(silent))


def merge(module: nn.Module, lora: Lora, component: str) -> int:
    """Add a component's updates, times the strength, to the weights in place; returns how many layers changed.

    Raises ArtifactError naming the layers that the network does not have, or has in another shape, before any changed, and
    one whose weights would not be finite."""
    import torch

    found = fitted(module, lora, component)
    with torch.no_grad():
        for path, (layer, delta) in found.items():
            update = (lora.strength * delta.product()).reshape(layer.weight.shape).to(layer.weight.device)
            wide = torch.promote_types(layer.weight.dtype, torch.float32)
            changed = (layer.weight.to(wide) + update).to(layer.weight.dtype)
            _check_finite(changed, lora, path)
            layer.weight.copy_(changed)
    return len(found)


def fitted(module: nn.Module, lora: Lora, component: str) -> dict[str, tuple[Any, Delta]]:
    """{path: (layer of `module`, its update)} of a component's updates; ArtifactError where one does not fit."""
    deltas = lora.deltas.get(component)
    if not deltas:
        if component in DENOISERS and (others := set(DENOISERS) & set(lora.deltas)):
            raise ArtifactError(f"{lora.path}: it is for a {', '.join(others)}, and this is a {component}.")
        return {}
    modules, names = modules_of(module), Names(lora.path, component, lora.names.get(component, {}))
    return {path: (modules[path], delta) for path, delta in placed(deltas, layers_of(module), names).items()}


def _check_finite(values: Tensor, lora: Lora, path: str) -> None:
    if not bool(values.isfinite().all()):
        raise ArtifactError(
            f"{lora.path}: at strength {lora.strength:g} the weights of {short(path)} are not finite. Give a lower strength, or leave the file out."
        )


class Switch:
    """The strength that switched layers read, set before each call: a number or a scalar tensor."""

    value: Any = 0.0


def add_switch(module: nn.Module, lora: Lora, component: str, switch: Switch) -> int:
    """Put a component's updates beside its layers in place, W x + strength * switch * scale * B A x; returns how many."""
    found = fitted(module, lora, component)
    for name, (layer, delta) in found.items():
        _check_finite(lora.strength * delta.product(), lora, name)
        path = next(p for p, m in module.named_modules() if m is layer)
        outer, _, inner = path.rpartition(".")
        setattr(module.get_submodule(outer), inner, _switched(layer, delta, lora.strength, switch))
    return len(found)


def _switched(layer: Any, delta: Delta, strength: float, switch: Switch) -> nn.Module:
    import torch
    from torch import nn

    class Switched(nn.Module):
        """One layer with its update; x as the layer takes it."""

        switched = True

        def __init__(self) -> None:
            super().__init__()
            self.base = layer
            pixel = (1,) * (layer.weight.ndim - 2)  # of a convolution
            down = delta.down.reshape(len(delta.down), *layer.weight.shape[1:])
            up = strength * delta.scale * delta.up.float().reshape(*delta.up.shape[:2], *pixel)
            self.down = nn.Parameter(down.to(layer.weight), requires_grad=False)
            self.up = nn.Parameter(up.to(layer.weight), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + switch.value * self._update(x)

        def _update(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(layer, nn.Conv2d):
                low = nn.functional.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation)
                return nn.functional.conv2d(low, self.up)
            return nn.functional.linear(nn.functional.linear(x, self.down), self.up)

    return Switched()
