"""Single files that a command writes again and again into a folder of the user's, such as a report: it overwrites what it
wrote itself, and nothing else.

`.written.json` in that folder holds the SHA-256 of what was written under each name. A name is noted before its file is
written, so that a kill between the two leaves nothing unknown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optimize.errors import ArtifactError
from optimize.storage.commit import write_bytes_atomically, write_json_atomically
from optimize.storage.disk import writing
from optimize.storage.locks import held
from optimize.storage.ours import MOVE
from optimize.storage.weights import file_sha256, read_json

LEDGER, HELD = ".written.json", ".written"
KEPT = 4  # contents of a name that are remembered: what is there, what is being written, and those of a kill before
Known = dict[str, list[str]]
Put = Callable[[str, bytes], None]
Earlier = Callable[[Path], bool]  # whether a folder without a ledger is one that an earlier version wrote


@contextmanager
def opened(folder: Path, names: Sequence[str], earlier: Earlier = lambda folder: False) -> Iterator[Put]:
    """Hold the folder's files against other commands; yields `put(name, data)`, which writes one of `names` whole.

    Raises ArtifactError before anything is written where one of them is there and is not what was written last."""
    with held(folder / HELD):
        known = refuse_edited(folder, names, earlier)

        def put(name: str, data: bytes) -> None:
            new, before = hashlib.sha256(data).hexdigest(), known.get(name, [])
            if before[-1:] == [new] and _is(folder / name, new) and (folder / LEDGER).is_file():
                return
            known[name] = [*(h for h in before if h != new), new][-KEPT:]
            write_json_atomically(folder / LEDGER, {"schema": 1, "files": known})
            write_bytes_atomically(folder / name, data)

        yield put


def refuse_edited(folder: Path, names: Sequence[str], earlier: Earlier = lambda folder: False) -> Known:
    """What the ledger knows; ArtifactError naming the first of `names` that is there and that no command wrote."""
    with writing(folder):
        ledger = folder / LEDGER
        known = _parsed(ledger) if ledger.exists() else _adopted(folder, names) if earlier(folder) else {}
        for path in (folder / name for name in names):
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise ArtifactError(f"{path}: no ordinary file; it is left alone. {MOVE}")
            if path.exists() and file_sha256(path) not in known.get(path.relative_to(folder).as_posix(), ()):
                raise ArtifactError(
                    f"{path}: optimize did not write it, or it was changed since; it is left alone. {MOVE}"
                )
    return known


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and file_sha256(path) == sha256


def _adopted(folder: Path, names: Sequence[str]) -> Known:
    return {name: [file_sha256(folder / name)] for name in names if (folder / name).is_file()}


def _parsed(path: Path) -> Known:
    found = read_json(path)
    files = found.get("files") if isinstance(found, dict) else None
    texts = isinstance(files, dict) and all(
        isinstance(v, list) and all(isinstance(x, str) for x in v) for v in files.values()
    )
    if not isinstance(files, dict) or not texts:
        raise ArtifactError(
            f"{path}: expected {json.dumps({'schema': 1, 'files': {'NAME': ['SHA-256']}})}. Delete it, and move away the files beside it that you want to keep."
        )
    return files
