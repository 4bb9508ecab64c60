"""Shapes of a network as JSON: what changed between two states, and the same change made again on a skeleton.

Only names, whole numbers and lists of them are stored and read back; nothing is executed or imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError
from optimize.plain.shapes import Shape, Size, refuse_misshapen

if TYPE_CHECKING:
    from torch import nn


class Change(Shape):
    """What `apply` reads: shapes of parameters by name, attributes of modules by path."""

    shapes: dict[str, list[Size]]
    attributes: dict[str, dict[str, int | list[int]]]


def snapshot(module: nn.Module) -> dict[str, dict[str, Any]]:
    """`{"shapes": {parameter: [..]}, "attributes": {module path: {name: whole number or list}}}`."""
    attributes = {
        path: {k: list(v) if isinstance(v, tuple) else v for k, v in vars(child).items() if _is_size(v)}
        for path, child in module.named_modules()
    }
    return {
        "shapes": {name: list(p.shape) for name, p in module.named_parameters()},
        "attributes": attributes,
    }


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What `apply` needs to turn a network that looks like `before` into one that looks like `after`."""
    shapes = {name: shape for name, shape in after["shapes"].items() if shape != before["shapes"][name]}
    changed = {
        path: {k: v for k, v in values.items() if before["attributes"][path].get(k) != v}
        for path, values in after["attributes"].items()
    }
    return {"shapes": shapes, "attributes": {path: values for path, values in changed.items() if values}}


def apply(module: nn.Module, change: dict[str, Any]) -> nn.Module:
    """Give parameters new (empty) tensors and attributes new values, in place; weights are to be loaded afterwards.

    Raises ArtifactError where the change is none, or names what the network does not have.
    """
    refuse_misshapen(change, Change, "structure.json: a record of shapes")
    children, parameters = dict(module.named_modules()), dict(module.named_parameters())
    for name, shape in change["shapes"].items():
        if name not in parameters or parameters[name].dim() != len(shape):
            raise ArtifactError(f"structure.json: {name} with shape {shape} does not belong to this network.")
        _resize(children[name.rpartition(".")[0]], name.rpartition(".")[2], shape)
    for path, values in change["attributes"].items():
        for name, value in values.items():
            _set(children.get(path), path, name, value)
    return module


def _resize(owner: nn.Module, name: str, shape: list[int]) -> None:
    import torch

    old = getattr(owner, name)
    setattr(owner, name, torch.nn.Parameter(old.new_empty(shape), requires_grad=old.requires_grad))


def _set(owner: Any, path: str, name: str, value: Any) -> None:
    held = None if owner is None else vars(owner).get(name)
    value = tuple(value) if isinstance(value, list) else value
    if not _is_size(held) or not _is_size(value):
        raise ArtifactError(f"structure.json: {path}.{name} = {value} is no size of this network.")
    setattr(owner, name, value)


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(type(v) is int for v in value)
    return type(value) is int
