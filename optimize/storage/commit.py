"""Whole-or-nothing folders and files: written under a temporary name, synced, and exchanged when whole.

`commit` is the only way a folder lands on disk. One process at a time writes a name (`locks.py`); a killed one leaves
nothing but temporary names, which the next one, or `sweep`, puts right (`swap.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimize.storage.disk import writing
from optimize.storage.locks import held
from optimize.storage.ours import refuse_foreign
from optimize.storage.swap import beside, put, remove, sync, tidy
from optimize.storage.trust import MANIFEST, SCHEMA
from optimize.storage.weights import file_sha256

Write = Callable[[Path], dict[str, Any]]


def commit(folder: Path, write: Write, ours: bool = False) -> dict[str, Any]:
    """Create `folder` whole or not at all. `write(temporary)` makes the files and returns the manifest's fields, to
    which `schema` and `files` {path: {sha256, bytes}} are added. Returns the manifest.

    What was at `folder` is replaced only at the end, and only where it is what was committed there: see
    `optimize.storage.ours`; `ours` says that it may be replaced whatever it is. Another process that writes it is waited
    for. A full disk is one clear error and leaves nothing behind."""
    folder = Path(os.path.abspath(folder))
    with held(folder):
        return fill(folder, write, ours)


def fill(folder: Path, write: Write, ours: bool = False) -> dict[str, Any]:
    """`commit` by whoever holds the folder's name already."""
    temporary = beside(folder, "new")
    with writing(folder):
        tidy(folder)
        if not ours:
            refuse_foreign(folder)
        try:
            temporary.mkdir()
            manifest = {"schema": SCHEMA, **write(temporary), "files": hash_files(temporary)}
            write_json(temporary / MANIFEST, manifest)
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
            if not ours:
                refuse_foreign(folder)  # it may have changed meanwhile
            put(temporary, folder)
        finally:
            remove(temporary)
    return manifest


def hash_files(folder: Path) -> dict[str, dict[str, Any]]:
    """{relative path: {sha256, bytes}} of every file below `folder` but its manifest, sorted."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    return {p.relative_to(folder).as_posix(): {"sha256": file_sha256(p), "bytes": p.stat().st_size} for p in files}


def write_json(path: Path, value: Any) -> None:
    """Readable JSON with a final newline; NaN is refused."""
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_json_atomically(path: Path, value: Any) -> None:
    """`write_json` under a temporary name, synced and renamed."""
    write_text_atomically(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a crash, sees the old content or the new, never a part."""
    write_bytes_atomically(path, text.encode())


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    path = Path(os.path.abspath(path))
    temporary = beside(path, "new")
    with held(path), writing(path):
        tidy(path)
        try:
            with temporary.open("wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(path)
            sync(path.parent)
        finally:
            remove(temporary)
