"""LoRA (Hu et al. 2021, arXiv:2106.09685): a layer's weights W become W + s B A, of rank r; s = strength * alpha / r.

Read from safetensors in every naming that diffusers knows, then merged into the weights, or kept beside them as a switch
whose strength is an input of the network. Plain LoRA only: DoRA, LoHa and LoKr compute something else and are refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError, UserError
from optimize.storage.weights import read_tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

DENOISERS = ("unet", "transformer")
COMPONENTS = (*DENOISERS, "text_encoder", "text_encoder_2")
LOADERS = {  # diffusers' reader of the namings, by the denoiser's class; all U-Nets have one
    "SD3Transformer2DModel": "SD3LoraLoaderMixin",
    "FluxTransformer2DModel": "FluxLoraLoaderMixin",
}
OTHERS = ("dora_scale", "lora_magnitude_vector", "hada_", "lokr_", "lora_mid", "diff_b", "oft_")


@dataclass(frozen=True)
class Delta:
    """The update of one layer, scale * up(down(x)): down (r,in[,k,k]), up (out,r[,1,1])."""

    down: Tensor
    up: Tensor
    scale: float

    def product(self) -> Tensor:
        """scale * B A in the shape of the layer's weights (out,in[,k,k])."""
        flat = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return self.scale * flat.reshape(self.up.shape[0], *self.down.shape[1:])


@dataclass(frozen=True)
class Lora:
    """Updates by component ("unet", "transformer", "text_encoder", "text_encoder_2") and layer, and where they come from."""

    path: Path
    deltas: dict[str, dict[str, Delta]]
    strength: float = 1.0


def lora_option(text: str) -> tuple[Path, float]:
    """(file, strength) of `FILE` or `FILE:strength`; UserError for a strength that is no number."""
    file, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(file), float(strength)
    except ValueError:
        raise UserError(
            f'--lora: "{strength}" is no number. Give FILE or FILE:strength, e.g. style.safetensors:0.8.'
        ) from None


def read_lora(path: Path, strength: float = 1.0, config: dict[str, Any] | None = None) -> Lora:
    """The updates in a LoRA file. `config` is the denoiser's: its class decides which namings are known, and it maps the
    block names of SDXL files written for other programs.

    Raises ArtifactError for what is no safetensors file, and for one with anything but plain LoRA in it."""
    tensors, about = read_tensors(path), config or {}
    foreign = [k for k in tensors if any(mark in k for mark in OTHERS)]
    if foreign or not tensors:
        raise _not_plain(path, foreign)
    try:
        denoiser = "transformer" if about.get("_class_name") in LOADERS else "unet"
        named, alphas = (_by_component(found, denoiser) for found in _diffusers_names(tensors, about))
        return Lora(path, _deltas(path, named, alphas, _description(path)), strength)
    except (ValueError, KeyError, IndexError, AssertionError, NotImplementedError) as error:
        raise ArtifactError(f"{path}: not a LoRA that diffusers reads ({error}).") from error


def _not_plain(path: Path, keys: list[str]) -> ArtifactError:
    shown = ", ".join(keys[:3]) or "no tensor at all"
    return ArtifactError(
        f"{path}: holds {shown}. Only plain LoRA (lora_A and lora_B, or down and up) is merged; DoRA, LoHa and LoKr are not."
    )


def _diffusers_names(tensors: dict[str, Any], config: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """(tensors, alphas) under diffusers' names."""
    from diffusers import loaders

    reader = LOADERS.get(config.get("_class_name", ""))
    if reader == "SD3LoraLoaderMixin":  # the one that reads no alphas
        return loaders.SD3LoraLoaderMixin.lora_state_dict(dict(tensors)), {}
    if reader:
        named, alphas = getattr(loaders, reader).lora_state_dict(dict(tensors), return_alphas=True)
    else:
        about = SimpleNamespace(**config) if config else None
        named, alphas = loaders.StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=about)
    return named, dict(alphas or {})


def _description(path: Path) -> dict[str, Any]:
    """peft's own description of the adapters, where diffusers stored it with the file: {"unet.lora_alpha": ...}."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        kept = (file.metadata() or {}).get("lora_adapter_metadata")
    about = json.loads(kept) if kept else {}
    return about if isinstance(about, dict) else {}


def _deltas(
    path: Path, named: dict[str, dict[str, Any]], alphas: dict[str, dict[str, Any]], about: dict[str, Any]
) -> dict[str, dict[str, Delta]]:
    found: dict[str, dict[str, Delta]] = {}
    odd: list[str] = []
    for component, tensors in named.items():
        downs = {k.removesuffix(".lora_A.weight"): v for k, v in tensors.items() if k.endswith(".lora_A.weight")}
        ups = {k.removesuffix(".lora_B.weight"): v for k, v in tensors.items() if k.endswith(".lora_B.weight")}
        odd += [f"{component}.{k}" for k in tensors if not k.endswith((".lora_A.weight", ".lora_B.weight"))]
        odd += [f"{component}.{k}" for k in set(downs) ^ set(ups)]
        given = {k.split(".lora_A")[0].removesuffix(".alpha"): v for k, v in alphas.get(component, {}).items()}
        for layer in sorted(set(downs) & set(ups)):
            scale = _scale(component, layer, len(downs[layer]), given, about)
            found.setdefault(component, {})[layer] = Delta(downs[layer], ups[layer], scale)
    if odd or not found:
        raise _not_plain(path, sorted(odd))
    return found


def _by_component(named: dict[str, Any], denoiser: str) -> dict[str, dict[str, Any]]:
    """Tensors by component with peft's names (layer.lora_A.weight); without a prefix they are the denoiser's."""
    from diffusers.utils import (
        convert_state_dict_to_diffusers,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    split: dict[str, dict[str, Any]] = {}
    for key, value in named.items():
        head, _, rest = key.partition(".")
        component, name = (head, rest) if head in COMPONENTS else (denoiser, key)
        split.setdefault(component, {})[name] = value
    return {
        component: convert_unet_state_dict_to_peft(tensors)
        if component in DENOISERS
        else convert_state_dict_to_peft(convert_state_dict_to_diffusers(tensors))
        for component, tensors in split.items()
    }


def _scale(component: str, layer: str, rank: int, alphas: dict[str, float], about: dict[str, Any]) -> float:
    """alpha / r; 1 where the file gives no alpha; alpha / sqrt(r) for rank-stabilized LoRA (arXiv:2312.03732)."""
    if layer in alphas:
        return float(alphas[layer]) / rank
    alpha = about.get(f"{component}.lora_alpha", about.get("lora_alpha"))
    pattern = about.get(f"{component}.alpha_pattern", about.get("alpha_pattern")) or {}
    alpha = pattern.get(layer, alpha)
    if alpha is None:
        return 1.0
    stabilized = about.get(f"{component}.use_rslora", about.get("use_rslora"))
    return float(alpha) / (rank**0.5 if stabilized else rank)


def merge(module: nn.Module, lora: Lora, component: str) -> int:
    """Add a component's updates, times the strength, to the weights in place; returns how many layers changed.

    Raises ArtifactError naming the first layers that the network does not have, or has in another shape."""
    import torch

    deltas = lora.deltas.get(component, {})
    layers = fitted(module, lora, component)
    with torch.no_grad():
        for name, layer in layers.items():
            layer.weight += (lora.strength * deltas[name].product()).to(layer.weight)
    return len(layers)


def fitted(module: nn.Module, lora: Lora, component: str) -> dict[str, Any]:
    """The layers of `module` that a component's updates are for; ArtifactError where one does not fit."""
    layers = dict(module.named_modules())
    found, missing = {}, []
    for name, delta in lora.deltas.get(component, {}).items():
        layer: Any = layers.get(name, layers.get(name.removeprefix("text_model.")))  # transformers 5 has no such level
        while getattr(layer, "switched", False):  # another LoRA's switch is around it
            layer = layer.base
        shape = (delta.up.shape[0], *delta.down.shape[1:])
        if layer is None or getattr(layer, "weight", None) is None:
            missing.append(f"{name} (no such layer)")
        elif tuple(layer.weight.shape) != shape:
            missing.append(f"{name} ({list(layer.weight.shape)} in the network, {list(shape)} in the file)")
        else:
            found[name] = layer
    if missing:
        total, shown = len(lora.deltas[component]), ", ".join(missing[:3])
        raise ArtifactError(
            f"{lora.path}: {len(missing)} of its {total} layers do not fit the pipeline's {component}: {shown}. "
            "It was made for another network."
        )
    return found


class Switch:
    """The strength that switched layers read, set before each call: a number or a scalar tensor."""

    value: Any = 0.0


def add_switch(module: nn.Module, lora: Lora, component: str, switch: Switch) -> int:
    """Put a component's updates beside its layers in place, W x + strength * switch * scale * B A x; returns how many."""
    layers = fitted(module, lora, component)
    for name, layer in layers.items():
        path = next(p for p, m in module.named_modules() if m is layer)
        outer, _, inner = path.rpartition(".")
        setattr(
            module.get_submodule(outer), inner, _switched(layer, lora.deltas[component][name], lora.strength, switch)
        )
    return len(layers)


def _switched(layer: Any, delta: Delta, strength: float, switch: Switch) -> nn.Module:
    import torch
    from torch import nn

    class Switched(nn.Module):
        """One layer with its update; x as the layer takes it."""

        switched = True

        def __init__(self) -> None:
            super().__init__()
            self.base = layer
            self.down = nn.Parameter(delta.down.to(layer.weight), requires_grad=False)
            self.up = nn.Parameter((strength * delta.scale * delta.up.float()).to(layer.weight), requires_grad=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) + switch.value * self._update(x)

        def _update(self, x: torch.Tensor) -> torch.Tensor:
            if isinstance(layer, nn.Conv2d):
                low = nn.functional.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation)
                return nn.functional.conv2d(low, self.up)
            return nn.functional.linear(nn.functional.linear(x, self.down.flatten(1)), self.up.flatten(1))

    return Switched()
