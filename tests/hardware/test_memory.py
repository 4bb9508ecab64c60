"""Free memory: the machine's, or what a control group leaves, of either version and at every level."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from optimize.hardware import memory

TWO = ("memory.max", "memory.current", "inactive_file")
ONE = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def group(folder: Path, names: tuple[str, str, str], limit: str, taken: int, cached: int = 0) -> None:
    """A control group's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {cached}\nshmem 0\n")


def own(tmp_path: Path, text: str) -> Path:
    """/proc/self/cgroup."""
    path = tmp_path / "own"
    path.write_text(text)
    return path


def test_here_it_is_no_more_than_the_machine_has() -> None:
    import psutil

    assert 0 < memory.available() <= psutil.virtual_memory().total


def test_a_limit_below_what_is_free_is_what_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "left_in_groups", lambda: [7 * 10**15, 500])
    assert memory.available() == 500
    monkeypatch.setattr(memory, "left_in_groups", lambda: [10**18])
    assert 10**6 < memory.available() < 10**18


def test_without_a_limit_nothing_is_said(tmp_path: Path) -> None:
    assert memory.left_in_groups(tmp_path / "none", tmp_path / "none") == []
    group(tmp_path, TWO, "max", 100)
    assert memory.left_in_groups(tmp_path, own(tmp_path, "0::/\n")) == []


def test_version_two_leaves_its_limit_less_what_is_taken_and_cached_files_make_way(tmp_path: Path) -> None:
    group(tmp_path, TWO, "1000", 900, cached=300)
    assert memory.left_in_groups(tmp_path, own(tmp_path, "0::/\n")) == [400]
    group(tmp_path, TWO, "1000", 1200)
    assert memory.left_in_groups(tmp_path, own(tmp_path, "0::/\n")) == [0]


def test_the_limits_of_a_process_group_and_of_those_around_it_all_hold(tmp_path: Path) -> None:
    group(tmp_path / "user.slice" / "job", TWO, "max", 10)
    group(tmp_path / "user.slice", TWO, "800", 300)
    group(tmp_path / "other", TWO, "1", 1)
    assert memory.left_in_groups(tmp_path, own(tmp_path, "0::/user.slice/job\n")) == [500]
    group(tmp_path / "user.slice" / "job", TWO, "100", 10)
    assert memory.left_in_groups(tmp_path, own(tmp_path, "0::/user.slice/job\n")) == [90, 500]


def test_version_one_is_read_below_its_own_folder(tmp_path: Path) -> None:
    text = own(tmp_path, "5:cpu,cpuacct:/x\n4:hugetlb,memory:/x\n0::/\n")
    group(tmp_path / "memory", ONE, "9223372036854771712", 100)
    group(tmp_path / "memory" / "x", ONE, "1000", 400, cached=100)
    assert memory.left_in_groups(tmp_path, text)[0] == 700 and min(memory.left_in_groups(tmp_path, text)) == 700


def test_where_linux_does_not_say_psutil_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FREE", tmp_path / "none")
    assert memory.available() > 0
    monkeypatch.setitem(sys.modules, "psutil", None)
    with pytest.raises(ImportError):
        memory.available()


def test_the_file_imports_nothing_that_a_build_kit_lacks() -> None:
    names = [n.module or "" for n in ast.parse(Path(memory.__file__).read_text()).body if isinstance(n, ast.ImportFrom)]
    assert all(name.partition(".")[0] in sys.stdlib_module_names for name in names)


def test_bytes_are_written_in_gigabytes() -> None:
    assert memory.gb(5_900_000_000) == "5.9 GB"
