"""The store: stages kept by content. A stage's id is the digest of all it depends on, so a hit is always the answer.

`Store.stage(...)` loads a whole stage or computes and commits it; a killed computation leaves only its resumable
checkpoints under `.work/<id>`, which the next attempt picks up. One process computes a stage at a time, and another that
wants it waits and then finds it. What a living process uses stands in its `.run-…`, so that `garbage.py` leaves it.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import os
import re
import secrets
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from optimize.configs import digest
from optimize.errors import ArtifactError
from optimize.storage.commit import fill, write_json
from optimize.storage.disk import writing
from optimize.storage.locks import held
from optimize.storage.ours import MOVE
from optimize.storage.swap import discard, sweep
from optimize.storage.trust import MANIFEST, added, read_manifest, verify

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]  # of this package
NAME = re.compile(r"[0-9a-f]{32}")  # of a stage's folder: how its id begins
CACHE = ".cache"  # the store of a folder of results
WORK, WORK_MARK, RUN = ".work", ".stage.json", ".run-"
NOTE = re.compile(re.escape(RUN) + r"[0-9a-f]{16}")

# Modules that move values about without changing any number; editing them does not invalidate earlier results.
PLUMBING = {
    "optimize.errors",
    "optimize.configs",
    "optimize.registry",
    "optimize.progress",
    "optimize.storage.weights",
    "optimize.plain.text",
    "optimize.plain.shapes",
    "optimize.storage.variants",
    "optimize.storage.accounting",
    "optimize.storage.trust",
    "optimize.storage.commit",
    "optimize.storage.cache",
    "optimize.storage.disk",
    "optimize.storage.garbage",
    "optimize.storage.ledger",
    "optimize.storage.locks",
    "optimize.storage.ours",
    "optimize.storage.swap",
    "optimize.hardware.environment",
    "optimize.diffusion.context",
    "optimize.architectures.artifact",
    "optimize.architectures.recognized",
    "optimize.onnx.check",
    "optimize.onnx.rules",
    "optimize.onnx.vetted",
    "optimize.recipes.paths",
}


@dataclass(frozen=True)
class Stage:
    """A finished stage on disk."""

    name: str
    id: str
    folder: Path
    manifest: dict[str, Any]
    seconds: float
    cached: bool


class Store:
    """Stages below one folder, for the length of a `with` block or of this object's life. `done` lists what this process
    used, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[Stage] = []
        self._used: Path | None = None
        self._open = ExitStack()
        self._close = weakref.finalize(self, self._open.close)
        with writing(folder):
            for place in (folder, folder / WORK):
                sweep(place, is_of_a_store)
            used_now(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def stage(self, name: str, depends: dict[str, Any], compute: Callable[[Path, Path], dict[str, Any]]) -> Stage:
        """The stage with this content. `compute(folder, work)` fills `folder` and returns manifest fields; `work` is a
        scratch folder that outlives a kill and is removed after the commit. Another process that computes the same is
        waited for."""
        identity = digest({"stage": name, **depends})
        folder = self.folder / identity[:32]
        start = time.perf_counter()
        with held(folder, what=f"{name} ({folder})"):
            self._use(folder)
            cached = self._intact(folder)
            if not cached:
                self._make(folder, {"id": identity, "stage": name}, compute)
        stage = Stage(name, identity, folder, verify(folder), time.perf_counter() - start, cached)
        log.info(
            "%s %s %s %.2f s %d bytes",
            name,
            identity[:12],
            "found" if cached else "made",
            stage.seconds,
            size_bytes(stage),
        )
        self.done.append(stage)
        return stage

    def _make(self, folder: Path, fields: dict[str, Any], compute: Callable[[Path, Path], dict[str, Any]]) -> None:
        work = self.folder / WORK / folder.name
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            write_json(work / WORK_MARK, fields)
            fill(folder, lambda temporary: _timed(fields, lambda: compute(temporary, work)), ours=True)
            discard(work)

    def _intact(self, folder: Path) -> bool:
        """Whether a whole stage is there; a damaged one is reported and made again. ArtifactError where it holds what no
        stage put there."""
        if not (folder / MANIFEST).is_file():
            return False
        try:
            verify(folder)
        except ArtifactError as error:
            _refuse_added(folder)
            log.warning("%s; it is made again", error)
            return False
        return True

    def _use(self, folder: Path) -> None:
        """Note that this process uses a stage, whose name is held, until it ends."""
        with writing(self.folder):
            if self._used is None:
                self._used = self.folder / f"{RUN}{secrets.token_hex(8)}"
                self._open.enter_context(_noted(self._used))
            with self._used.open("a") as file:
                file.write(f"{folder.name}\n")


def is_of_a_store(name: str) -> bool:
    """Whether a name beside the stages is one that a store gives: of a stage, or of a process's note."""
    return NAME.fullmatch(name) is not None or NOTE.fullmatch(name) is not None


def used_now(folder: Path) -> set[str]:
    """Names of the stages of the store in `folder` that living processes use; what dead ones noted is removed."""
    found: set[str] = set()
    inside = folder.iterdir() if folder.is_dir() else ()
    for note in sorted(p for p in inside if NOTE.fullmatch(p.name) and p.is_file() and not p.is_symlink()):
        with held(note, wait=False) as free, suppress(FileNotFoundError):  # its process may end just now
            if free:
                note.unlink()
            else:
                found.update(note.read_text().split())
    return found


@contextmanager
def _noted(note: Path) -> Iterator[None]:
    """A living process's note, gone at its end; a forked child leaves it alone."""
    process = os.getpid()
    with held(note):
        try:
            yield
        finally:
            if os.getpid() == process:
                note.unlink(missing_ok=True)


def _refuse_added(folder: Path) -> None:
    """Raise ArtifactError where a damaged stage holds files that it never had."""
    try:
        foreign = added(folder, read_manifest(folder))
    except ArtifactError:  # of no manifest nothing can be told, and the folder's name is a digest
        return
    if foreign:
        raise ArtifactError(f"{folder}: {foreign[0]} was added to a stage of the store; it is left alone. {MOVE}")


def size_bytes(stage: Stage) -> int:
    """Bytes of a stage's files."""
    return sum(f["bytes"] for f in stage.manifest["files"].values())


@lru_cache
def code_hash(module: str) -> str:
    """Digest of the source of a module and of every module of this package it imports, at any depth."""
    sources = {name: hashlib.sha256(_source(name)).hexdigest() for name in sorted(_closure(module))}
    return digest(sources)


def _closure(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += [m for m in _imports(name) if m not in PLUMBING]
    return seen


def _source(module: str) -> bytes:
    file = _file(module)
    return file.read_bytes() if file else b""


@lru_cache
def _file(module: str) -> Path | None:
    """Source file of a module of this package, found without importing anything, or of one that is imported already."""
    base = ROOT.joinpath(*module.split(".")[1:])
    if module.split(".")[0] == ROOT.name:
        return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.is_file()), None)
    return Path(sys.modules[module].__file__ or "") if module in sys.modules else None


def _imports(module: str) -> set[str]:
    """Modules of this package named by import statements anywhere in `module`."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.ImportFrom):
            base = _from(module, node)
            if base.split(".")[0] == "optimize":
                found |= {n if _file(n) else base for n in (f"{base}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "optimize"}
    return found


def _from(module: str, node: ast.ImportFrom) -> str:
    """The dotted name that `from … import` names, relative ones as seen from `module`."""
    if not node.level:
        return node.module or ""
    file = _file(module)
    above = module.split(".") + ([""] if file is not None and file.name == "__init__.py" else [])
    return ".".join([*above[: -node.level], *([node.module] if node.module else [])])


def _timed(fields: dict[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Manifest fields with the `seconds` it took to make them, since the last kill."""
    start = time.perf_counter()
    return {**fields, **compute(), "seconds": round(time.perf_counter() - start, 2)}
