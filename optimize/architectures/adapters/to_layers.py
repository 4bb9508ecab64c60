"""From the names in a LoRA file to the layers of a network: each update is for one layer, or for the rows of several.

A name is looked up among the network's own layers and their names in the original layouts, with dots or underscores. What
has no place is told apart: a file made for another network, or a naming that is not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.architectures.adapters.contents import Delta
from optimize.architectures.adapters.foreign import short, some
from optimize.architectures.adapters.naming import flat, spellings, tell_foreign
from optimize.architectures.adapters.other_names import Piece, Shapes, originals
from optimize.errors import ArtifactError

if TYPE_CHECKING:
    from torch import nn

KNOWN = "known are those of diffusers, peft, kohya, ai-toolkit, OneTrainer, ComfyUI and XLabs"
Pieces = tuple[Piece, ...]


@dataclass(frozen=True)
class Names:
    """How errors call things: the file, the pipeline's component, and a layer as the file does, prefix and all."""

    path: Path
    component: str
    whole: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str:
        return short(self.whole.get(name, name))


@dataclass(frozen=True)
class Layers:
    """The layers of a network that take an update: their shapes, and what each name stands for, dotted and flat."""

    shapes: Shapes
    dotted: Mapping[str, Pieces]
    flat: Mapping[str, Pieces]

    def find(self, name: str) -> Pieces:
        """What a file's name stands for; nothing where no layer is called so."""
        for spelling in spellings(name):
            if found := self.dotted.get(spelling) or self.flat.get(flat(spelling)):
                return found
        return ()

    def shape(self, pieces: Pieces) -> tuple[int, ...]:
        """The shape of the weights that an update of these pieces has."""
        if any(not piece.rows for piece in pieces):
            return self.shapes[pieces[0].layer]
        return (max(stop for p in pieces for _, stop in p.rows), *self.shapes[pieces[0].layer][1:])


def layers_of(module: nn.Module) -> Layers:
    """The linear layers and convolutions of a network, those behind a switch among them."""
    return named({path: tuple(layer.weight.shape) for path, layer in modules_of(module).items()})


def modules_of(module: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and convolutions of a network by path."""
    from torch import nn

    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    found: dict[str, nn.Module] = {}
    inside: set[nn.Module] = set()
    for path, layer in module.named_modules():
        if layer in inside:
            continue
        while getattr(layer, "switched", False):  # the switch of another LoRA is around it
            layer = layer.base
            inside.add(layer)
        if isinstance(layer, kinds) and path:
            found[path] = layer
    return found


def named(shapes: Shapes) -> Layers:
    """The names that layers of these shapes are known by; what would stand for two things stands for none."""
    dotted: dict[str, Pieces] = {layer: (Piece(layer),) for layer in shapes}
    for name, pieces in originals(shapes):
        if name not in shapes:
            _add(dotted, name, pieces)
    flats: dict[str, Pieces] = {}
    for name, pieces in dotted.items():
        _add(flats, flat(name), pieces)
    return Layers(shapes, dotted, flats)


def _add(names: dict[str, Pieces], name: str, pieces: Pieces) -> None:
    names[name] = pieces if names.get(name, pieces) == pieces else ()


def placed(deltas: Mapping[str, Delta], layers: Layers, names: Names) -> dict[str, Delta]:
    """Updates by the network's own layers, from updates by the file's names.

    Raises ArtifactError naming the layers that the network has not, or has in another shape, and two names of one layer."""
    places = {name: layers.find(name) for name in deltas}
    misfits = [
        _misfit(names.of(name), layers.shape(pieces), deltas[name])
        for name, pieces in places.items()
        if pieces and not _fits(deltas[name], layers.shape(pieces))
    ]
    missing = [name for name, pieces in places.items() if not pieces]
    if misfits or missing:
        raise _unplaced(names, len(deltas), misfits, missing, layers)
    _refuse_twice(places, names)
    return {piece.layer: deltas[name].rows(piece.rows) for name, pieces in places.items() for piece in pieces}


def _refuse_twice(places: Mapping[str, Pieces], names: Names) -> None:
    """Raise where two names stand for one layer: which of them counts, or both, no file says."""
    first: dict[str, str] = {}
    found = []
    for name, pieces in places.items():
        for layer in {piece.layer for piece in pieces}:
            if layer in first:
                found.append(f"{names.of(first[layer])} and {names.of(name)} ({short(layer)})")
            first.setdefault(layer, name)
    if found:
        raise twice(names.path, found)


def twice(path: Path, pairs: list[str]) -> ArtifactError:
    """The error for pairs of names that stand for the same."""
    return ArtifactError(
        f"{path}: it has two updates of one layer: {some(pairs)}. Take one of the two out of the file."
    )


def _fits(delta: Delta, shape: tuple[int, ...]) -> bool:
    """Whether an update is of these weights; a linear layer is a convolution of one pixel."""
    into = tuple(delta.down.shape[1:])
    pixel = into[0] == shape[1] and prod(into) == prod(shape[1:]) == shape[1]
    return (into == shape[1:] or pixel) and len(delta.up) == shape[0]


def _misfit(name: str, shape: tuple[int, ...], delta: Delta) -> str:
    theirs = [len(delta.up), *delta.down.shape[1:]]
    return f"{name} ({list(shape)} in the network, {theirs} in the file)"


def _unplaced(names: Names, total: int, misfits: list[str], missing: list[str], layers: Layers) -> ArtifactError:
    """Of another network is a file with layers of other shapes, or with names that only another network has."""
    count = len(misfits) + len(missing)
    told = f"{names.path}: {count} of its {total} layers do not fit the pipeline's {names.component}"
    is_foreign = tell_foreign(layers.dotted)
    shown = [*misfits, *(f"{names.of(name)} (no such layer)" for name in missing)]
    if misfits or any(is_foreign(name) for name in missing):
        return ArtifactError(f"{told}: {some(shown)}. It was made for another network.")
    return ArtifactError(
        f"{told}: {some(shown)}. This naming is not known: {KNOWN}. Save the file in one of them, e.g. LAYER.lora_A.weight with LAYER as the network calls it."
    )
