"""Ctrl-C: one line that says how to go on, exit code 130, no traceback from any process, and none of them left behind.

A terminal sends the signal to every process of the group, so that is what these tests do.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from optimize.cli.app import interrupted_text
from optimize.engines import make
from optimize.quality import shards

LIMIT_S = 600.0  # for anything to happen, on however slow a machine

STAND_IN = """
import importlib, sys, time
from optimize.cli import app
def wait(*a, **k):
    print("ready", flush=True)
    time.sleep(600)
setattr(importlib.import_module("optimize.{module}"), "{name}", wait)
sys.argv = ["optimize", *sys.argv[1:]]
app.main()
"""


def start(line: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A process that leads a group of its own and hears Ctrl-C, which those started in a shell's background do not."""
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return subprocess.Popen(
            line,
            stdout=out,
            stderr=err,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type,return-value]
        )


def until(happens: Callable[[], bool], process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for a moment of a running process."""
    deadline = time.monotonic() + LIMIT_S
    while not happens():
        assert process.poll() is None, (folder / "out").read_text() + (folder / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that still run, after a moment to end."""
    psutil.wait_procs(processes, timeout=10)
    return [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def interrupt(process: subprocess.Popen[bytes], folder: Path) -> tuple[str, list[psutil.Process]]:
    """Ctrl-C: what was said on stderr, and which processes it had started are still there. Ends with code 130."""
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(LIMIT_S) == 130
    assert "Traceback" not in (folder / "out").read_text()
    return (folder / "err").read_text(), alive(started)


@pytest.mark.parametrize(
    ("arguments", "module", "name", "does"),
    [
        (["run", "smoke"], "runs.execute", "run", "goes on where it stopped"),
        (["bench", "a", "--runner", "torch"], "measure.bench", "variants", "begins again"),
        (["plan", "my model"], "planning.outlook", "plan_for", "begins again"),
        (["compare", "a", "b"], "runs.comparison", "compare", "begins again"),
    ],
)
def test_ctrl_c_is_one_line_that_names_the_command(
    arguments: list[str], module: str, name: str, does: str, tmp_path: Path
) -> None:
    code = STAND_IN.format(module=module, name=name)
    given = [*arguments, "--exported", str(tmp_path)] if arguments[0] == "run" else arguments
    process = start([sys.executable, "-c", code, *given], tmp_path)
    until(lambda: "ready" in (tmp_path / "out").read_text(), process, tmp_path)
    said, left = interrupt(process, tmp_path)
    told = " ".join(f"'{a}'" if " " in a else a for a in given)
    assert said == f"interrupted; the same command {does}: optimize {told}\n" and not left


def test_the_command_is_named_as_it_was_given() -> None:
    assert interrupted_text("run", ["/usr/bin/optimize", "run", "a b"]).endswith(": optimize run 'a b'")
    assert interrupted_text("run", ["/x/optimize/__main__.py", "run", "digits"]).endswith(
        "python -m optimize run digits"
    )


def test_a_command_that_was_stopped_before_it_was_read_is_known_by_its_words() -> None:
    assert "goes on where it stopped" in interrupted_text("", ["/usr/bin/optimize", "run", "digits"])
    assert "begins again" in interrupted_text("", ["/usr/bin/optimize", "plan", "digits"])
    assert "begins again" in interrupted_text("", ["/usr/bin/optimize", "--version"])


SWALLOWED = """
import os, signal, sys
from optimize.cli import app
from optimize.errors import ArtifactError
from optimize.runs import comparison
def read(*a):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:  # as native code does
        raise ArtifactError("not a whole file") from None
comparison.compare = read
sys.argv = ["optimize", "compare", "a", "b"]
app.main()
"""


def test_an_error_that_native_code_makes_of_ctrl_c_is_no_fault_of_a_file(tmp_path: Path) -> None:
    process = start([sys.executable, "-c", SWALLOWED], tmp_path)
    assert process.wait(LIMIT_S) == 130
    assert (tmp_path / "err").read_text() == "interrupted; the same command begins again: optimize compare a b\n"


TREE = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True); print(p.pid, flush=True); time.sleep(600)"  # fmt: skip


def test_a_tree_of_processes_ends_whole_though_its_leaves_have_sessions_of_their_own() -> None:
    top = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert top.stdout is not None
    leaf = psutil.Process(int(top.stdout.readline()))
    shards.end_tree(top.pid)
    assert top.wait(LIMIT_S) == -signal.SIGKILL and not alive([leaf])
    top.stdout.close()
    shards.end_tree(top.pid)  # has ended


class Stop(BaseException):
    """Stands for KeyboardInterrupt, which would end the tests where it got out."""


def test_workers_of_a_job_end_with_what_breaks_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    whole = shards.end_tree

    def stop(*_: object, **__: object) -> None:
        raise Stop

    monkeypatch.setattr(shards, "end_tree", lambda pid: (ended.append(pid), whole(pid)))
    monkeypatch.setattr(subprocess.Popen, "communicate", stop)
    with pytest.raises(Stop):
        shards._run([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ))
    assert len(ended) == 1 and not psutil.pid_exists(ended[0])


def test_a_build_ends_with_what_breaks_it_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[subprocess.Popen[str]] = []

    class Watch:
        def __init__(self, process: subprocess.Popen[str], limit: int) -> None:
            started.append(process)

        def __enter__(self) -> None:
            return None

        def __exit__(self, *_: object) -> None:
            return None

    class Order:
        module = "tensorrt"
        settings = type("Settings", (), {"minutes": 1.0})

        def job(self, cache: str) -> dict[str, str]:
            return {}

    real = subprocess.Popen.wait

    def wait(self: subprocess.Popen[str], timeout: float | None = None) -> int:
        if timeout == 60.0:
            raise Stop
        return real(self, timeout)

    monkeypatch.setattr(make.memory, "Watch", Watch)
    monkeypatch.setattr(subprocess.Popen, "wait", wait)
    with pytest.raises(Stop):
        make._built(Order(), tmp_path, "x", 1, "")  # type: ignore[arg-type]
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.slow
def test_ctrl_c_at_several_moments_of_a_run_then_the_same_command_goes_on(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "optimize", "run", "smoke", "--exported", str(tmp_path / "exported")]

    def out() -> str:
        return (tmp_path / "out").read_text()

    for marker, seconds in (("load the model: done", 0.5), ("recover: done", 1.0), ("calibrate: done", 2.0), ("parity quantize: done", 1.0)):  # fmt: skip
        process = start(line, tmp_path)
        until(lambda marker=marker: marker in out(), process, tmp_path)  # type: ignore[misc]
        time.sleep(seconds)
        check_interrupted(process, line, tmp_path)
    for seconds in (0.0, 5.0, 60.0):  # while workers start, and later
        process = start(line, tmp_path)
        until(lambda process=process: bool(workers(process)), process, tmp_path)  # type: ignore[misc]
        time.sleep(seconds)
        check_interrupted(process, line, tmp_path)
    done = subprocess.run(line, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "recover" not in done.stdout and (tmp_path / "exported" / "smoke" / "report.html").is_file()


def workers(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Worker processes of the bench."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if p.is_running() and "optimize.measure.worker" in p.cmdline()]


def check_interrupted(process: subprocess.Popen[bytes], line: list[str], folder: Path) -> None:
    said, left = interrupt(process, folder)
    told = "python -m optimize " + " ".join(line[3:])
    assert said == f"interrupted; the same command goes on where it stopped: {told}\n" and not left
