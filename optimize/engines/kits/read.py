"""Reading a build kit that was brought back, folder or zip: only what is asked for, and nothing that a hostile one could
misuse. Nothing is extracted."""

from __future__ import annotations

import hashlib
import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TypeVar

from pydantic import ValidationError

from optimize.configs import Config, described
from optimize.errors import ArtifactError, UserError
from optimize.plain.text import parse_json

KIT = "kit.json"
LARGEST_JSON, MOST_FILES = 16 * 2**20, 10_000
AGAIN = "Run its build.py again, or make the kit again with this version of optimize: optimize export."
Parsed = TypeVar("Parsed", bound=Config)


class KitFiles:
    """The files of a kit in a folder or a zip, by their paths from kit.json's folder. Links are refused; of a zip every
    path must stay inside, be there once and be readable without a password."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = None if path.is_dir() else _members(path)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        if self._members is not None:
            return self._members[name].file_size if name in self._members else None
        place = self.path
        for part in PurePosixPath(name).parts:
            place = place / part
            if place.is_symlink():
                raise ArtifactError(f"{place}: a symbolic link; it is not read. Bring the file itself.")
        return place.stat().st_size if place.is_file() else None

    def names(self) -> list[str]:
        """Every file of a zip."""
        return sorted(self._members or ())

    def blocks(self, name: str) -> Iterator[bytes]:
        """The bytes of a file that is there, some at a time."""
        try:
            if self._members is None:
                with (self.path / name).open("rb") as plain:
                    yield from iter(lambda: plain.read(1 << 20), b"")
            else:
                with zipfile.ZipFile(self.path) as held, held.open(self._members[name]) as packed:
                    yield from iter(lambda: packed.read(1 << 20), b"")
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
            raise ArtifactError(f"{self.path}: {name} is not readable ({error}). Copy the kit again.") from error

    def sha256(self, name: str) -> str:
        """SHA-256 (hex) of a file that is there."""
        found = hashlib.sha256()
        for block in self.blocks(name):
            found.update(block)
        return found.hexdigest()

    def parsed(self, name: str, model: type[Parsed]) -> Parsed:
        """A JSON file as this model; ArtifactError naming every field that is missing, unknown or of the wrong kind."""
        size = self.size(name)
        if size is None:
            raise ArtifactError(
                f"{self.path}: no {name} in it, so it is no build kit. Give the folder that export made."
            )
        if size > LARGEST_JSON:
            raise ArtifactError(f"{self.path}: {name} has {size} bytes, and {LARGEST_JSON} at most are read. {AGAIN}")
        try:
            return model.model_validate(parse_json(b"".join(self.blocks(name)), f"{self.path}: {name}"))
        except ValidationError as error:
            told = "\n".join(f"{self.path}: {name}: {line}" for line in described(error, model))
            raise ArtifactError(f"{told}\n{AGAIN}") from None
        except ArtifactError as error:
            raise ArtifactError(f"{error} {AGAIN}") from None


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """Files of a zip by their paths from the folder of its kit.json; ArtifactError for one that is not to be trusted."""
    try:
        with zipfile.ZipFile(path) as held:
            found = held.infolist()
    except FileNotFoundError:
        raise UserError(f"{path}: no such folder or zip file. Give a build kit that was brought back.") from None
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ArtifactError(f"{path}: no whole zip file ({error}). Copy it again.") from error
    if len(found) > MOST_FILES or len({m.filename for m in found}) < len(found):
        raise ArtifactError(
            f"{path}: {len(found)} files, some of one name or more than {MOST_FILES}. Pack the kit again."
        )
    for member in found:
        _check_member(path, member)
    tops = [
        m.filename.removesuffix(KIT) for m in found if m.filename.split("/")[-1] == KIT and m.filename.count("/") < 2
    ]
    if len(tops) != 1:
        raise ArtifactError(
            f"{path}: {len(tops)} files {KIT} in it, and a build kit has one. Pack the kit's folder alone."
        )
    return {m.filename.removeprefix(tops[0]): m for m in found if m.filename.startswith(tops[0]) and not m.is_dir()}


def _check_member(path: Path, member: zipfile.ZipInfo) -> None:
    name = member.filename.removesuffix("/")
    plain = PurePosixPath(name)
    odd = "\\" in name or not name.isprintable() or plain.as_posix() != name or name in ("", ".")
    if odd or plain.is_absolute() or ".." in plain.parts:
        raise ArtifactError(
            f"{path}: {member.filename!r} is no plain path inside the zip. Nothing is read; pack it again."
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ArtifactError(f"{path}: {name} is a symbolic link. Nothing is read; pack the file itself.")
    if member.flag_bits & 1:
        raise ArtifactError(f"{path}: {name} is encrypted. Pack the kit without a password.")
