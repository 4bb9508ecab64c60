"""A build kit that was carried away, built and brought back holds an engine: no new kit takes its place."""

from __future__ import annotations

import json
import os
from pathlib import Path

from optimize.engines.kits.read import KitFiles
from optimize.errors import ArtifactError, OptimizeError
from optimize.storage.ours import refuse_foreign, settled
from optimize.storage.trust import MANIFEST

ADVICE = (
    "A kit that was built holds an engine: take it in with --adopt. Then delete it, or give another folder with --kits."
)


def zip_of(place: Path) -> Path:
    """The zip of a kit's folder, beside it."""
    return place.with_name(f"{place.name}.zip")


def refuse_brought_back(place: Path, zipped: bool) -> None:
    """Raise ArtifactError where a kit in the folder `place`, or its zip where one is to be written, is not as it was
    made: it was built, or is something else."""
    settled(lambda folder: refuse_foreign(folder, ADVICE, "kit"), place)
    if zipped:
        settled(refuse_changed_zip, zip_of(place))


def refuse_changed_zip(path: Path) -> None:
    """Raise ArtifactError where there is a zip that is not a kit's as it was made."""
    reason = _why_changed(path) if os.path.lexists(path) else None
    if reason:
        raise ArtifactError(f"{path}: {reason}; it is left alone. {ADVICE}")


def _why_changed(path: Path) -> str | None:
    if path.is_symlink() or not path.is_file():
        return "it is no ordinary file"
    try:
        files = KitFiles(path)
        if files.size(MANIFEST) is None:
            return f"it holds no {MANIFEST}, so optimize did not write it"
        told = json.loads(b"".join(files.blocks(MANIFEST)))["files"]
        names = files.names()
        foreign = [n for n in names if n != MANIFEST and (n not in told or files.sha256(n) != told[n]["sha256"])]
    except (OptimizeError, ValueError, TypeError, KeyError, RecursionError) as error:
        return f"it is no kit that optimize wrote ({error!s:.300})"
    more = f" and {len(foreign) - 1} more" if foreign[1:] else ""
    return f"{foreign[0]:.100}{more} was added or changed since it was made" if foreign else None
