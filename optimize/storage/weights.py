"""Reading and hashing weights: safetensors only; anything pickled, truncated or missing is one clear error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError
from optimize.storage.plain import read_json as read_json

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "model", "model.fp16")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, read from its header alone."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return {name: tuple(about["shape"]) for name, about in header.items() if name != "__metadata__"}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; raises ArtifactError saying what is wrong with the file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    refuse_pickle(path)
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file. Give a folder that holds the weights as safetensors.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not a whole safetensors file ({error}). Copy or download it again.") from error


def weights_files(folder: Path) -> list[Path]:
    """The safetensors files of a part: one, in full precision where there are several, or all shards of an index."""
    for name in NAMES:
        if (file := folder / f"{name}.safetensors").is_file():
            return [file]
        if (index := folder / f"{name}.safetensors.index.json").is_file():
            return [folder / shard for shard in sorted(set(_weight_map(index).values()))]
    return []


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor name -> file of an index of shards; a name that leaves the folder is refused."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ArtifactError(f"{index}: it has no weight_map. Copy or download it again.")
    for shard in found.values():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ArtifactError(f"{index}: the shard {shard!r} is no file name of this folder.")
    return found


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a network's folder, from its one file or all its shards, half precision widened to float32.

    Raises ArtifactError where there are none, a shard is missing or damaged, or only a pickled file is there.
    """
    import torch

    files = weights_files(folder)
    if not files:
        return read_tensors(folder / f"{NAMES[0]}.safetensors")  # says what is missing
    found = {name: tensor for file in files for name, tensor in read_tensors(file).items()}
    halves = (torch.float16, torch.bfloat16)
    return {name: t.float() if t.dtype in halves else t for name, t in found.items()}


def refuse_pickle(path: Path) -> None:
    """Raise ArtifactError where `path` is a pickled checkpoint, or is missing while a pickled one lies beside it."""
    if path.suffix in PICKLED:
        raise ArtifactError(f"{path}: pickled checkpoints are never loaded. Convert it to safetensors first.")
    if not path.exists() and path.parent.is_dir():
        pickled = sorted(p.name for p in path.parent.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise ArtifactError(
                f"{path.parent}: only a pickled checkpoint ({pickled[0]}) is there; it is never loaded. Convert it to safetensors ({path.name})."
            )


def load_state(module: Any, tensors: dict[str, Tensor], path: Path) -> None:
    """Load tensors into a module strictly, replacing meta tensors; mismatches are one ArtifactError."""
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ArtifactError(
            f"{path}: the weights do not fit the network: {' '.join(x.strip() for x in lines[1:3])}"
        ) from error
