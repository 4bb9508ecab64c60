"""Which files of a network's folder hold its weights: one file, or the shards of an index, of one variant.

Names are those that diffusers and transformers write. Where there are several variants full precision is read, and which
one is logged: first the weights without a variant, then fp32, fp16, bf16, then another that stands alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from optimize.errors import ArtifactError
from optimize.storage.weights import Stored, header, is_read, read_json, read_tensors, refuse_pickle

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
log = logging.getLogger(__name__)
BASES = ("diffusion_pytorch_model", "model")  # diffusers', transformers'
INDEX_FIRST = BASES[:1]  # where a variant is there whole and in shards, each library reads one of them
PRECISE = ("", "fp32", "fp16", "bf16")  # variants in the order they are read
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
WHOLE = r"{base}(?:\.(?P<variant>.+))?\.safetensors"
INDEX = r"{base}(?:\.(?P<a>.+?))?\.safetensors(?:\.(?P<b>.+?))?\.index(?:\.(?P<c>.+))?\.json"  # the variant's place has moved


@dataclass(frozen=True)
class Found:
    """What holds one variant of the weights: a safetensors file, an index of shards, or both."""

    file: Path | None = None
    index: Path | None = None


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a network's folder, empty where there are none. Raises ArtifactError where an index is
    malformed, and where several variants are there and none is known to be the more precise."""
    for base in BASES:
        if found := _variants(folder, base):
            one = found[_chosen(folder, found)]
            if one.index and (one.file is None or base in INDEX_FIRST):
                return [folder / shard for shard in sorted(set(_weight_map(one.index).values()))]
            return [one.file] if one.file else []
    return []


def _variants(folder: Path, base: str) -> dict[str, Found]:
    """{variant: what holds it} of the weights that go by the name `base`."""
    found: dict[str, Found] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if index := re.fullmatch(INDEX.format(base=base), path.name):
            variant = next((v for v in index.groups() if v), "")
            found[variant] = Found(found.get(variant, Found()).file, path)
        elif (file := re.fullmatch(WHOLE.format(base=base), path.name)) and path.is_file():
            variant = file["variant"] or ""
            if not SHARD.search(variant):
                found[variant] = Found(path, found.get(variant, Found()).index)
    return found


def _chosen(folder: Path, found: Mapping[str, Found]) -> str:
    """The variant that is read, which is said where there are others."""
    if len(found) == 1:
        return next(iter(found))
    chosen = next((v for v in PRECISE if v in found), None)
    shown = ", ".join(v or "the one without a name" for v in list(found)[:10])
    if chosen is None:
        raise ArtifactError(
            f"{folder}: it holds several variants of the weights ({shown}), and nothing says which is meant. Keep one of them in the folder."
        )
    log.info("%s: of the variants %s, %s is read", folder, shown, chosen or "the one without a name")
    return chosen


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file of an index of shards; a name that leaves the folder is refused."""
    parsed = read_json(index, object)
    found = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(found, dict) or not found:
        raise ArtifactError(f"{index}: it has no weight_map. Copy or download it again.")
    for shard in found.values():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise ArtifactError(f"{index}: the shard {str(shard)[:100]!r} is no file name of this folder.")
    return found


def required_files(folder: Path) -> list[Path]:
    """The files of a folder's weights; ArtifactError saying what is there instead where there are none, or naming a shard
    that is missing."""
    files = weights_files(folder)
    if not files:
        raise _nothing(folder)
    for file in files:
        if not file.is_file():
            header(file)  # says what is missing
    return files


def _nothing(folder: Path) -> ArtifactError:
    """Why no weights were found: a pickle, shards without their index, a file under another name, or nothing."""
    expected = folder / f"{BASES[0]}.safetensors"
    names = sorted(p.name for p in folder.glob("*.safetensors")) if folder.is_dir() else []
    if any(SHARD.search(name.removesuffix(".safetensors")) for name in names):
        return ArtifactError(
            f"{folder}: it holds shards of the weights ({names[0]}) and not their index, {expected.name}.index.json. Copy the whole folder."
        )
    if names:
        return ArtifactError(
            f"{folder}: its weights are expected as {expected.name} or {BASES[1]}.safetensors, and it holds {names[0]}. Rename it, if it is the network that config.json describes."
        )
    try:
        refuse_pickle(expected)
        header(expected)
    except ArtifactError as error:
        return error
    raise AssertionError(f"{expected} is there")


@dataclass(frozen=True)
class Weights:
    """A network's tensors, wherever they are: `stored()` by headers, `read()` with their numbers, floats as float32.
    `where` names them in messages, `files` are read for them."""

    where: Path
    files: tuple[Path, ...]
    stored: Callable[[], dict[str, Stored]]
    read: Callable[[], dict[str, Tensor]]


def weights_of(folder: Path) -> Weights:
    """The weights in a network's folder; ArtifactError where there are none."""
    files = required_files(folder)
    where = files[0] if len(files) == 1 else folder
    return Weights(where, tuple(files), partial(stored, files), partial(read_weights, files))


def weights_in(file: Path) -> Weights:
    """The weights in one file."""
    return Weights(file, (file,), partial(stored, (file,)), partial(read_weights, (file,)))


def stored(files: Iterable[Path]) -> dict[str, Stored]:
    """All tensors of some files, by their headers; ArtifactError where two files hold one."""
    found: dict[str, Stored] = {}
    for file in files:
        _join(found, header(file), file)
    return found


def read_weights(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of some files, floats of every kind as float32. Raises ArtifactError where one is missing or damaged,
    and where two hold one tensor."""
    found: dict[str, Tensor] = {}
    for file in files:
        _join(found, read_tensors(file), file)
    return {name: as_float32(tensor) for name, tensor in found.items()}


def _join(found: dict[str, T], more: Mapping[str, T], file: Path) -> None:
    if both := sorted(found.keys() & more.keys()):
        raise ArtifactError(
            f"{file}: {both[0][:100]} is in another shard as well ({len(both)} in all). Copy all again."
        )
    found.update(more)


def as_float32(tensor: Tensor) -> Tensor:
    """A tensor of floats as float32, of which halves and float8 are exactly a part; another as it is."""
    return tensor.float() if is_read(tensor.dtype) else tensor
