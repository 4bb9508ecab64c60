"""Where a run writes: nothing of the user's is overwritten, and it is said before any work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.command import optimize
from support.kills import kill_everywhere

from optimize.errors import ArtifactError
from optimize.recipes.read import load
from optimize.runs import place, stages
from optimize.runs.execute import run
from optimize.storage.cache import CACHE, Store
from optimize.storage.commit import commit
from optimize.storage.swap import sweep
from optimize.storage.trust import verify


def artifact(folder: Path, text: str = "x") -> Any:
    def write(made: Path) -> dict[str, Any]:
        (made / "f").write_text(text)
        return {"id": text, "parity": {}}

    return commit(folder, write)


def finished(out: Path) -> None:
    """A run's folder as an earlier version left it, which kept no ledger."""
    artifact(out / "final")
    (out / "summary.json").write_text(json.dumps({"schema": 1, "recipe": "smoke", "rows": []}))
    (out / "report.md").write_text("# a report")
    (out / "run.log").write_text("2026-11-27 10:00:00,123 INFO optimize.storage.cache source made\n")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda out: out / "final" / "thesis.txt", r"final: it holds thesis\.txt, and no manifest\.json"),
        (lambda out: out / "baseline" / "a" / "thesis.txt", "baseline: it holds a, and no"),
        (lambda out: out / "prune" / "thesis.txt", "A run writes its variant prune there"),
        (lambda out: out / "final", "final: it is no folder"),
        (lambda out: out / "report.html", r"report\.html: optimize did not write it"),
        (lambda out: out / "samples" / "grid.png", r"grid\.png: optimize did not write it"),
        (lambda out: out / "measurements.jsonl", r"measurements\.jsonl: optimize did not write it"),
        (lambda out: out / "run.log", r"run\.log: it is no log of a run; it is left alone"),
    ],
)
def test_what_stands_in_the_way_is_named_and_stays(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    recipe = load("smoke")
    mine = make(tmp_path / recipe.name)
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ArtifactError, match=said):
        run(recipe, tmp_path)
    assert mine.read_text() == "mine" and not (tmp_path / CACHE).exists()


def test_the_command_says_it_too_and_writes_no_log(tmp_path: Path) -> None:
    (tmp_path / "smoke" / "final").mkdir(parents=True)
    (tmp_path / "smoke" / "final" / "thesis.txt").write_text("mine")
    done = optimize("run", "smoke", "--exported", str(tmp_path))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and "thesis.txt" in done.stderr
    assert not (tmp_path / "smoke" / "run.log").exists()


def test_what_runs_wrote_is_written_over_until_somebody_changes_it(tmp_path: Path) -> None:
    recipe, out = load("smoke"), tmp_path / "smoke"
    place.check(recipe, out)
    finished(out)
    (out / "notes.txt").write_text("beside what a run writes")
    place.check(recipe, out)
    (out / "final" / "f").write_text("changed")
    with pytest.raises(ArtifactError, match="f: changed since optimize wrote the folder"):
        place.check(recipe, out)
    shutil.rmtree(out / "final")
    (out / "final").symlink_to(tmp_path)
    with pytest.raises(ArtifactError, match="symbolic link"):
        place.check(recipe, out)


def test_another_thing_that_optimize_wrote_is_no_variant(tmp_path: Path) -> None:
    commit(tmp_path / "smoke" / "final", lambda folder: {"id": "x", "kind": "pipeline"})
    with pytest.raises(
        ArtifactError, match="final: it is another thing that optimize wrote: an exported pipeline, not an"
    ):
        place.check(load("smoke"), tmp_path / "smoke")


@pytest.mark.parametrize("name", ["run.log", "report.md"])
def test_a_link_in_the_place_of_a_file_is_not_followed(name: str, tmp_path: Path) -> None:
    (tmp_path / "smoke").mkdir()
    (tmp_path / "smoke" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(ArtifactError, match=f"{name}: no ordinary file"):
        place.check(load("smoke"), tmp_path / "smoke")


def test_a_variant_that_a_kill_moved_aside_is_back_before_it_is_looked_at(tmp_path: Path) -> None:
    artifact(tmp_path / "smoke" / "final", "the only copy")
    (tmp_path / "smoke" / "final").rename(tmp_path / "smoke" / ".tmp-final~old")
    place.check(load("smoke"), tmp_path / "smoke")
    assert verify(tmp_path / "smoke" / "final")["id"] == "the only copy"


def test_publishing_killed_anywhere_leaves_whole_variants_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def compute(folder: Path, work: Path) -> dict[str, Any]:
        (folder / "onnx").mkdir()
        for name in ("f", "onnx/model.onnx"):
            (folder / name).write_text("new")
        return {"parity": {}}

    with Store(tmp_path / CACHE) as store:
        variant: Any = SimpleNamespace(artifact=(stage := store.stage("export", {}, compute)), parity={"torch": {}})
    variant.folder = stage.folder

    def before() -> None:
        shutil.rmtree(out, ignore_errors=True)
        for name in ("baseline", "final"):
            artifact(out / name, "old")

    def act() -> None:
        for name in ("baseline", "final"):
            stages.publish(variant, name, out)

    def after() -> None:
        sweep(out, lambda name: name in ("baseline", "final"))
        for name in ("baseline", "final"):
            assert verify(out / name)["id"] in ("old", stage.id)
        act()
        for name in ("baseline", "final"):
            assert verify(out / name)["id"] == stage.id and (out / name / "onnx" / "model.onnx").read_text() == "new"
        assert sorted(p.name for p in out.iterdir()) == ["baseline", "final"]

    assert kill_everywhere(before, act, after) >= 25
