"""What may stand at a file's path instead of the file: a folder, a picture, a pickle, a part of it, links to nowhere."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

from support.summaries import PIXEL

Spoil = Callable[[Path], object]


def put(content: bytes) -> Spoil:
    """The file holds these bytes instead."""

    def spoil(path: Path) -> None:
        _remove(path)
        path.write_bytes(content)

    return spoil


def part(share: float) -> Spoil:
    """Only the first bytes of the file are there."""

    def spoil(path: Path) -> None:
        content = path.read_bytes()
        put(content[: int(share * len(content))])(path)

    return spoil


def followed_by(more: bytes) -> Spoil:
    """The file goes on behind its end."""

    def spoil(path: Path) -> None:
        put(path.read_bytes() + more)(path)

    return spoil


def flipped(step: int) -> Spoil:
    """Every so many bytes one is another."""

    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[::step] = bytes(255 - value for value in content[::step])
        put(bytes(content))(path)

    return spoil


def folder(path: Path) -> None:
    """A folder with a file in it."""
    _remove(path)
    path.mkdir()
    (path / "readme.txt").write_text("nothing of interest\n")


def link(to: str) -> Spoil:
    """A symbolic link."""

    def spoil(path: Path) -> None:
        _remove(path)
        path.symlink_to(to if to else path.name)

    return spoil


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


INSTEAD: dict[str, Spoil] = {
    "a folder": folder,
    "missing": _remove,
    "empty": put(b""),
    "a picture": put(PIXEL),
    "a pickle": put(pickle.dumps({"a": 1})),
    "a zip": put(b"PK\x03\x04" + bytes(60)),
    "zeros": put(bytes(4096)),
    "ones": put(b"\xff" * 4096),
    "not UTF-8": put(b'{"name": "\xff\xfe\x80"}'),
    "UTF-16": put('{"name": "x"}'.encode("utf-16")),
    "a page": put(b"<!DOCTYPE html><html><body>404</body></html>"),
    "a pointer of Git LFS": put(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"),
    "null": put(b"null"),
    "a number": put(b"12"),
    "an empty list": put(b"[]"),
    "a list of lists": put(b"[[1, [2]], 3]"),
    "a text": put(b'"text"'),
    "half of it": part(0.5),
    "all but its end": part(0.97),
    "other bytes": flipped(7),
    "a link to itself": link(""),
    "a link to nowhere": link("/nowhere/at/all"),
    "a link to a device": link("/dev/zero"),
}
