"""The store: stages kept by content. A stage's id is the digest of all it depends on, so a hit is always the answer.

`Store.stage(...)` loads a whole stage or computes and commits it; a killed computation leaves only its resumable
checkpoints under `.work/<id>`, which the next attempt picks up.
"""

from __future__ import annotations

import ast
import hashlib
import logging
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from optimize.configs import digest
from optimize.errors import ArtifactError
from optimize.storage.commit import commit, sweep
from optimize.storage.trust import MANIFEST, verify

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[1]  # of this package

# Modules that move values about without changing any number; editing them does not invalidate earlier results.
PLUMBING = {
    "optimize.errors",
    "optimize.configs",
    "optimize.registry",
    "optimize.progress",
    "optimize.storage.weights",
    "optimize.storage.plain",
    "optimize.storage.shapes",
    "optimize.storage.variants",
    "optimize.storage.accounting",
    "optimize.storage.trust",
    "optimize.storage.commit",
    "optimize.storage.cache",
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
    """Stages below one folder. `done` lists what this process used, in order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: list[Stage] = []
        sweep(folder)

    def stage(self, name: str, depends: dict[str, Any], compute: Callable[[Path, Path], dict[str, Any]]) -> Stage:
        """The stage with this content. `compute(folder, work)` fills `folder` and returns manifest fields; `work` is a
        scratch folder that outlives a kill and is removed after the commit."""
        identity = digest({"stage": name, **depends})
        folder = self.folder / identity[:32]
        start = time.perf_counter()
        cached = self._intact(folder)
        if not cached:
            work = self.folder / ".work" / identity[:32]
            work.mkdir(parents=True, exist_ok=True)
            commit(folder, lambda temporary: _timed({"id": identity, "stage": name}, lambda: compute(temporary, work)))
            shutil.rmtree(work)
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

    def _intact(self, folder: Path) -> bool:
        """Whether a whole stage is there; a damaged one is reported, removed and made again."""
        if not (folder / MANIFEST).is_file():
            return False
        try:
            verify(folder)
        except ArtifactError as error:
            log.warning("%s; it is made again", error)
            shutil.rmtree(folder)
            return False
        return True


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
