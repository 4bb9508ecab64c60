"""Reading and hashing weights: safetensors only; anything pickled, truncated or missing is one clear error."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


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


def read_json(path: Path) -> Any:
    """Parsed JSON of a file; raises ArtifactError where it is missing or malformed."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not readable JSON ({error}).") from error


def load_state(module: Any, tensors: dict[str, Tensor], path: Path) -> None:
    """Load tensors into a module strictly, replacing meta tensors; mismatches are one ArtifactError."""
    try:
        module.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ArtifactError(
            f"{path}: the weights do not fit the network: {' '.join(x.strip() for x in lines[1:3])}"
        ) from error
