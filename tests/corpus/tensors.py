"""Safetensors files spoiled: the length of the header, what it says of a tensor, the data behind it, the values in them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Header = dict[str, Any]
Change = Callable[[Header, str], object]


def read(path: Path) -> tuple[Header, bytes]:
    """Header and data of a valid file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path: Path, header: Header | bytes, data: bytes, length: int | None = None) -> None:
    """A file of these parts, whatever they say of one another."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def told(change: Change) -> Callable[[Path], None]:
    """What the header says of its largest tensor is changed."""

    def spoil(path: Path) -> None:
        header, data = read(path)
        change(header, largest(header))
        write(path, header, data)

    return spoil


def largest(header: Header) -> str:
    """The tensor of most bytes."""
    sizes = {n: a["data_offsets"][1] - a["data_offsets"][0] for n, a in header.items() if n != "__metadata__"}
    return max(sizes, key=lambda name: (sizes[name], name))


def of(field: str, value: Any) -> Callable[[Path], None]:
    """A field of the largest tensor is this."""
    return told(lambda header, name: header[name].update({field: value}))


def offsets(move: Callable[[int, int], list[Any]]) -> Callable[[Path], None]:
    """The largest tensor's data lie elsewhere."""
    return told(lambda header, name: header[name].update(data_offsets=move(*header[name]["data_offsets"])))


def shaped(change: Callable[[list[int]], list[Any]]) -> Callable[[Path], None]:
    """The largest tensor has another shape."""
    return told(lambda header, name: header[name].update(shape=change(header[name]["shape"])))


def length(value: int) -> Callable[[Path], None]:
    """The file says another length of its header."""

    def spoil(path: Path) -> None:
        header, data = read(path)
        write(path, header, data, value)

    return spoil


def header(text: bytes) -> Callable[[Path], None]:
    """The header is this text."""
    return lambda path: write(path, text, read(path)[1])


def without(path: Path) -> None:
    """The largest tensor is not there, and the file is whole."""
    _rebuilt(path, lambda tensors, name: tensors.pop(name))


def renamed(to: str) -> Callable[[Path], None]:
    """The largest tensor goes by another name."""
    return lambda path: _rebuilt(path, lambda tensors, name: tensors.update({to: tensors.pop(name)}))


def further(path: Path) -> None:
    """A tensor that no network has."""
    _rebuilt(path, lambda tensors, name: tensors.update({"further.weight": tensors[name]}))


def values(value: float) -> Callable[[Path], None]:
    """One value of the largest tensor is this."""

    def spoil(path: Path) -> None:
        found, data = read(path)
        about, changed = found[largest(found)], bytearray(data)
        form = {"F32": "<f", "F64": "<d", "F16": "<e"}.get(about["dtype"], "<f")
        middle = about["data_offsets"][0] + struct.calcsize(form)
        changed[middle : middle + struct.calcsize(form)] = struct.pack(form, value)
        write(path, found, bytes(changed))

    return spoil


def wholes(path: Path) -> None:
    """The largest tensor holds whole numbers."""

    def change(tensors: dict[str, tuple[str, list[int], bytes]], name: str) -> None:
        _, shape, data = tensors[name]
        rounded = np.frombuffer(data, np.float32).astype(np.int32) if len(data) % 4 == 0 else np.zeros(0, np.int32)
        tensors[name] = ("I32", shape, rounded.tobytes())

    _rebuilt(path, change)


def _rebuilt(path: Path, change: Callable[[dict[str, tuple[str, list[int], bytes]], str], object]) -> None:
    """A valid file of changed tensors."""
    found, data = read(path)
    names = [n for n in found if n != "__metadata__"]
    tensors = {n: (found[n]["dtype"], found[n]["shape"], data[slice(*found[n]["data_offsets"])]) for n in names}
    change(tensors, largest(found))
    made, start = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, held) in tensors.items():
        made[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + len(held)]}
        start += len(held)
    write(path, made, b"".join(held for _, _, held in tensors.values()))


def _metadata(value: Any) -> Callable[[Path], None]:
    return told(lambda header, name: header.update(__metadata__=value))


SPOILED: dict[str, Callable[[Path], None]] = {
    "no header": length(0),
    "a header of 2^63 bytes": length(2**63),
    "a header longer than the file": length(10**7),
    "a header shorter than it is": length(40),
    "a header that is no JSON": header(b"{'a': 1}"),
    "a header that is a list": header(b"[1, 2]"),
    "a header that is null": header(b"null"),
    "a header without tensors": header(b"{}"),
    "a header that is not UTF-8": header(b'{"\xff": {}}'),
    "a header nested without end": header(b'{"a":' + b"[" * 100_000),
    "a tensor that is a number": told(lambda h, n: h.update({n: 3})),
    "a tensor that is a list": told(lambda h, n: h.update({n: []})),
    "a tensor without a shape": told(lambda h, n: h[n].pop("shape")),
    "a tensor without a dtype": told(lambda h, n: h[n].pop("dtype")),
    "a tensor without offsets": told(lambda h, n: h[n].pop("data_offsets")),
    "an unknown dtype": of("dtype", "F128"),
    "a dtype that is a number": of("dtype", 32),
    "a dtype that is a list": of("dtype", ["F32"]),
    "a dtype of another size": of("dtype", "F64"),
    "a dtype of the same size": of("dtype", "I32"),
    "a negative side": shaped(lambda shape: [-1, *shape[1:]]),
    "an enormous side": shaped(lambda shape: [2**62, *shape[1:]]),
    "sides whose product overflows": shaped(lambda shape: [2**33, 2**33]),
    "a side of 400 digits": shaped(lambda shape: [10**400, *shape[1:]]),
    "a side that is a text": shaped(lambda shape: ["8", *shape[1:]]),
    "a side that is a fraction": shaped(lambda shape: [0.5, *shape[1:]]),
    "a shape that is a text": of("shape", "8x8"),
    "a shape that is null": of("shape", None),
    "no sides": shaped(lambda shape: []),
    "sides in another order": shaped(lambda shape: [*shape[1:], shape[0]]),
    "one side more": shaped(lambda shape: [1, *shape]),
    "offsets behind the end": offsets(lambda a, b: [a, b + 10**6]),
    "offsets that overlap": offsets(lambda a, b: [max(0, a - 4), b - 4]),
    "offsets the wrong way": offsets(lambda a, b: [b, a]),
    "negative offsets": offsets(lambda a, b: [-8, b]),
    "offsets of 2^63": offsets(lambda a, b: [2**63, 2**63 + 8]),
    "offsets that are texts": offsets(lambda a, b: [str(a), str(b)]),
    "offsets that are null": of("data_offsets", None),
    "one offset": offsets(lambda a, b: [b]),
    "metadata that is a list": _metadata([1]),
    "metadata that is a number": _metadata({"format": 3}),
    "without its largest tensor": without,
    "its largest tensor by another name": renamed("another.weight"),
    "its largest tensor by an empty name": renamed(""),
    "its largest tensor by a name of 100,000 letters": renamed("w" * 100_000),
    "its largest tensor by a name with a NUL": renamed("a\0b"),
    "a tensor too many": further,
    "whole numbers": wholes,
    "a value that is no number": values(float("nan")),
    "a value that is infinite": values(float("inf")),
}
