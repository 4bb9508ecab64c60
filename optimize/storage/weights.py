"""Reading and hashing weights: safetensors only; anything pickled, truncated or missing is one clear error.

Which files of a folder hold a network's weights is decided in `variants.py`, whether they fit it in `accounting.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError, cut
from optimize.plain.text import once
from optimize.plain.text import read_json as read_json

if TYPE_CHECKING:
    from torch import Tensor

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
METADATA = "__metadata__"  # the entry of a header that is no tensor
LONGEST_HEADER = 100 * 2**20  # bytes, the format's own limit
BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16), **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ")  # read, and widened to F32
OTHERS = {  # first bytes of files that go by the name of weights, and what they are
    b"GGUF": "a GGUF file, whose weights are quantized in blocks. They are not read: give the network's own weights, in 16 or 32 bits, as safetensors",
    b"PK\x03\x04": "a pickled checkpoint under another name; it is never loaded. Convert it to safetensors first",
    b"\x80": "a pickled checkpoint under another name; it is never loaded. Convert it to safetensors first",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself. Fetch it: git lfs pull",
}


@dataclass(frozen=True)
class Stored:
    """One tensor of a safetensors file, by its header: dtype in the format's words, shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def floats(self) -> bool:
        """Whether it holds floating-point numbers that are read as float32."""
        return self.dtype in FLOATS


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, read from its header alone; ArtifactError saying what is wrong with the file."""
    return {name: _stored(about) for name, about in _parsed(path).items() if name != METADATA}


def places(path: Path) -> dict[str, int]:
    """Where in a safetensors file the bytes of each tensor begin; those of one that `header` reads."""
    parsed = _parsed(path)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    return {name: start + about["data_offsets"][0] for name, about in parsed.items() if name != METADATA}


def metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself, text by text."""
    found: dict[str, str] = _parsed(path).get(METADATA) or {}
    return found


def _parsed(path: Path) -> dict[str, Any]:
    refuse_pickle(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(LONGEST_HEADER, path.stat().st_size - 8):
                raise ValueError(f"it would have a header of {length} bytes")
            parsed = json.loads(file.read(length), object_pairs_hook=once)
            if not isinstance(parsed, dict):
                raise ValueError("its header is no JSON object")
            _check(parsed, path.stat().st_size - 8 - length)
    except FileNotFoundError:
        raise _missing(path) from None
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    return parsed


def _check(parsed: dict[str, Any], size: int) -> None:
    """Raise ValueError, LookupError or TypeError where a header is not the format's: tensors of known dtypes, one behind the
    other without a gap, in `size` bytes of data; metadata of texts."""
    told = parsed.get(METADATA)
    if told is not None and not (isinstance(told, dict) and all(isinstance(v, str) for v in told.values())):
        raise ValueError("its metadata are no texts")
    spans = sorted(_span(name, about) for name, about in parsed.items() if name != METADATA)
    for (_, end), (start, _) in pairwise([(0, 0), *spans, (size, size)]):
        if end != start:
            raise ValueError("its data are not as long as its header says")


def _span(name: str, about: Any) -> tuple[int, int]:
    """First and last byte of a tensor."""
    (start, end), stored = about["data_offsets"], _stored(about)
    whole = all(type(side) is int and side >= 0 for side in (start, end, *stored.shape))
    if not whole or stored.dtype not in BITS:
        raise ValueError(f"{cut(ascii(name))} is of no dtype, shape or place that the format has")
    if math.prod(stored.shape) * BITS[stored.dtype] != 8 * (end - start):
        raise ValueError(f"{cut(ascii(name))} does not have the bytes that its shape asks for")
    return start, end


def _stored(about: Any) -> Stored:
    return Stored(str(about["dtype"]), tuple(about["shape"]))


def is_read(dtype: Any) -> bool:
    """Whether a dtype of torch is one of FLOATS, which are read as float32."""
    import torch

    wide, narrow = (torch.float64, torch.float32), (torch.float16, torch.bfloat16)
    eight = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
    return dtype in (*wide, *narrow, *eight)


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, read from its header alone."""
    return {name: about.shape for name, about in header(path).items()}


def read_tensors(path: Path, names: Iterable[str] | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or those of these names, on the CPU; raises ArtifactError saying what is wrong
    with the file."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    refuse_pickle(path)
    if not path.is_file():
        raise _missing(path)
    try:
        if names is None:
            return load_file(path)
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _missing(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: no such file. Give a folder that holds the weights as safetensors.")


def _damaged(path: Path, error: Exception) -> ArtifactError:
    """What the file is instead, by its first bytes, else what its reader says."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        start = b""
    for mark, said in OTHERS.items():
        if start.startswith(mark):
            return ArtifactError(f"{path}: {said}.")
    reason = str(error)[:200]
    return ArtifactError(f"{path}: not a whole safetensors file ({reason}). Copy or download it again.")


def refuse_pickle(path: Path) -> None:
    """Raise ArtifactError where `path` is a pickled checkpoint or a GGUF file, or is missing while a pickled one lies
    beside it."""
    if path.suffix.lower() in PICKLED:
        raise ArtifactError(f"{path}: pickled checkpoints are never loaded. Convert it to safetensors first.")
    if path.suffix.lower() == ".gguf":
        raise ArtifactError(f"{path}: {OTHERS[b'GGUF']}.")
    if not path.exists() and path.parent.is_dir():
        pickled = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in PICKLED)
        if pickled:
            raise ArtifactError(
                f"{path.parent}: only a pickled checkpoint ({pickled[0]}) is there; it is never loaded. Convert it to safetensors ({path.name})."
            )
