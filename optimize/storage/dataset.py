"""Real images or latents in a safetensors file, with labels: checked whole, in slices, before anything is computed.

`images` are (N,C,H,W) floating-point in [-1, 1], `latents` of any finite size; `labels` (N,) whole numbers. What is
stored in another way is refused with the conversion, never guessed: pictures in 0 to 255 make every distance wrong.
Files are looked at through numpy, so that a run that finds everything done imports no torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimize.errors import ArtifactError, UserError, cut, some
from optimize.storage.weights import Stored, header, places

if TYPE_CHECKING:
    from torch import Tensor

SLICE = 2**22  # numbers that are looked at at once
TOLERANCE = 1.001  # what rounding to 16 bits does to 1
LARGEST_LABEL = 2**31 - 1
NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "U16": "<u2", "U32": "<u4", "U64": "<u8"}  # fmt: skip
FLOATING = ("F64", "F32", "F16", "BF16")
WHOLE = tuple(name for name in NUMPY if name not in FLOATING)
OTHERS = {  # first bytes of files that pictures come in
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a RIFF file, such as a WebP picture",
    b"PK\x03\x04": "a zip archive, such as numpy's .npz or a pickled checkpoint",
    b"\x93NUMPY": "an array of numpy's (.npy)",
    b"\x89HDF": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "a gzip archive",
    b"\x80": "a pickle, which is never loaded",
    b"{": "a JSON file",
}
SAVE = "Save it as safetensors: images (N,C,H,W) floating-point in [-1, 1], and labels (N,) where there are classes"


@dataclass(frozen=True)
class Samples:
    """What a file, or tensors in memory, hold after they were found right: the kind, their shape (N, ...), the range of
    their values, and labels (N,)."""

    where: str
    kind: str
    shape: tuple[int, ...]
    low: float
    high: float
    labels: np.ndarray | None = None
    further: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """How many samples there are."""
        return self.shape[0]


@dataclass(frozen=True)
class Held:
    """Tensors by name, in memory or in a file, that can be looked at in slices of rows."""

    where: str
    stored: Mapping[str, Stored]
    rows: Callable[[str, int, int], np.ndarray] = field(repr=False)  # (name, start, stop) -> values

    def slices(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows) of a tensor."""
        shape = self.stored[name].shape
        step = max(1, SLICE // max(math.prod(shape[1:]), 1))
        for start in range(0, shape[0], step):
            yield start, self.rows(name, start, min(start + step, shape[0]))


def samples_in(path: Path, where: str) -> Samples:
    """What the samples' file at `path` holds; `where` names the field. ArtifactError where it is no
    safetensors file, UserError for what is not as said above."""
    stored, begins = check_file(path, where), places(path)

    def rows(name: str, start: int, stop: int) -> np.ndarray:
        dtype, shape = np.dtype(NUMPY[stored[name].dtype]), stored[name].shape
        each = math.prod(shape[1:])
        at = begins[name] + start * each * dtype.itemsize
        values = np.fromfile(path, dtype, (stop - start) * each, offset=at).reshape(stop - start, *shape[1:])
        return (values.astype("<u4") << 16).view("<f4") if stored[name].dtype == "BF16" else values

    return looked_at(Held(f"{where}: {cut(str(path))}", stored, rows))


def images_in(path: Path, where: str) -> tuple[Samples, Tensor]:
    """What a file of images holds, and the images themselves (N,C,H,W) float32."""
    from safetensors import safe_open

    found = samples_in(path, where)
    if found.kind != "images":
        raise UserError(f"{found.where} holds latents, and images are judged. Give images (N,C,H,W) in [-1, 1].")
    with safe_open(path, framework="pt") as file:
        return found, file.get_tensor(found.kind).float()


def in_memory(images: Tensor, labels: Tensor | None, where: str, kind: str = "images") -> Samples:
    """The same of tensors in memory."""
    given = {kind: images} | ({} if labels is None else {"labels": labels})
    wrong = [name for name, value in given.items() if not hasattr(value, "dtype") or not hasattr(value, "isfinite")]
    if wrong:
        raise UserError(f"{where}: {wrong[0]} is no tensor. Give one of torch's.")

    def rows(name: str, start: int, stop: int) -> np.ndarray:
        values = given[name][start:stop].detach().cpu()
        return (values.float() if values.is_floating_point() else values).numpy()

    return looked_at(Held(where, {n: Stored(_word(v), tuple(v.shape)) for n, v in given.items()}, rows))


def looked_at(held: Held) -> Samples:
    """Samples found right, or a UserError."""
    kind = _kind(held)
    dtype, shape = held.stored[kind].dtype, held.stored[kind].shape
    _check_form(held, kind, dtype, shape)
    low, high = _range(held, kind)
    _check_range(held.where, kind, low, high)
    further = tuple(name for name in held.stored if name not in (kind, "labels"))
    return Samples(held.where, kind, shape, low, high, _labels(held, shape[0]), further)


def check_shape(found: Samples, shape: tuple[int, ...], latents: bool) -> None:
    """Raise UserError where samples are not of a network's shape, without batch; `latents` says what it works on."""
    own = found.shape[1:]
    if own == shape:
        return
    wanted = f"this network works on {'latents' if latents else 'images'} of shape ({_sides(shape)})"
    said = f"{found.where}: {found.kind} of shape ({_sides(own)}) are given, and {wanted}."
    if len(own) == 3 and (own[2], own[0], own[1]) == shape:
        raise UserError(f"{said} Their channels are last: give {found.kind}.permute(0, 3, 1, 2).")
    if latents and found.kind == "images":
        raise UserError(
            f"{said} Encode them with the model's VAE, scaled as it was trained, and save those as `latents`."
        )
    raise UserError(f"{said} Give {found.kind} of that shape.")


def check_file(path: Path, where: str, save: str = SAVE) -> dict[str, Stored]:
    """Dtype and shape of the tensors of a safetensors file by name; ArtifactError saying what lies there where it is none."""
    said = f"{where}: {cut(str(path))}"
    if os.path.isdir(path):
        raise ArtifactError(f"{said} is a folder; one file is needed. {save}.")
    if not os.path.exists(path):
        raise ArtifactError(f"{said}: no such file.")
    if not os.path.isfile(path):
        raise ArtifactError(f"{said}: not an ordinary file; it is not read.")
    try:
        with path.open("rb") as file:
            start = file.read(16)
        return header(path)
    except OSError as error:
        raise ArtifactError(f"{said} cannot be read ({error.strerror}).") from None
    except ArtifactError as error:
        for mark, what in OTHERS.items():
            if start.startswith(mark):
                raise ArtifactError(f"{said} is {what}. {save}.") from None
        raise ArtifactError(f"{where}: {error} {save}.") from None


def _kind(held: Held) -> str:
    kinds = [name for name in ("images", "latents") if name in held.stored]
    if len(kinds) == 2:
        raise UserError(
            f"{held.where} holds both images and latents. Give a file with those that the network works on."
        )
    if not kinds:
        names = some(sorted(held.stored)) or "nothing"
        raise UserError(f"{held.where} has no tensor `images` of shape (N,C,H,W), and no `latents`; it holds {names}.")
    return kinds[0]


def _check_form(held: Held, kind: str, dtype: str, shape: tuple[int, ...]) -> None:
    where = held.where
    if dtype == "U8":
        raise UserError(
            f"{where}: {kind} are whole numbers in 0 to 255 (uint8). Convert them: {kind}.float() / 127.5 - 1."
        )
    if dtype not in FLOATING:
        raise UserError(f"{where}: {kind} are stored as {dtype}. Allowed: {', '.join(FLOATING)}, scaled to [-1, 1].")
    if len(shape) != 4 and (kind == "images" or len(shape) != 3):
        more = "" if kind == "images" else ", (N,C,L) or (N,L,C)"
        raise UserError(f"{where}: {kind} have shape ({_sides(shape)}); (N,C,H,W){more} is needed.")
    if not all(shape):
        raise UserError(f"{where}: {kind} have shape ({_sides(shape)}): there is nothing in them.")


def _range(held: Held, kind: str) -> tuple[float, float]:
    """The least and the largest value; UserError naming the first row with one that is not finite."""
    lows, highs = [], []
    for start, part in held.slices(kind):
        low, high = float(part.min()), float(part.max())
        if not (math.isfinite(low) and math.isfinite(high)):  # NaN is the least and the largest of what holds it
            row = start + int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(axis=1))[0])
            raise UserError(f"{held.where}: {kind} hold NaN or infinities, first in row {row}. Leave such samples out.")
        lows.append(low)
        highs.append(high)
    return min(lows), max(highs)


def _check_range(where: str, kind: str, low: float, high: float) -> None:
    said = f"{where}: {kind} lie in [{low:.4g}, {high:.4g}]"
    if low == high:
        raise UserError(f"{where}: every value of {kind} is {low:.4g}; these are no samples.")
    if kind == "latents":
        return
    if low >= 0 and TOLERANCE < high <= 256:
        raise UserError(f"{said}, as 8-bit pictures do; [-1, 1] is needed. Convert them: images / 127.5 - 1.")
    if max(-low, high) > TOLERANCE:
        raise UserError(f"{said}; scale them to [-1, 1].")
    if low >= 0:
        raise UserError(f"{said}, so black would be grey; images lie in [-1, 1]. Convert them: images * 2 - 1.")
    if high <= 0:
        raise UserError(f"{said}, so white would be grey; images lie in [-1, 1]. Convert them: images * 2 + 1.")


def _labels(held: Held, count: int) -> np.ndarray | None:
    """Labels as int64; UserError for those that are none."""
    if "labels" not in held.stored:
        return None
    about = held.stored["labels"]
    if about.dtype not in WHOLE:
        raise UserError(
            f"{held.where}: labels are stored as {about.dtype}; whole numbers are needed. Convert them: labels.long()."
        )
    if about.shape != (count,):
        raise UserError(
            f"{held.where}: labels have shape ({_sides(about.shape)}) for {count} samples; ({count},) is needed."
        )
    labels = held.rows("labels", 0, count)
    if int(labels.min()) < 0 or int(labels.max()) > LARGEST_LABEL:
        wrong = int(labels.min()) if int(labels.min()) < 0 else int(labels.max())
        raise UserError(f"{held.where}: a label is {wrong}. Labels count from 0, to {LARGEST_LABEL} at most.")
    return labels.astype(np.int64)


def _sides(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")


def _word(value: Tensor) -> str:
    """A tensor's dtype in safetensors' words."""
    name = str(value.dtype).removeprefix("torch.")
    short = {"bfloat16": "BF16", "float": "F", "uint": "U", "int": "I"}
    return next(
        (s if s == "BF16" else s + name[len(long) :] for long, s in short.items() if name.startswith(long)), name
    )
