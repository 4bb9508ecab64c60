"""A stage's key holds the source of all the code that decides its bytes, however that code is imported."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from optimize.storage import cache


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small package of this name, with a pass, what it is made of, and plumbing."""
    root = tmp_path / "optimize"
    for folder in ("passes", "pruning"):
        (root / folder).mkdir(parents=True)
        (root / folder / "__init__.py").touch()
    (root / "__init__.py").touch()
    (root / "errors.py").write_text("class UserError(Exception): ...\n")
    (root / "pruning" / "groups.py").write_text("SHARE = 0.5\n")
    monkeypatch.setattr(cache, "ROOT", root)
    forget()
    yield root
    forget()


def forget() -> None:
    cache._file.cache_clear()
    cache.code_hash.cache_clear()


def hashed() -> str:
    forget()
    return cache.code_hash("optimize.passes.prune")


@pytest.mark.parametrize(
    "line",
    [
        "from optimize.pruning.groups import SHARE",
        "from optimize.pruning import groups",
        "import optimize.pruning.groups as g",
        "from ..pruning.groups import SHARE",
        "from ..pruning import groups",
        "def f():\n    from ..pruning import groups",
    ],
)
def test_code_that_is_imported_is_part_of_the_key(line: str, package: Path) -> None:
    (package / "passes" / "prune.py").write_text(f"{line}\n")
    before = hashed()
    assert hashed() == before
    (package / "pruning" / "groups.py").write_text("SHARE = 0.6\n")
    assert hashed() != before


@pytest.mark.parametrize("line", ["from optimize.errors import UserError", "from ..errors import UserError"])
def test_code_that_moves_values_about_is_no_part_of_it(line: str, package: Path) -> None:
    (package / "passes" / "prune.py").write_text(f"{line}\n")
    before = hashed()
    (package / "errors.py").write_text("class UserError(ValueError): ...\n")
    assert hashed() == before


def test_a_relative_import_in_an_init_is_seen_from_its_own_folder(package: Path) -> None:
    (package / "pruning" / "__init__.py").write_text("from .groups import SHARE\n")
    (package / "passes" / "prune.py").write_text("from optimize.pruning import SHARE\n")
    before = hashed()
    (package / "pruning" / "groups.py").write_text("SHARE = 0.6\n")
    assert hashed() != before


def test_the_names_of_plumbing_are_modules_that_there_are() -> None:
    forget()
    assert not [name for name in cache.PLUMBING if cache._file(name) is None]
