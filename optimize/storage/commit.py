"""Whole-or-nothing folders and files: written under a temporary name, synced, and renamed when whole.

`commit` is the only way a folder lands on disk; a killed process leaves nothing but temporary names, which `sweep` removes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimize.errors import EnvironmentLacks
from optimize.storage.trust import MANIFEST, SCHEMA
from optimize.storage.weights import file_sha256


def commit(folder: Path, write: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Create `folder` whole or not at all. `write(temporary)` makes the files and returns the manifest's fields, to
    which `schema` and `files` {path: {sha256, bytes}} are added. Returns the manifest. A full disk is one clear error
    and leaves nothing behind; whatever was at `folder` is replaced only at the end."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.parent / f".tmp-{folder.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        manifest = {"schema": SCHEMA, **write(temporary), "files": hash_files(temporary)}
        write_json(temporary / MANIFEST, manifest)
        _sync(temporary)
        _replace(temporary, folder)
    except OSError as error:
        raise _explained(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return manifest


def _explained(error: OSError, folder: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentLacks(
            f"{folder}: the disk is full; nothing was half-written and earlier results are intact. Free space, then run the same command again."
        )
    return EnvironmentLacks(f"{folder}: cannot be written ({error.strerror or error}). Nothing was half-written.")


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
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _replace(temporary: Path, folder: Path) -> None:
    """Put `temporary` in the place of `folder`, moving an older one aside first so that neither is ever partial."""
    if folder.exists():
        old = folder.parent / f".tmp-old-{folder.name}-{os.getpid()}"
        folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old)
    else:
        temporary.rename(folder)


def sweep(folder: Path) -> None:
    """Remove what killed processes left under temporary names directly in `folder`; those of living ones stay."""
    for path in folder.glob(".tmp-*") if folder.is_dir() else ():
        if not _alive(path.name.rpartition("-")[2]):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _alive(pid: str) -> bool:
    return pid.isdigit() and int(pid) != os.getpid() and Path(f"/proc/{pid}").exists()
