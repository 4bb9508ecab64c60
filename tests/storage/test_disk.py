"""A full disk is exit code 3 and one sentence, whoever writes, and leaves nothing that is half of something."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import optimize
from optimize.cli.app import _of_a_full_disk
from optimize.cli.log import RunLog
from optimize.errors import ArtifactError, EnvironmentLacks
from optimize.storage.disk import number_of, save_tensors, writing

LEFT = {  # what may stay: a whole file beside the one that found no room, and marks
    "kit as a zip": ["kit/model.onnx", "kit/model.onnx.data"],
    "log": ["run.log"],
    "page": [".written.json"],
    "classifier": ["config.json"],
}


SMALL = 800_000  # bytes of the largest file, where there is no small disk


def programs(folder: Path) -> list[str]:
    """The command that fills a small disk in a namespace of its own, or, without such, with files of limited size."""
    line = f"{sys.executable} -m support.full_disk"
    small = f"mount -t tmpfs -o size=1m none {folder}"
    if (
        shutil.which("unshare")
        and not subprocess.run(["unshare", "-Urm", "sh", "-c", small], capture_output=True).returncode
    ):
        return ["unshare", "-Urm", "sh", "-c", f"{small} && exec {line} {folder}"]
    return [*line.split(), str(folder), str(SMALL)]


def test_fourteen_writers_on_a_full_disk(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    done = subprocess.run(
        programs(folder), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, timeout=280
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 14, done.stderr[-3000:]
    wrong = [row for row in rows if (row["error"], row["code"]) != ("EnvironmentLacks", 3)]
    assert not wrong
    said = ("the disk is full", "a file is larger than its file system", "writing the graph takes about")
    assert all(any(s in row["text"] for s in said) and len(row["text"]) < 600 for row in rows)
    assert {row["writer"]: [f for f in row["left"] if ".stage.json" not in f] for row in rows} == {
        row["writer"]: LEFT.get(row["writer"], []) for row in rows
    }
    assert "Traceback" not in done.stderr


def test_nobody_else_writes_tensors() -> None:
    package = Path(optimize.__file__).parent
    found = {
        p.relative_to(package).as_posix() for p in package.rglob("*.py") if re.search(r"\bsave_file\(", p.read_text())
    }
    assert found == {"storage/disk.py", "quality/features.py"}  # there in a line that is advised


def raised(error: BaseException) -> str:
    with pytest.raises(EnvironmentLacks) as found, writing(Path("/tmp/place")):
        raise error
    return str(found.value)


class SafetensorError(Exception):
    """Named as the library's own."""


class PanicException(BaseException):
    """Likewise."""


FULL = "place: the disk is full; nothing was half-written and earlier results are intact. Free space"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("4000000 requested and 262112 written"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        PanicException("called `Result::unwrap()` on an `Err` value: (os error 28)"),
    ],
)
def test_every_way_to_say_that_a_disk_is_full_is_one_sentence(error: BaseException) -> None:
    assert FULL in raised(error)


def test_an_error_that_was_made_of_one_of_the_disk_is_one() -> None:
    try:
        raise RuntimeError("Error calling serialize") from OSError(errno.ENOSPC, "No space left")
    except RuntimeError as error:
        assert FULL in raised(error)


def test_a_file_that_is_too_large_and_a_folder_that_may_not_be_written_are_said() -> None:
    assert "a file is larger than its file system, or ulimit -f, lets one be" in raised(OSError(errno.EFBIG, "x"))
    assert raised(PermissionError(errno.EACCES, "x")).endswith(
        "place: cannot be written (Permission denied). Nothing was half-written."
    )
    assert len(raised(shutil.Error([("a", "b", "x" * 400_000)]))) < 600


@pytest.mark.parametrize(
    "error", [ValueError("(os error 28)"), KeyboardInterrupt(), ArtifactError("x"), SafetensorError("header too large")]
)
def test_other_errors_pass_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)), writing(Path("place")):
        raise error
    assert number_of(error) is None


def test_weights_may_be_read_by_whoever_may_read_their_neighbours(tmp_path: Path) -> None:
    save_tensors({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert len(modes) == 1 and [p.name for p in sorted(tmp_path.iterdir())] == ["a.safetensors", "plain"]


def test_numpy_says_what_is_expected_of_it(tmp_path: Path) -> None:
    """The words that are looked for are those that numpy has for a short write."""
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    with pytest.raises(OSError) as error, Path("/dev/full").open("wb", buffering=0) as file:
        np.zeros(10_000_000).tofile(file)
    assert number_of(error.value) == errno.ENOSPC


def test_a_line_of_the_log_that_finds_no_room_ends_the_command(tmp_path: Path) -> None:
    if not Path("/dev/full").is_char_device():
        pytest.skip("no /dev/full here")
    import logging

    handler = RunLog("/dev/full")
    with pytest.raises(EnvironmentLacks, match="/dev/full: the disk is full"):
        handler.handle(logging.LogRecord("optimize", 20, "", 0, "a line", None, None))


def test_a_writer_that_knows_nothing_of_full_disks_still_ends_with_3() -> None:
    known: Any = _of_a_full_disk(OSError(errno.ENOSPC, "No space left on device", "/somewhere/file"))
    assert isinstance(known, EnvironmentLacks) and str(known).startswith("/somewhere/file: the disk is full")
    other = ValueError("x")
    assert _of_a_full_disk(other) is other
