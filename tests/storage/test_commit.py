"""Folders and files killed at every change of a name: one whole version is there or comes back, and no part stays."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.kills import kill_everywhere

from optimize.errors import ArtifactError, EnvironmentLacks
from optimize.storage import ledger, swap
from optimize.storage.commit import commit, write_text_atomically
from optimize.storage.locks import held
from optimize.storage.swap import sweep
from optimize.storage.trust import verify


def writer(text: str) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "deep").mkdir()
        (folder / "f").write_text(text)
        (folder / "deep" / "g").write_text(text * 2)
        return {"id": text}

    return write


def text_of(folder: Path) -> str:
    verify(folder)
    return (folder / "f").read_text()


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture(params=["exchange", "two renames"])
def renaming(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that exchanges two names, and one that cannot."""
    if request.param == "two renames":
        monkeypatch.setattr(swap, "exchange", lambda a, b: False)
    return str(request.param)


def test_names_are_exchanged_at_one_stroke_here(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not swap.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()


def test_a_file_system_that_cannot_exchange_names_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class System:
        @staticmethod
        def renameat2(*_: object) -> int:
            swap.ctypes.set_errno(errno.EINVAL)
            return -1

    monkeypatch.setattr(swap.ctypes, "CDLL", lambda *a, **k: System)
    assert not swap.exchange(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(swap.ctypes, "CDLL", lambda *a, **k: object())  # a system without the call
    assert not swap.exchange(tmp_path / "a", tmp_path / "b")


def test_any_other_failure_of_the_exchange_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        swap.exchange(tmp_path / "nowhere", tmp_path / "neither")


def test_a_folder_that_is_replaced_survives_kills_everywhere(renaming: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "final"

    def before() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        commit(folder, writer("old"))

    def after() -> None:
        if renaming == "exchange":
            assert text_of(folder) in ("old", "new")
        sweep(folder.parent, lambda name: name == "final")
        assert text_of(folder) in ("old", "new") and names(folder.parent) == ["final"]
        commit(folder, writer("new"))
        assert text_of(folder) == "new" and names(folder.parent) == ["final"]

    assert kill_everywhere(before, lambda: commit(folder, writer("new")), after) >= 15


def test_the_next_commit_alone_puts_right_what_a_kill_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap, "exchange", lambda a, b: False)
    folder = tmp_path / "run" / "final"

    def before() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        commit(folder, writer("old"))

    def after() -> None:
        commit(folder, writer("newer"))
        assert text_of(folder) == "newer" and names(folder.parent) == ["final"]

    assert kill_everywhere(before, lambda: commit(folder, writer("new")), after) >= 15


def test_a_first_commit_killed_anywhere_leaves_the_whole_or_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "final"

    def after() -> None:
        sweep(folder.parent, lambda name: name == "final")
        assert not folder.exists() or text_of(folder) == "new"
        assert names(folder.parent) in ([], ["final"]) if folder.parent.exists() else True
        commit(folder, writer("new"))
        assert text_of(folder) == "new"

    kill_everywhere(lambda: shutil.rmtree(tmp_path / "run", True), lambda: commit(folder, writer("new")), after)


def test_files_of_a_ledger_killed_anywhere_are_still_known_as_ours(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write(text: str) -> None:
        with ledger.opened(out, ("report.md", "report.html")) as put:
            put("report.md", text.encode())
            put("report.html", text.encode())

    def after() -> None:
        sweep(out, lambda name: name.startswith((".written", "report")))
        assert (out / "report.md").read_text() in ("old", "new")
        write("new")
        assert {(out / n).read_text() for n in ("report.md", "report.html")} == {"new"}
        assert names(out) == [".written.json", "report.html", "report.md"]

    assert kill_everywhere(lambda: write("old"), lambda: write("new"), after) >= 10


def test_a_second_rename_that_fails_leaves_the_old_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path / "a", writer("old"))
    monkeypatch.setattr(swap, "exchange", lambda a, b: False)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith("~new"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(EnvironmentLacks, match="disk is full"):
        commit(tmp_path / "a", writer("new"))
    assert text_of(tmp_path / "a") == "old" and names(tmp_path) == ["a"]


def test_what_an_earlier_version_moved_aside_comes_back(tmp_path: Path) -> None:
    commit(tmp_path / "final", writer("only copy"))
    (tmp_path / "final").rename(tmp_path / ".tmp-old-final-4194305")
    (tmp_path / ".tmp-final-4194305").mkdir()
    sweep(tmp_path, lambda name: name == "final")
    assert text_of(tmp_path / "final") == "only copy" and names(tmp_path) == ["final"]


def test_names_like_ours_that_are_somebody_elses_stay(tmp_path: Path) -> None:
    kept = [".tmp-thesis", ".tmp-thesis-2024", ".tmp-final", "notes~new"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    sweep(tmp_path, lambda name: name == "final")
    assert names(tmp_path) == sorted(kept)


def test_what_a_living_process_is_making_stays(tmp_path: Path) -> None:
    (tmp_path / ".tmp-a~new").mkdir()
    with held(tmp_path / "a"):
        sweep(tmp_path)
        assert (tmp_path / ".tmp-a~new").exists()
    sweep(tmp_path)
    assert not names(tmp_path)


def test_a_lock_outlives_no_process_and_leaves_no_file(tmp_path: Path) -> None:
    process = os.fork()
    if process == 0:
        with held(tmp_path / "a"):
            os._exit(0)
    os.waitpid(process, 0)
    with held(tmp_path / "a", wait=False) as free, held(tmp_path / "a", wait=False) as again:
        assert free and not again
    assert not names(tmp_path)


def test_who_waits_says_so_and_then_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader, end = os.pipe()
    process = os.fork()
    if process == 0:
        with held(tmp_path / "a"):
            os.write(end, b"x")
            import time

            time.sleep(0.8)
        os._exit(0)
    assert os.read(reader, 1) == b"x"
    write_text_atomically(tmp_path / "a", "after")
    os.waitpid(process, 0)
    assert "another optimize command is at work on it; this one waits" in caplog.text
    assert (tmp_path / "a").read_text() == "after"


@pytest.mark.filterwarnings("ignore:flock not supported")
def test_a_file_system_that_knows_no_locks_gets_lock_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("filelock._unix.fcntl.flock", unknown)
    for text in ("1", "2"):
        commit(tmp_path / "a", writer(text))
    with held(tmp_path / "a", wait=False) as free, held(tmp_path / "a", wait=False) as again:
        assert free and not again
    assert text_of(tmp_path / "a") == "2" and names(tmp_path) == ["a"]


def test_a_place_without_locks_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock._unix.fcntl.flock", refused)
    with pytest.raises(EnvironmentLacks, match=r"a: cannot be written \(No locks available\)"):
        commit(tmp_path / "a", writer("new"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: (p.mkdir(), (p / "thesis.txt").write_text("x")), "holds thesis.txt, and no manifest.json"),
        (lambda p: (commit(p, writer("a")), (p / "notes.txt").write_text("x")), "notes.txt: added since"),
        (lambda p: (commit(p, writer("a")), (p / "deep" / "g").write_text("x")), "deep/g: changed since"),
        (lambda p: p.write_text("x"), "it is no folder"),
        (lambda p: p.symlink_to(p.parent / "there"), "a symbolic link, which is not followed"),
        (lambda p: (p.mkdir(), (p / "manifest.json").write_text('{"name": "app"}')), "none that optimize wrote"),
    ],
)
def test_what_is_not_ours_is_named_before_any_work_and_stays(
    make: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    make(tmp_path / "place")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ArtifactError, match=said) as error:
        commit(tmp_path / "place", lambda folder: pytest.fail("begun"))
    assert "left alone" in str(error.value) and len(str(error.value)) < 2000
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_what_is_put_into_a_folder_while_it_is_made_anew_stays(tmp_path: Path) -> None:
    commit(tmp_path / "a", writer("old"))

    def write(folder: Path) -> dict[str, Any]:
        (tmp_path / "a" / "notes.txt").write_text("mine")
        return writer("new")(folder)

    with pytest.raises(ArtifactError, match=r"notes\.txt: added"):
        commit(tmp_path / "a", write)
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine" and names(tmp_path) == ["a"]


def test_an_empty_folder_and_one_with_files_missing_are_written(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    commit(tmp_path / "a", writer("1"))
    (tmp_path / "a" / "f").unlink()
    commit(tmp_path / "a", writer("2"))
    assert text_of(tmp_path / "a") == "2"


def test_a_file_that_somebody_changed_or_put_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("my own")
    with (
        pytest.raises(ArtifactError, match=r"report\.md: optimize did not write it"),
        ledger.opened(tmp_path, ("report.md",)),
    ):
        pytest.fail("begun")
    (tmp_path / "report.md").unlink()
    with ledger.opened(tmp_path, ("report.md",)) as put:
        put("report.md", b"ours")
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with ledger.opened(tmp_path, ("report.md",)) as put:
        put("report.md", b"ours")  # as it is: nothing is written
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    (tmp_path / "report.md").write_text("ours, and a note")
    with pytest.raises(ArtifactError, match="or it was changed since"):
        ledger.refuse_edited(tmp_path, ("report.md",))


@pytest.mark.parametrize("text", ["[]", "{", '{"files": {"a": 1}}', '{"files": 3}'])
def test_a_ledger_that_is_none_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / ledger.LEDGER).write_text(text)
    with pytest.raises(ArtifactError, match=r"\.written\.json"):
        ledger.refuse_edited(tmp_path, ("report.md",))
