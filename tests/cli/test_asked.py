"""Arguments that no command can use are one short message, and so is what the system says of a file."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optimize.cli.app import app
from optimize.cli.asked import told
from optimize.errors import EnvironmentLacks, OptimizeError, UserError

DIGITS = "9" * 5000


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["plan", "digits", "--cfg", "inf"], "--cfg: given inf. Input should be a finite number"),
        (["plan", "digits", "--latency-ms", "nan"], "--latency-ms: given nan"),
        (
            ["plan", "digits", "--steps", "100000"],
            "Invalid value for '--steps': Input should be less than or equal to 1000",
        ),
        (["plan", "digits", "--batch", "5000"], "less than or equal to 4096"),
        (["plan", DIGITS], "model: 5000 characters; at most 4096"),
        (["plan", "a\0b"], "model: given .*Text holds no NUL"),
        (["verify", "9" * 300], "a name in it is longer than 255 bytes"),
        (["bench", "x", "--batch", DIGITS], "--batch: 5000 characters"),
        (["bench", "x", "--batch", "5000"], '--batch: "5000" is no whole number .* At most 4096'),
        (["bench", "x", "--rounds", DIGITS], "Invalid value for '--rounds'"),
        (["bench", "x", "--seconds", "inf"], "less than or equal to 3600"),
        (["inspect", "x", "--batch", "0"], "greater than or equal to 1"),
        (["serve", "x", "--port", "70000"], "less than or equal to 65535"),
        (["report", DIGITS], "folder: 5000 characters"),
        (["plan", ""], 'an argument: "" is given, nothing'),
        (["export", "x", "--out="], '--out: "" is given'),
        (["bench", "x", "--out", ""], '--out: "" is given'),
        ([DIGITS], "No such command"),
        (["list", f"--{DIGITS}"], "No such option"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_absurd_arguments_are_refused_in_few_words(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, arguments)
    said = str(result.exception) if isinstance(result.exception, OptimizeError) else result.stderr
    assert re.search(says, " ".join(said.replace("│", " ").split())), said
    assert len(said.encode()) <= 2048
    code = result.exception.exit_code if isinstance(result.exception, OptimizeError) else result.exit_code
    assert code == 2


def test_what_the_system_says_of_a_file_is_an_error_of_the_user_or_of_the_machine(tmp_path: Path) -> None:
    for number, kind in ((errno.ENAMETOOLONG, UserError), (errno.EACCES, UserError), (errno.EIO, EnvironmentLacks)):
        error = told(OSError(number, "the reason", str(tmp_path)))
        assert type(error) is kind and str(error) == f"{tmp_path}: the reason."
    assert isinstance(told(MemoryError()), EnvironmentLacks)
    bug = KeyError("x")
    assert told(bug) is bug and told(UserError("x")).args == ("x",)
