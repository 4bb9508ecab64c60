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
from optimize.errors import ArtifactError, UserError, cut, did_you_mean, some
from optimize.storage.dataset import check_file
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


def read(
    path: Path, about: Conditioning, field: str = "source.conditions", latents: TensorSpec | None = None
) -> dict[str, Tensor]:
    """The tensors of a file of conditions, checked against what the network is told; `latents` is the network's first
    input, whose sizes theirs must be.

    Raises UserError for a file that is none, a name the network is not told, and a shape or values that do not fit.
    """
    check_file(path, field, "Save it as safetensors: a tensor for every input of the network, a row a sample")
    try:
        given = read_tensors(path)
    except ArtifactError as error:
        raise ArtifactError(f"{field}: {error}") from None
    where = f"{field}: {cut(str(path))}"
    if not given:
        raise UserError(f"{where}: it holds nothing. Leave it out, or give tensors for {_told(about)}.")
    return checked(given, about, where, latents=latents)


def checked(
    given: Mapping[str, Tensor],
    about: Conditioning,
    where: str,
    count: int | None = None,
    latents: TensorSpec | None = None,
) -> dict[str, Tensor]:
    """Conditions as the network takes them, after each was found to fit; `count` is the number of samples they are of."""
    specs, sizes = {spec.name: spec for spec in about.tensors}, _fixed(latents)
    for name, value in given.items():
        spec = specs.get(name.removeprefix(NULL))
        if spec is None or (name.startswith(NULL) and spec.name not in about.nulled):
            raise UserError(
                f"{where}: this network is not told {cut(name)}. Allowed: {_told(about)}.{did_you_mean(name, specs)}"
            )
        _check(spec, name, value, where, sizes)
        _check_values(spec, name, value, where, about)
        rows = 1 if name.startswith(NULL) else count
        if spec.batched and rows is not None and len(value) != rows:
            raise UserError(f"{where}: {cut(name)} has {len(value)} rows; {rows} are needed.")
    return {name: value.to(_dtype(specs[name.removeprefix(NULL)])) for name, value in given.items()}


def _told(about: Conditioning) -> str:
    """What a network is told, and the null tensors it has, in words."""
    return some([*sorted(s.name for s in about.tensors), *(NULL + name for name in about.nulled)]) or "nothing"


def _fixed(latents: TensorSpec | None) -> dict[str, int]:
    """Sizes of the latents' own symbols; conditions of another size would not fit beside them."""
    symbols = {d for d in latents.dims if isinstance(d, str)} - {"B"} if latents is not None else set()
    return {k: v for k, v in latents.sizes if k in symbols} if latents is not None else {}


def _check(spec: TensorSpec, name: str, value: Tensor, where: str, sizes: dict[str, int]) -> None:
    """Dims that are numbers must be these; a symbol has one size in all tensors, which is put into `sizes`."""
    fits = value.dim() == len(spec.dims) and all(value.shape)
    for want, have in zip(spec.dims, value.shape) if fits else ():
        if isinstance(want, str) and "/" not in want and want != "B":
            fits &= sizes.setdefault(want, have) == have
        elif isinstance(want, str) and want != "B":
            word, _, divisor = want.partition("/")
            fits &= word not in sizes or -(-sizes[word] // int(divisor)) == have
        elif want != "B":
            fits &= want == have
    if not fits:
        dims = ", ".join(map(str, spec.dims))
        known = some(f"{symbol} = {size}" for symbol, size in sizes.items() if symbol in dims)
        raise UserError(
            f"{where}: {cut(name)} has shape {tuple(value.shape)}, ({dims}) is needed{f', where {known}' if known else ''}."
        )


def _check_values(spec: TensorSpec, name: str, value: Tensor, where: str, about: Conditioning) -> None:
    """Finite numbers, whole ones where the network takes such, and classes that it has."""
    plain = value.float() if value.element_size() == 1 else value
    if value.is_complex() or not bool(plain.isfinite().all()):
        raise UserError(f"{where}: {cut(name)} holds numbers that are not finite.")
    if spec.dtype != "int64":
        return
    if value.is_floating_point():
        raise UserError(f"{where}: {cut(name)} holds {value.dtype}; whole numbers are needed.")
    last = about.label(about.classes - 1) if spec.name == CLASS and about.classes else None
    if last is not None and not (int(value.min()) >= 0 and int(value.max()) <= max(last, about.null or 0)):
        said = f"{int(value.min())} to {int(value.max())}"
        raise UserError(f"{where}: {cut(name)} holds {said}. The classes of this network are {about.labels}.")


def _dtype(spec: TensorSpec) -> Any:
    import torch

    return getattr(torch, spec.dtype)
