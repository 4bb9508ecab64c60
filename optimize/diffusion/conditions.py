"""Conditions of a network that is told more than a class: given tensors by input name, or seeded stand-ins.

A file of conditions is a safetensors file with a tensor for every such input, a row a sample (rows are taken in turn),
and, under "null." and the name, one row that takes its place in the unconditional branch (an empty prompt's states,
say; zeros otherwise). Where no text encoder is at hand, normal numbers stand in, each sample's from its seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize import rng
from optimize.diffusion.denoiser import CLASS, NULL, Conditioning
from optimize.diffusion.network import TensorSpec, stand_in
from optimize.errors import UserError, did_you_mean
from optimize.storage.weights import read_tensors

if TYPE_CHECKING:
    from torch import Tensor


def rows(about: Conditioning, given: Mapping[str, Tensor], seeds: Sequence[int]) -> dict[str, Tensor]:
    """Tensors (B, ...) by input name for the samples of these seeds, each given one's row `seed mod N`, the others'
    stand-ins; inputs that all samples share once, and the given null tensors."""
    made = {spec.name: _row(spec, given, seeds, about) for spec in about.tensors}
    return {**made, **{name: value for name, value in given.items() if name.startswith(NULL)}}


def _row(spec: TensorSpec, given: Mapping[str, Tensor], seeds: Sequence[int], about: Conditioning) -> Tensor:
    import numpy as np
    import torch

    value = given.get(spec.name)
    if value is not None:
        return value[[seed % len(value) for seed in seeds]] if spec.batched else value
    shape = spec.shape(len(seeds))
    if spec.fill != "normal" or not spec.batched:
        made = stand_in(spec, shape) if spec.fill != "normal" else rng.normal(shape, "condition", spec.name)
    elif spec.name == CLASS and spec.dtype == "int64" and about.classes:
        made = np.array([about.label(int(seed)) for seed in seeds])
    elif spec.dtype == "int64":
        made = np.zeros(shape)
    else:
        made = np.stack([rng.normal(shape[1:], "condition", spec.name, int(seed)) for seed in seeds])
    return torch.from_numpy(np.asarray(made)).to(getattr(torch, spec.dtype))


def read(path: Path, about: Conditioning, field: str = "source.conditions") -> dict[str, Tensor]:
    """The tensors of a file of conditions, checked against what the network is told.

    Raises UserError for a name the network is not told, and for a shape that does not fit.
    """
    specs, given = {spec.name: spec for spec in about.tensors}, read_tensors(path)
    for name, value in given.items():
        spec = specs.get(name.removeprefix(NULL))
        if spec is None:
            said = ", ".join(sorted(specs)) or "nothing"
            raise UserError(
                f"{field}: {path}: this network is not told {name}. Allowed: {said}.{did_you_mean(name, specs)}"
            )
        _check(spec, name, value, f"{field}: {path}")
    return {name: value.to(_dtype(specs[name.removeprefix(NULL)])) for name, value in given.items()}


def _check(spec: TensorSpec, name: str, value: Tensor, where: str) -> None:
    """Dims that are numbers must be these; symbols may have any size."""
    import torch

    fits = value.dim() == len(spec.dims) and all(
        isinstance(want, str) or want == have for want, have in zip(spec.dims, value.shape, strict=True)
    )
    if not fits or not len(value):
        dims = ", ".join(map(str, spec.dims))
        raise UserError(f"{where}: {name} has shape {tuple(value.shape)}, ({dims}) is needed.")
    if not bool(torch.isfinite(value).all()):
        raise UserError(f"{where}: {name} holds numbers that are not finite.")


def _dtype(spec: TensorSpec) -> Any:
    import torch

    return getattr(torch, spec.dtype)
