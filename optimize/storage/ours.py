"""Whose a folder is: one is replaced only where every file in it is what was committed there, and nothing else is.

A file that was added or changed since is somebody's work, whoever made the folder. What is missing is no loss.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from optimize.errors import ArtifactError, EnvironmentLacks, OptimizeError
from optimize.storage.disk import writing
from optimize.storage.locks import held
from optimize.storage.trust import MANIFEST, differences, read_manifest

T = TypeVar("T")
KINDS = {
    "artifact": "an artifact",
    "pipeline": "an exported pipeline",
    "kit": "a build kit",
    "triton": "a model repository",
}
MOVE = "Move it away or delete it, or give another folder."


def refuse_foreign(folder: Path, advice: str = MOVE, kind: str = "") -> None:
    """Raise ArtifactError, naming what stands in the way, unless `folder` may be written: nothing is there, an empty
    folder, or what was committed there, of this `kind` where one is named. EnvironmentLacks where the folder it stands
    in takes no files."""
    with writing(folder):
        _refuse_unwritable(folder)
        reason = why_foreign(folder) or (_of_another_kind(folder, kind) if kind else None)
    if reason:
        raise ArtifactError(f"{folder}: {reason}; it is left alone. {advice}")


def settled(look: Callable[[Path], T], place: Path) -> T:
    """`look(place)` by one who does not hold the name: what is being replaced this very moment is looked at again."""
    try:
        return look(place)
    except ArtifactError:
        with held(place):
            return look(place)


def why_foreign(folder: Path) -> str | None:
    """What in `folder` is not what was committed there, in words; None where nothing is."""
    if not os.path.lexists(folder):
        return None
    if folder.is_symlink():
        return "it is a symbolic link, which is not followed"
    if not folder.is_dir():
        return "it is no folder"
    if os.path.ismount(folder):
        return "a file system is mounted there, which cannot be replaced, though a folder in it can"
    held = sorted(os.listdir(folder))
    if held and MANIFEST not in held:
        return f"it holds {_listed(held)}, and no {MANIFEST}, so optimize did not write it"
    return _changed(folder) if held else None


def _of_another_kind(folder: Path, kind: str) -> str | None:
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    found = kind if manifest is None else kind_of(manifest)
    return None if found == kind else f"it is another thing that optimize wrote: {KINDS[found]}, not {KINDS[kind]}"


def kind_of(manifest: dict[str, Any]) -> str:
    """What a folder with this manifest is: one of KINDS."""
    if manifest.get("kind") == "pipeline":
        return "pipeline"
    return next((kind for kind in ("kit", "triton") if kind in manifest), "artifact")


def _changed(folder: Path) -> str | None:
    try:
        found = [d for d in differences(folder, read_manifest(folder)) if d.problem != "missing"]
    except OptimizeError as error:
        return f"its {MANIFEST} is none that optimize wrote ({error!s:.300})"
    if not found:
        return None
    first = found[0]
    return f"{_listed([d.file for d in found])}: {first.problem} since optimize wrote the folder ({first.found})"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"{name:.100}" for name in names[:3]) + more


def _refuse_unwritable(folder: Path) -> None:
    above = next(p for p in folder.absolute().parents if os.path.lexists(p))
    if not above.is_dir():
        raise ArtifactError(f"{folder}: {above} is no folder, so nothing can be written there. Give another place.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise EnvironmentLacks(f"{folder}: {above} may not be written to. Choose a folder you may write to.")
