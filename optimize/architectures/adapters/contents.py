"""The updates in a LoRA file by the layers' names as the file has them: every tensor is one of an update, or is named in
an error.

LoRA: Hu et al. 2021, arXiv:2106.09685. A layer's update is s B A with A ("down") of shape (r,in[,k,k]), B ("up") of shape
(out,r[,1,1]) and s = alpha / r.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.architectures.adapters.foreign import kind_of, refusal, short
from optimize.storage.weights import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

FORMS = (  # of a tensor's name: the layer's, then the role
    re.compile(r"(?P<layer>.+)\.lora(?:_|\.|_linear_layer\.)(?P<role>down|up|A|B)(?:\.[^.]+)??(?:\.weight)?"),
    re.compile(r"(?P<layer>.+_lora\d?)\.(?P<role>down|up)\.weight"),  # diffusers' old attention processors, XLabs
    re.compile(r"(?P<layer>.+)\.(?P<role>alpha)"),
)
ROLES = {"A": "down", "B": "up"}
WHOLE, UNKNOWN = "weights that replace and do not add", "tensors whose role is not known"


@dataclass(frozen=True)
class Delta:
    """The update of one layer, scale * up(down(x)): down (r,in[,k,k]), up (out,r[,1,1])."""

    down: Tensor
    up: Tensor
    scale: float

    def product(self) -> Tensor:
        """scale * B A in float32, of shape (out,in[,k,k])."""
        flat = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return self.scale * flat.reshape(self.up.shape[0], *self.down.shape[1:])

    def rows(self, ranges: Iterable[tuple[int, int]]) -> Delta:
        """The part of the update for these rows of its output, in their order; all of it without ranges."""
        import torch

        parts = [self.up[start:stop] for start, stop in ranges]
        return replace(self, up=torch.cat(parts)) if parts else self


@dataclass(frozen=True)
class Update:
    """A layer's tensors; `alpha` is None where the file gives none."""

    down: Tensor
    up: Tensor
    alpha: float | None


def read_updates(path: Path) -> dict[str, Update]:
    """{the layer's name in the file: its update}.

    Raises ArtifactError for what is no safetensors file, and naming all that is not plain LoRA: tensors of other methods,
    a role twice or alone, shapes that do not go together, values that are no finite numbers."""
    tensors = read_tensors(path)
    if not tensors:
        raise refusal(path, {"no tensor at all": ()})
    _refuse(path, ((kind, short(key)) for key in tensors if (kind := kind_of(key))))
    layers: dict[str, dict[str, str]] = {}
    found = []
    for key in tensors:
        layer, role = _role(key)
        if not role:
            found.append((WHOLE if key.endswith((".weight", ".bias")) else UNKNOWN, short(key)))
        elif role in layers.setdefault(layer, {}):
            found.append(("one role of a layer twice", f"{short(layers[layer][role])} and {short(key)}"))
        else:
            layers[layer][role] = key
    _refuse(path, [*found, *_alone(layers)])
    _refuse(path, (problem for roles in layers.values() for problem in _wrong(tensors, roles)))
    return {layer: _update(tensors, roles) for layer, roles in layers.items()}


def _role(key: str) -> tuple[str, str]:
    """(layer, role) of a tensor's name; ("", "") where it has none."""
    match = next((m for form in FORMS if (m := form.fullmatch(key))), None)
    return (match["layer"], ROLES.get(match["role"], match["role"])) if match else ("", "")


def _refuse(path: Path, found: Iterable[tuple[str, str]]) -> None:
    """Raise for what was found, (what is wrong, name), in the order of the first of each."""
    problems: dict[str, list[str]] = {}
    for kind, name in found:
        problems.setdefault(kind, []).append(name)
    if problems:
        raise refusal(path, problems)


def _alone(layers: Mapping[str, Mapping[str, str]]) -> Iterable[tuple[str, str]]:
    for roles in layers.values():
        for role, missing in (("down", "up"), ("up", "down")):
            if role in roles and missing not in roles:
                yield f"{role} without {missing}", short(roles[role])
        if set(roles) == {"alpha"}:
            yield "an alpha without its layer", short(roles["alpha"])


def _wrong(tensors: Mapping[str, Tensor], roles: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """What is wrong with one layer's values and shapes."""
    import torch

    for role, key in roles.items():
        value = tensors[key]
        if value.is_complex() or value.dtype == torch.bool or (role != "alpha" and not value.is_floating_point()):
            yield f"values that are {str(value.dtype).removeprefix('torch.')}", short(key)
        elif not bool(torch.isfinite(value.float()).all()):
            yield "values that are NaN or infinite", short(key)
    if "alpha" in roles and tensors[roles["alpha"]].numel() != 1:
        yield "an alpha that is not one number", f"{short(roles['alpha'])} {list(tensors[roles['alpha']].shape)}"
    down, up = tensors[roles["down"]], tensors[roles["up"]]
    if not _paired(tuple(down.shape), tuple(up.shape)):
        yield "shapes that are no update", f"{short(roles['down'])} {list(down.shape)} with up {list(up.shape)}"


def _paired(down: tuple[int, ...], up: tuple[int, ...]) -> bool:
    """Whether shapes are (r,in[,k…]) and (out,r[,1…]), with no length of 0."""
    long = len(down) > 1 and len(up) > 1 and all((*down, *up))
    return long and down[0] == up[1] and set(up[2:]) <= {1}


def _update(tensors: Mapping[str, Tensor], roles: Mapping[str, str]) -> Update:
    alpha = float(tensors[roles["alpha"]].flatten()[0]) if "alpha" in roles else None
    down, up = (t.float() if t.itemsize == 1 else t for t in (tensors[roles["down"]], tensors[roles["up"]]))
    return Update(down, up, alpha)
