"""Emptying a store: only what carries a stage's own mark goes, and nothing that a living process uses.

A stage is a folder named as its id begins, with a manifest that says so, and no file that the manifest does not name;
a scratch folder is named likewise and says in its own mark, or in those of its checkpoints, whose it is. Everything
else in the folder is somebody else's. Links are never followed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from optimize.errors import ArtifactError, UserError
from optimize.storage.cache import NAME, WORK, WORK_MARK, is_of_a_store, used_now
from optimize.storage.disk import TEMPORARY, writing
from optimize.storage.locks import LOCK, held
from optimize.storage.swap import discard, sweep
from optimize.storage.trust import added, read_manifest

LISTED = 10  # names of what is left alone


@dataclass
class Collected:
    """What was done: bytes removed, and names of what is in use, and of what is not ours."""

    bytes: int = 0
    in_use: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)

    def told(self) -> list[str]:
        """A line for each thing that stays."""
        lines = []
        if self.in_use:
            lines.append(f"{len(set(self.in_use))} stages stay, since another optimize command is using them")
        if self.foreign:
            more = f" and {len(self.foreign) - LISTED} more" if len(self.foreign) > LISTED else ""
            names = ", ".join(f"{name:.100}" for name in self.foreign[:LISTED])
            lines.append(f"left alone, since it is not what optimize put there, or not only: {names}{more}")
        return lines


def collect(store: Path) -> Collected:
    """Empty the store in the folder `store`, which goes as well where nothing stays in it. UserError where it is a link
    or no folder."""
    found = Collected()
    if not os.path.lexists(store):
        return found
    if store.is_symlink() or not store.is_dir():
        kind = "a symbolic link" if store.is_symlink() else "no folder"
        raise UserError(f"{store}: {kind}; nothing was removed. Give the folder that holds the store with --exported.")
    with writing(store):
        for place in filter(_is_folder, (store, store / WORK)):
            sweep(place, is_of_a_store)
        for place in sorted(store.iterdir()):
            _stage(place, found)
        for place in sorted((store / WORK).iterdir()) if _is_folder(store / WORK) else ():
            _scratch(place, found)
        _leave(store, found)
    return found


def _stage(place: Path, found: Collected) -> None:
    if not _is_name(place.name):
        return
    if not _is_stage(place):
        found.foreign.append(place.name)
        return
    _remove(place, place, found)


def _scratch(place: Path, found: Collected) -> None:
    if not (_is_name(place.name) and _is_scratch(place)):
        found.foreign.append(f"{WORK}/{place.name}")
        return
    _remove(place, place.parents[1] / place.name, found)


def _remove(place: Path, stage: Path, found: Collected) -> None:
    """Remove a folder of a stage unless somebody computes or uses it."""
    with held(stage, wait=False) as free:
        if not free or stage.name in used_now(stage.parent):
            found.in_use.append(stage.name)
            return
        found.bytes += sum(path.lstat().st_size for path in _files(place))
        discard(place)


def _leave(store: Path, found: Collected) -> None:
    """Remove what is left of the store itself, and name what is not ours."""
    if _is_folder(store / WORK) and not any((store / WORK).iterdir()):
        (store / WORK).rmdir()
    used_now(store)
    sweep(store, is_of_a_store)
    kept = {*found.in_use, *found.foreign, WORK}
    found.foreign += sorted(p.name for p in store.iterdir() if p.name not in kept and not _of_a_run(p.name))
    if not any(store.iterdir()):
        store.rmdir()


def _of_a_run(name: str) -> bool:
    """Whether a name is one that a run beside this has taken meanwhile."""
    match = TEMPORARY.fullmatch(name)
    inner = match[1] if match else name.removeprefix(LOCK)
    return is_of_a_store(inner)


def _is_name(name: str) -> bool:
    return NAME.fullmatch(name) is not None


def _is_folder(place: Path) -> bool:
    return place.is_dir() and not place.is_symlink()


def _is_stage(place: Path) -> bool:
    """A whole or damaged stage, and no file that was never in it."""
    try:
        manifest = read_manifest(place) if _is_folder(place) else {}
        own = str(manifest.get("id", "")).startswith(place.name) and "stage" in manifest
        return own and not added(place, manifest)
    except ArtifactError:
        return False


def _is_scratch(place: Path) -> bool:
    """The scratch folder of a stage: by its mark, or, of earlier versions, where all in it are checkpoints."""
    if not _is_folder(place):
        return False
    mark = place / WORK_MARK
    if mark.is_file() and not mark.is_symlink():
        try:
            return str(json.loads(mark.read_text())["id"]).startswith(place.name)
        except (OSError, ValueError, TypeError, KeyError):
            return False
    return all(_is_checkpoint(part) for part in place.iterdir())


def _is_checkpoint(part: Path) -> bool:
    if not _is_folder(part):
        return False
    if part.name.startswith(".tmp-"):
        return True
    try:
        return "id" in read_manifest(part)
    except ArtifactError:
        return False


def _files(place: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(place, followlinks=False):
        yield from (Path(folder, name) for name in names)
