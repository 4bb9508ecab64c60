"""LoRA files of random ranks and alphas for every layer of a network, in the namings of the programs that write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from optimize.architectures.adapters.other_names import Piece, originals
from optimize.architectures.adapters.to_layers import layers_of

Tensors = dict[str, torch.Tensor]
Pieces = tuple[Piece, ...]
KOHYA = (".lora_down.weight", ".lora_up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")
DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
OLD = (".lora.down.weight", ".lora.up.weight")
LINEAR = (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")
BARE = (".lora_A", ".lora_B")


@dataclass(frozen=True)
class Naming:
    """How a program calls a layer, and the two matrices of its update; `called` gives "" for a layer it leaves out."""

    called: Callable[[str], str]
    marks: tuple[str, str] = KOHYA
    alphas: bool = True


def own(network: Any) -> dict[str, Pieces]:
    """Every layer by its own name."""
    return {layer: (Piece(layer),) for layer in layers_of(network).shapes}


def original(network: Any) -> dict[str, Pieces]:
    """Every layer by its name in the original layout, those that it keeps in one together."""
    return {name: pieces for name, pieces in _originals(network).items() if not _is_apart(name, _originals(network))}


def apart(network: Any) -> dict[str, Pieces]:
    """Every layer by its name in OneTrainer's layout: the original's, but those that are one there by number."""
    found = {name: p for name, p in _originals(network).items() if len(p) == 1 and name != "img_in"}
    seen = {piece.layer for pieces in found.values() for piece in pieces}
    return found | {name: p for name, p in own(network).items() if name not in seen}


def xlabs(network: Any) -> dict[str, Pieces]:
    """The attention of Flux as XLabs calls it."""
    return {name: p for name, p in originals(layers_of(network).shapes) if "processor." in name}


def _originals(network: Any) -> dict[str, Pieces]:
    return {name: p for name, p in originals(layers_of(network).shapes) if "processor." not in name}


def _is_apart(name: str, found: Mapping[str, Pieces]) -> bool:
    """Whether a name is OneTrainer's alone."""
    head, _, number = name.rpartition(".")
    return name == "img_in.proj" or (number.isdigit() and len(found.get(head, ())) > 1)


def write(
    path: Path, network: Any, names: Mapping[str, Pieces], naming: Naming, seed: int = 0
) -> tuple[Tensors, Tensors]:
    """Write a file; returns what is in it, and what each layer's weights change by, in float64."""
    random, layers = torch.Generator().manual_seed(seed), layers_of(network)
    tensors: Tensors = {}
    expected: Tensors = {}
    for name, pieces in names.items():
        if not (called := naming.called(name)):
            continue
        out, *into = layers.shape(pieces)
        rank = int(torch.randint(1, 5, (), generator=random))
        down = torch.randn(rank, *into, generator=random)
        up = torch.randn(out, rank, *(1 for _ in into[1:]), generator=random)
        tensors |= {called + naming.marks[0]: down, called + naming.marks[1]: up}
        alpha = rank
        if naming.alphas:
            alpha = int(torch.randint(1, 9, (), generator=random))
            tensors[f"{called}.alpha"] = torch.tensor(float(alpha))
        whole = alpha / rank * torch.einsum("or,r...->o...", up.flatten(1).double(), down.double())
        for piece in pieces:
            rows = [whole[a:b] for a, b in piece.rows]
            expected[piece.layer] = torch.cat(rows) if rows else whole
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    return tensors, expected


def farthest(changed: Any, before: Any, expected: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any weight from its old value and what it was to change by; of layers without an update,
    from their old value."""
    worst = 0.0
    for layer in layers_of(before).shapes:
        was, now = (n.get_submodule(layer).weight.double() for n in (before, changed))
        worst = max(worst, float((now - was - expected.get(layer, 0.0)).abs().max()))
    return worst


def config_of(network: Any) -> dict[str, Any]:
    """A network's config as it is on disk."""
    if hasattr(network.config, "to_dict"):
        return {**network.config.to_dict(), "architectures": [type(network).__name__]}
    return {**network.config, "_class_name": type(network).__name__}
