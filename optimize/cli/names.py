"""What the shell completes. Names are found by listing packages: nothing of the library is imported for them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def recipes(incomplete: str) -> list[str]:
    """Built-in recipes, and recipe files."""
    from optimize.recipes.paths import builtin

    return _matching([*builtin(), *_files(Path(incomplete).parent)], incomplete)


def _files(folder: Path) -> list[str]:
    """Recipe files of a folder; none of one that cannot be listed."""
    try:
        return sorted(str(p) for p in folder.iterdir() if p.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def schemas(incomplete: str) -> list[str]:
    """What `optimize schema` shows."""
    from optimize.registry import EXPORTERS, PASSES, RUNNERS, SOURCES

    kinds = (PASSES, EXPORTERS, RUNNERS, SOURCES)
    full = [f"{r.kind}/{n}" for r in kinds for n in r.names()] if "/" in incomplete else []
    return _matching(["recipe", *sorted({n for r in kinds for n in r.names()}), *full], incomplete)


def exporters(incomplete: str) -> list[str]:
    """Formats to export to."""
    from optimize.registry import EXPORTERS

    return _matching(EXPORTERS.names(), incomplete)


def runners(incomplete: str) -> list[str]:
    """Runners, the last of a list with commas."""
    from optimize.registry import RUNNERS

    return _last(RUNNERS.names(), incomplete)


def targets(incomplete: str) -> list[str]:
    """Device classes, the last of a list with commas."""
    from optimize.hardware.targets import NAMES

    return _last(NAMES, incomplete)


def _last(names: Iterable[str], incomplete: str) -> list[str]:
    before, comma, last = incomplete.rpartition(",")
    given = before.split(",")
    return [f"{before}{comma}{name}" for name in _matching(names, last) if name not in given]


def _matching(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
