"""Trust: an artifact's files are the ones its manifest names, byte for byte, before anything reads them.

A file's hash is taken once a process and remembered by (path, inode, size, times). The digest of an artifact is the
SHA-256 of its manifest's canonical JSON, which holds the hash of every file: whoever pins it pins all of them.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from optimize.configs import digest
from optimize.errors import ArtifactError, UserError, shown
from optimize.plain.text import read_json
from optimize.storage.weights import file_sha256

SCHEMA = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 64 * 2**20  # bytes
RECENT_S = 1.0  # a file changed within this time is hashed again: file systems' clocks are coarse
HASH = re.compile(r"[0-9a-f]{64}")

_hashes: dict[tuple[Any, ...], str] = {}


def verify(folder: Path) -> dict[str, Any]:
    """The manifest, after every file was found with the bytes it names, and no other file.

    Raises ArtifactError naming the first file that differs, what was expected and what was found."""
    manifest = read_manifest(folder)
    found = differences(folder, manifest)
    if found:
        raise ArtifactError(f"{folder}: {told(found)} Delete the folder and run again, or copy it again.")
    return manifest


def checked(folder: Path, name: str) -> Path:
    """The path of one file of an artifact, after its bytes were compared with the manifest's; ArtifactError otherwise."""
    entry = read_manifest(folder)["files"].get(name)
    if entry is None:
        raise ArtifactError(
            f"{folder}: {name} is not named in {MANIFEST}, so nothing says what it should be; it is not read."
        )
    different = _difference(folder, name, entry)
    if different is not None:
        raise ArtifactError(f"{folder}: {told([different])} It is not read. Delete the folder and run again.")
    return folder / name


@dataclass(frozen=True)
class Difference:
    """One file that is not what the manifest says: what was expected and what was found, in words."""

    file: str
    problem: Literal["changed", "missing", "added"]
    expected: str
    found: str


def told(found: list[Difference]) -> str:
    """Differences as one sentence: the first in full, the others counted."""
    first = found[0]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{first.file} is {first.problem}{more}: expected {first.expected}, found {first.found}."


def differences(folder: Path, manifest: dict[str, Any]) -> list[Difference]:
    """Every changed, missing or added file, by name."""
    files = manifest["files"]
    found = [d for name, entry in files.items() if (d := _difference(folder, name, entry)) is not None]
    none = f"no such file in {MANIFEST}"
    found += [Difference(name, "added", none, _kind(folder / name)) for name in added(folder, manifest)]
    return sorted(found, key=lambda d: d.file)


def added(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files in the folder that the manifest does not name; nothing is read for it."""
    return sorted(name for name in _names(folder) if name not in manifest["files"] and name != MANIFEST)


def artifact_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 (hex) of the manifest's canonical JSON: one value for every byte of the artifact and all it says."""
    return digest(manifest)


def inspect_trust(folder: Path) -> dict[str, Any]:
    """What `optimize verify` prints, as JSON values: `{"folder", "digest", "intact", "artifacts": [{name, folder, id,
    digest, files, bytes, differences}]}` of an artifact, or of all artifacts directly in a run's folder.

    The digest of several is that of {name: digest}. Raises ArtifactError where there is no artifact, or a manifest is
    malformed."""
    found = [_inspected(place) for place in _artifacts(folder)]
    alone = len(found) == 1 and found[0]["folder"] == str(folder)
    whole = found[0]["digest"] if alone else digest({a["name"]: a["digest"] for a in found})
    return {
        "folder": str(folder),
        "digest": whole,
        "intact": not any(a["differences"] for a in found),
        "artifacts": found,
    }


def require(report: dict[str, Any], expect: str | None = None) -> None:
    """Raise ArtifactError where a report of `inspect_trust` names a difference or has another digest than `expect`;
    UserError where `expect` is no digest."""
    if expect is not None and not HASH.fullmatch(expect):
        raise UserError(
            f'--expect: "{expect}" is no digest. Give the 64 hexadecimal digits that optimize verify prints.'
        )
    for artifact in report["artifacts"]:
        if artifact["differences"]:
            shown = [Difference(**d) for d in artifact["differences"]]
            raise ArtifactError(
                f"{artifact['folder']}: {told(shown)} Delete the folder and run again, or copy it again."
            )
    if expect is not None and report["digest"] != expect:
        raise ArtifactError(
            f"{report['folder']}: {MANIFEST}: expected digest {expect}, found {report['digest']}. "
            "Every file is as the manifest says, but it is another artifact than the one expected."
        )


def _inspected(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    return {
        "name": folder.name,
        "folder": str(folder),
        "id": manifest.get("id", ""),
        "digest": artifact_digest(manifest),
        "files": len(manifest["files"]),
        "bytes": sum(f["bytes"] for f in manifest["files"].values()),
        "differences": [asdict(d) for d in differences(folder, manifest)],
    }


def _artifacts(folder: Path) -> list[Path]:
    if (folder / MANIFEST).exists():
        return [folder]
    found = sorted(p.parent for p in folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
    found = [p for p in found if not p.name.startswith(".")]
    if not found:
        reason = f"there is no {MANIFEST} in it" if folder.is_dir() else "it is no folder"
        raise ArtifactError(
            f"{folder}: {reason}. Give an artifact such as exported/digits/final, or a run's folder such as exported/digits."
        )
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """The parsed manifest. Raises ArtifactError where it is missing, malformed, of another schema, or names a file twice
    or one outside the folder."""
    path = folder / MANIFEST
    try:
        if path.is_symlink() or not stat.S_ISREG(path.stat().st_mode):
            raise ArtifactError(f"{path}: not an ordinary file; it is not read.")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ArtifactError(f"{path}: {path.stat().st_size} bytes; a manifest has at most {LARGEST_MANIFEST}.")
    except FileNotFoundError:
        raise ArtifactError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path}: not readable JSON ({error}).") from error
    return _well_formed(path, read_json(path))


def _well_formed(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    if manifest.get("schema") != SCHEMA:
        raise ArtifactError(
            f"{path}: schema {manifest.get('schema')} is not {SCHEMA}; made by another version of optimize."
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise ArtifactError(f"{path}: files: expected {{path: {{sha256, bytes}}}}, found {type(files).__name__}.")
    for name, entry in files.items():
        _check_name(path, name)
        _check_entry(path, name, entry)
    return manifest


def _check_name(path: Path, name: str) -> None:
    """A file's name is a plain relative path that stays in the folder."""
    plain = PurePosixPath(name)
    odd = "\\" in name or not name.isprintable() or plain.as_posix() != name or name in ("", ".", MANIFEST)
    if odd or plain.is_absolute() or ".." in plain.parts:
        raise ArtifactError(
            f"{path}: files: {name!r} is no plain path inside the folder (relative, with /, without ..); nothing is read."
        )


def _check_entry(path: Path, name: str, entry: Any) -> None:
    fields = entry if isinstance(entry, dict) else {}
    known, size = fields.get("sha256"), fields.get("bytes")
    whole = isinstance(size, int) and not isinstance(size, bool) and size >= 0
    if not (isinstance(known, str) and HASH.fullmatch(known) and whole):
        raise ArtifactError(
            f"{path}: files: {name}: expected sha256 (64 hexadecimal digits) and bytes (a number), found {shown(entry)}."
        )


def _difference(folder: Path, name: str, entry: dict[str, Any]) -> Difference | None:
    expected, path = _words(entry["sha256"], entry["bytes"]), folder / name
    if not os.path.lexists(path):
        return Difference(name, "missing", expected, "nothing")
    if _linked(folder, name):
        return Difference(name, "changed", expected, "a symbolic link")
    if not path.is_file():
        return Difference(name, "changed", expected, _kind(path))
    size, known = path.stat().st_size, ""
    if size == entry["bytes"]:
        known = remembered_sha256(path)
    if known == entry["sha256"]:
        return None
    return Difference(name, "changed", expected, _words(known, size))


def _words(sha256: str, size: int) -> str:
    return f"sha256 {sha256}, {size} bytes" if sha256 else f"{size} bytes"


def _linked(folder: Path, name: str) -> bool:
    """Whether a part of the path inside the folder is a symbolic link."""
    place = folder
    for part in PurePosixPath(name).parts:
        place = place / part
        if place.is_symlink():
            return True
    return False


def _kind(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    if path.is_dir():
        return "a folder"
    return f"a file of {path.stat().st_size} bytes" if path.is_file() else "no ordinary file"


def _names(folder: Path) -> Iterator[str]:
    """Every file below a folder, relative, links and special files included; links are not followed."""
    for place, folders, files in os.walk(folder, followlinks=False):
        linked = [f for f in folders if os.path.islink(os.path.join(place, f))]
        for name in (*files, *linked):
            yield Path(place, name).relative_to(folder).as_posix()


def remembered_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file, computed once a process as long as its inode, size and times stay."""
    about = path.stat()
    key = (str(path.absolute()), about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if key in _hashes:
        return _hashes[key]
    value = file_sha256(path)
    if time.time() - max(about.st_mtime, about.st_ctime) > RECENT_S:
        _hashes[key] = value
    return value
