"""Where a run writes: `exported/<name>/`. What is there and was not written by a run is refused, before any work."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from optimize.errors import ArtifactError
from optimize.recipes.schema import Recipe
from optimize.storage import ledger
from optimize.storage.disk import writing
from optimize.storage.ours import MOVE, refuse_foreign, settled
from optimize.storage.swap import sweep

FINAL, LOG = "final", "run.log"
GRID, STAMP = "samples/grid.png", "samples/grid.id"
REPORTS = ("report.md", "report.html")
FILES = ("recipe.resolved.yaml", "measurements.jsonl", "summary.json", *REPORTS, GRID, STAMP)
LINE = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} [A-Z]+ optimize\b")  # how a line of run.log begins


def check(recipe: Recipe, out: Path) -> None:
    """Raise ArtifactError, naming the folder and the file, where a variant's folder, a report or the log in `out` is not
    what a run wrote there. What a killed run left is put right first."""
    names = [*variant_names(recipe), FINAL]
    with writing(out):
        sweep(out, lambda name: name in (*names, *FILES, ledger.LEDGER, ledger.HELD))
    for name in names:
        advice = f"A run writes its variant {name} there. {MOVE}"
        settled(partial(refuse_foreign, advice=advice, kind="artifact"), out / name)
    with ledger.opened(out, FILES, earlier):
        pass  # which looks at each of them
    _check_log(out / LOG)


def variant_names(recipe: Recipe) -> list[str]:
    """Names of a run's variants, and of their folders."""
    return ["baseline", *distinct([p.name for p in recipe.passes])]


def distinct(names: Sequence[str]) -> list[str]:
    """Names made unique by a number where a pass is used twice."""
    return [n if names.count(n) == 1 else f"{n}-{names[: i + 1].count(n)}" for i, n in enumerate(names)]


def earlier(out: Path) -> bool:
    """Whether a run of an earlier version, which kept no ledger, finished in this folder: its summary says so."""
    try:
        found = json.loads((out / "summary.json").read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("schema") == 1 and {"recipe", "rows"} <= found.keys()


def _check_log(path: Path) -> None:
    """The log is only added to, and only where it is a run's."""
    with writing(path):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise ArtifactError(f"{path}: no ordinary file; it is left alone. {MOVE}")
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                begins = file.readline(200)
            if not LINE.match(begins):
                raise ArtifactError(f"{path}: it is no log of a run; it is left alone. {MOVE}")
