"""Two at once, and emptying the store: what is not a stage's, or is being used, stays."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.kills import kill_everywhere

from optimize.errors import ArtifactError, UserError
from optimize.storage.cache import Stage, Store
from optimize.storage.commit import commit
from optimize.storage.garbage import collect
from optimize.storage.trust import verify

PAIRS = 60


def make(store: Store, number: int = 1, during: Callable[[Path], object] = lambda work: None) -> Stage:
    def compute(folder: Path, work: Path) -> dict[str, Any]:
        during(work)
        (folder / "f").write_text(str(number))
        return {}

    return store.stage("s", {"n": number}, compute)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def _pairs(root: Path, start: Any, said: Any) -> None:
    for n in range(PAIRS):
        start.wait(30)
        try:
            with Store(root / str(n)) as store:
                said.put((n, make(store, n).cached))
        except BaseException as error:  # noqa: BLE001 -- told to the test
            said.put((n, repr(error)))


def test_sixty_pairs_of_equal_stages_at_once_each_make_one_and_find_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, said = context.Barrier(2), context.Queue()
    both = [context.Process(target=_pairs, args=(tmp_path, start, said)) for _ in range(2)]
    for process in both:
        process.start()
    told = [said.get(timeout=60) for _ in range(2 * PAIRS)]
    for process in both:
        process.join()
    assert Counter(told) == Counter((n, cached) for n in range(PAIRS) for cached in (False, True))
    for n in range(PAIRS):
        (stage,) = (p for p in (tmp_path / str(n)).iterdir() if p.name != ".work")
        assert verify(stage)["files"].keys() == {"f"}


def test_a_stage_that_is_used_or_being_made_stays_and_the_rest_goes(tmp_path: Path) -> None:
    store = tmp_path / ".cache"
    with Store(store) as other:
        unused = make(other, 1)
    with Store(store) as running:
        used = make(running, 2)
        seen: list[Any] = []
        making = make(running, 3, lambda work: seen.append((collect(store), work.exists())))
        ((found, kept),) = seen
        assert kept and set(found.in_use) == {used.folder.name, making.folder.name} and not found.foreign
        assert found.told() == ["2 stages stay, since another optimize command is using them"]
        assert not unused.folder.exists() and verify(used.folder) and verify(making.folder)
    assert collect(store).bytes > 0 and not store.exists()


def test_what_a_killed_process_used_is_in_use_no_more(tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:
        store = Store(tmp_path / ".cache")
        make(store)
        os._exit(0)
    os.waitpid(process, 0)
    assert any(n.startswith(".run-") for n in names(tmp_path / ".cache"))
    found = collect(tmp_path / ".cache")
    assert not found.in_use and not found.foreign and not (tmp_path / ".cache").exists()


def test_a_cache_of_other_programs_is_left_as_it_is(tmp_path: Path) -> None:
    cache = tmp_path / ".cache"
    digest = "0123456789abcdef" * 2
    for name in (
        "pip/wheel",
        f"{digest}/thesis",
        f".work/{digest}/notes",
        ".run-mine",
        ".lock-mine",
        ".tmp-x-12",
        "m/manifest.json",
    ):
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text("mine")
    commit(cache / "f" / ("1" * 32), lambda folder: {"id": "1" * 64})  # an artifact, deeper down
    before = {p: p.stat().st_size for p in cache.rglob("*") if p.is_file()}
    found = collect(cache)
    assert {p: p.stat().st_size for p in cache.rglob("*") if p.is_file()} == before
    assert found.bytes == 0 and {digest, f".work/{digest}", "pip", ".run-mine"} <= set(found.foreign)
    assert "left alone, since it is not what optimize put there, or not only: " in found.told()[0]


def test_of_a_shared_cache_only_stages_go(tmp_path: Path) -> None:
    (tmp_path / ".cache" / "pip").mkdir(parents=True)
    (tmp_path / ".cache" / "pip" / "wheel").write_text("mine")
    with Store(tmp_path / ".cache") as store:
        made = [make(store, n) for n in range(2)]
    (made[1].folder / "mine.txt").write_text("mine")
    found = collect(tmp_path / ".cache")
    assert names(tmp_path / ".cache") == {"pip", made[1].folder.name}
    assert found.foreign == [made[1].folder.name, "pip"]


def test_a_store_of_an_earlier_version_is_emptied(tmp_path: Path) -> None:
    store = tmp_path / ".cache"
    with Store(store) as current:
        name = make(current).folder.name
    work = store / ".work" / ("a" * 32)
    commit(work / "step-00000003", lambda folder: {"id": "key"})
    (work / ".tmp-step-00000004-4194305").mkdir()
    (store / f".tmp-{'b' * 32}-4194305").mkdir()
    collect(store)
    assert name and not store.exists()


def test_links_are_never_followed(tmp_path: Path) -> None:
    with Store(tmp_path / "elsewhere") as store:
        stage = make(store)
    (tmp_path / ".cache").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a symbolic link; nothing was removed"):
        collect(tmp_path / ".cache")
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / stage.folder.name).symlink_to(stage.folder)
    assert collect(tmp_path / "second").foreign == [stage.folder.name]
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="no folder; nothing was removed"):
        collect(tmp_path / "file")
    assert collect(tmp_path / "nowhere").told() == [] and verify(stage.folder)


def test_names_of_what_stays_are_at_most_ten(tmp_path: Path) -> None:
    for n in range(14):
        (tmp_path / f"mine{n:02}").mkdir()
    assert collect(tmp_path).told()[0].endswith("mine09 and 4 more")


def test_emptying_and_making_killed_anywhere_leave_whole_stages(tmp_path: Path) -> None:
    folder = tmp_path / ".cache"

    def before() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with Store(folder) as store:
            make(store, 1), make(store, 2)

    def act() -> None:
        collect(folder)
        with Store(folder) as store:
            make(store, 1)

    def after() -> None:
        with Store(folder) as store:
            one, two = make(store, 1), make(store, 2)
        assert [(s.folder / "f").read_text() for s in (one, two)] == ["1", "2"]
        assert names(folder) - {".work"} == {one.folder.name, two.folder.name}
        collect(folder)
        assert not folder.exists(), list(folder.rglob("*"))

    assert kill_everywhere(before, act, after) >= 25


def test_a_file_that_was_added_to_a_stage_is_not_removed_with_it(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        stage = make(store)
        (stage.folder / "mine.txt").write_text("mine")
        with pytest.raises(ArtifactError, match=r"mine\.txt was added to a stage of the store; it is left alone"):
            make(store)
    assert (stage.folder / "mine.txt").exists()


def test_a_mark_that_is_none_protects_a_scratch_folder(tmp_path: Path) -> None:
    place = tmp_path / ".work" / ("c" * 32)
    place.mkdir(parents=True)
    for text in ("{", "[]", json.dumps({"id": "d" * 64})):
        (place / ".stage.json").write_text(text)
        assert collect(tmp_path).foreign == [f".work/{'c' * 32}"]
