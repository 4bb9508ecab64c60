"""The command line called in this process, and what came of it: exit code, what was said, what it wrote where it may not.

`complaint` says in words what is wrong with an outcome. The benchmark's workers are threads here; all else is as users
have it.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import queue
import re
import signal
import stat
import sys
import threading
import traceback
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, process_time
from types import FrameType
from typing import Any
from unittest import mock

LIMIT_S = 60.0  # of this process's processors, for what takes a second or two; and PATIENCE times that of the clock
PATIENCE = 5
LONGEST = 2048  # bytes of a message
DISGUISED = re.compile(r"\b(Attribute|Key|Index|Type|Name|ZeroDivision|Unicode\w*|Recursion|Overflow|Lookup)Error\b")
OF_A_LIBRARY = "cannot be built from this config"  # whose words are then shown
REFUSED = frozenset({2, 3})
EITHER = frozenset({0, 2, 3})


class TookTooLong(BaseException):
    """The time is over; no handler of errors catches it."""


@dataclass(frozen=True)
class Outcome:
    """What a command did, in so many seconds of the processors: `crash` is the traceback of an exception that nobody meant,
    `changed` the files that it touched and may not."""

    arguments: tuple[str, ...]
    code: int | None
    out: str
    err: str
    seconds: float
    crash: str = ""
    changed: tuple[str, ...] = ()


def call(arguments: Sequence[str], place: Path, limit_s: float = LIMIT_S) -> Outcome:
    """Run a command in the folder `place`/cwd; of `place`, it may write to the folder out alone, and where it refuses, it
    may only add to that."""
    before, start = _files(place), process_time()
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=e) for e in ("strict", "backslashreplace"))
    code, crash = None, ""
    with _surroundings(arguments, place / "cwd", out, err):
        try:
            with _limited(limit_s):
                _main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except TookTooLong:
            crash = f"no end within {limit_s:g} s"
        except BaseException as error:  # noqa: BLE001 (this is what the corpus looks for)
            crash = _crashed(error)
    seconds, texts = process_time() - start, [_text(stream) for stream in (out, err)]
    return Outcome(tuple(arguments), code, *texts, seconds, crash, _changed(before, _files(place), code == 0))


def _crashed(error: BaseException) -> str:
    """What was raised, and the last places of this package that it came through."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/optimize/" in f.filename]
    where = [f"optimize/{f.filename.rpartition('/optimize/')[2]}:{f.lineno} {f.name}" for f in frames[-3:]]
    return f"{type(error).__name__}: {str(error)[:300]} [{' > '.join(where)}]"


def _main() -> None:
    from optimize.cli.app import main

    main()


@contextlib.contextmanager
def _surroundings(arguments: Sequence[str], cwd: Path, out: io.TextIOBase, err: io.TextIOBase) -> Iterator[None]:
    """What a process of its own would have: working directory, arguments, streams; and what a command leaves is put back."""
    log, interrupt = logging.getLogger("optimize"), signal.getsignal(signal.SIGINT)
    handlers, level, variables = list(log.handlers), log.level, dict(os.environ)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.chdir(cwd))
            stack.enter_context(mock.patch.object(sys, "argv", ["optimize", *arguments]))
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            stack.enter_context(_stood_in())
            yield
    finally:
        signal.signal(signal.SIGINT, interrupt)
        for handler in [h for h in log.handlers if h not in handlers]:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(level)
        os.environ.clear()
        os.environ.update(variables)


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """TookTooLong where the block computes for longer, or waits for PATIENCE times that."""
    start, computed = perf_counter(), process_time()

    def look(number: int, frame: FrameType | None) -> None:
        if process_time() - computed > seconds or perf_counter() - start > PATIENCE * seconds:
            raise TookTooLong

    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    raw = stream.detach()
    assert isinstance(raw, io.BytesIO)
    return raw.getvalue().decode("utf-8", "replace")


Seen = dict[str, tuple[int | bytes, ...]]


def _files(place: Path) -> Seen:
    """Every file and folder below a place, with what changes where one is written or replaced; in out, where files may be
    made anew, with what is in them."""
    found: Seen = {}
    for folder, folders, files in os.walk(place):
        for name in (*folders, *files):
            path = Path(folder) / name
            about, where = path.lstat(), path.relative_to(place).as_posix()
            if where.startswith("out/"):
                content = path.read_bytes() if stat.S_ISREG(about.st_mode) else b""
                found[where] = (stat.S_IFMT(about.st_mode), content)
            else:
                times = (0, 0) if name in folders else (about.st_size, about.st_mtime_ns)
                found[where] = (about.st_mode, about.st_ino, *times)
    return found


def _changed(before: Seen, after: Seen, done: bool) -> tuple[str, ...]:
    other = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return tuple(sorted(n for n in other if not n.startswith("out") or (n in before and not done)))


def complaint(outcome: Outcome, allowed: Collection[int]) -> str:
    """What is wrong with an outcome; empty where nothing is."""
    message = outcome.err.strip() or outcome.out.strip()
    words = " ".join(message.split())  # tables break lines
    if outcome.crash:
        said = outcome.crash
    elif outcome.code not in allowed:
        said = f"exit code {outcome.code}, allowed {sorted(allowed)}: {message[-600:]}"
    elif "Traceback (most recent call last)" in outcome.out + message:
        said = f"a traceback was printed: {message[-600:]}"
    elif found := DISGUISED.search("" if not outcome.code or OF_A_LIBRARY in words else words):
        said = f"an exception of Python instead of words ({found[0]}): {message[-600:]}"
    elif outcome.code and len(message.encode()) > LONGEST:
        said = f"a message of {len(message.encode())} bytes: {message[:200]} … {message[-200:]}"
    elif outcome.code and not message and not outcome.out.strip():
        said = f"exit code {outcome.code} without a word"
    elif outcome.changed:
        said = f"exit code {outcome.code}, and changed {', '.join(outcome.changed[:5])}: {message[-600:]}"
    else:
        return ""
    return f"optimize {' '.join(a[:80] for a in outcome.arguments)}: {said}"


@contextlib.contextmanager
def _stood_in() -> Iterator[None]:
    """Workers of the bench as threads, a server that is told to serve and does not, ONNX files looked at in this process;
    and where a network would be traced, a command is taken to be done."""
    from optimize.exporters import onnx as exporter
    from optimize.measure import turns
    from optimize.onnx import check, rules, trace
    from optimize.serving import quick

    with contextlib.ExitStack() as stack:
        for module, name, other in (
            (turns, "Worker", Inside),
            (quick, "open_server", _server),
            (check, "_isolated", lambda path, size: tuple(rules.examine(path))),
            (trace, "traced", _accepted),
            (exporter, "traced", _accepted),
        ):
            stack.enter_context(mock.patch.object(module, name, other))
        yield


def _accepted(*_: Any, **__: Any) -> Any:
    raise SystemExit(0)


@contextlib.contextmanager
def _server(*_: Any, **__: Any) -> Iterator[Any]:
    yield mock.Mock(server_address=("127.0.0.1", 8000))


class Inside:
    """A bench's worker as a thread of this process. An error that nobody meant is raised, and not a failed row."""

    pid, start_s = 0, 0.0

    def __init__(self, threads: dict[str, Any], timeout_s: float) -> None:
        self._requests: queue.Queue[str] = queue.Queue()
        self._replies: queue.Queue[str | BaseException] = queue.Queue()
        self._timeout_s = timeout_s
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        from optimize.measure import worker

        replies: Any = mock.Mock(write=self._replies.put)
        try:
            worker.serve(iter(self._requests.get, ""), replies)  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 (raised again where it was asked)
            self._replies.put(error)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer; WorkerFailed as a process's."""
        from optimize.errors import EnvironmentLacks, OptimizeError
        from optimize.measure.turns import WorkerFailed

        self._requests.put(json.dumps(request))
        reply = self._replies.get(timeout=self._timeout_s)
        if isinstance(reply, OptimizeError):
            raise WorkerFailed(str(reply), isinstance(reply, EnvironmentLacks))
        if isinstance(reply, BaseException):
            raise reply
        return json.loads(reply)

    def wait(self, limit_s: float) -> None:
        """Nothing is waited for."""

    def kill(self) -> None:
        """The thread ends with its requests."""
        self._requests.put("")


def shortened(outcome: Outcome) -> Outcome:
    """The same without long texts, to be kept."""
    return replace(outcome, out=outcome.out[:500], err=outcome.err[:LONGEST], crash=outcome.crash[-2000:])
