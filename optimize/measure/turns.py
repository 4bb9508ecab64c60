"""The interleaved bench: variants in worker processes take turns, one computing at a time, in a new order every round.

Interleaving puts slow drifts of the machine (clock, heat, neighbours) on all variants alike, so that ratios paired by
round stay true. A worker that fails or hangs gives a failed row; the others go on.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import Any

from optimize import rng
from optimize.diffusion.backend import reads_weights
from optimize.diffusion.sampling import Sampler
from optimize.errors import EnvironmentLacks, OptimizeError, UserError
from optimize.hardware import environment
from optimize.measure import machine
from optimize.measure.nvml import Gpu, Watch
from optimize.measure.record import KINDS, Measurement, Variant
from optimize.onnx.check import passed
from optimize.onnx.vetted import onnx_file
from optimize.plain.text import read_json
from optimize.progress import Advance, Progress, preparation, silent

SLOW = 10  # turns that a batch of images may take before its variant sits rounds out
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def bench(
    variants: Sequence[Variant | dict[str, Any]],
    *,
    rounds: int = 7,
    calls_per_round: int = 30,
    turn_s: float = 0.25,
    warm_s: float = 0.6,
    timeout_s: float = 600.0,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    fewest: int | None = None,
    progress: Progress = silent,
) -> list[Measurement]:
    """One Measurement a variant, in the given order; `kinds` may leave out calls or images.

    A turn takes up to `calls_per_round` network calls and as many batches of images, each kind for about `turn_s`
    seconds but at least once, so slow variants give one sample a round; with `fewest` below `rounds`, a variant whose
    batch of images takes more than ten turns draws them in every 2nd, 4th, ... round only, in `fewest` rounds or more,
    and has an empty list for the others. `warm_s` limits each kind of warm-up. A worker
    that answers nothing for `timeout_s` is killed. Raises UserError for keys given twice; nothing else of a variant
    raises: a failed one has status "failed" and a reason, one that this machine cannot run "refused".
    """
    asked = [v if isinstance(v, Variant) else Variant(**v) for v in variants]
    _check(asked, rounds, calls_per_round)
    name = f"{datetime.now(UTC).isoformat()}-{os.getpid()}"
    rows = [_Row(v, name, timeout_s) for v in asked]
    try:
        with progress("benchmark", len(rows) * (rounds + 1)) as advance:
            with preparation(advance):
                _open_all(rows, warm_s, advance)
            for round_ in range(rounds):
                cores = drawn_cores(seed, round_)
                for index in rng.generator("bench", seed, round_).permutation(len(rows)).tolist():
                    every = rows[index].every(turn_s, rounds // fewest if fewest else 1)
                    due = [kind for kind in kinds if kind != "image" or round_ % every == 0]
                    rows[index].turn(calls_per_round, turn_s, due, cores)
                    advance(1, rows[index].about)
        with ThreadPoolExecutor(len(rows) or 1) as pool:
            return list(pool.map(_Row.close, rows))
    finally:
        for row in rows:
            row.kill()


def _open_all(rows: list[_Row], warm_s: float, advance: Advance) -> None:
    """Start the workers, as many at a time as there are cores, since starting is mostly single-threaded imports, beside
    the one that warms up: what computes waits for its turn."""
    alone = threading.Lock()
    checked = _looked_at([row.variant for row in rows])
    with ThreadPoolExecutor(environment.cores() + 1) as pool:
        waiting = {pool.submit(row.open, warm_s, alone, checked): row for row in rows}
        try:
            for done in as_completed(waiting):
                done.result()
                advance(1, f"ready: {waiting[done].about}")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for row in rows:
                row.kill()
            raise


def _looked_at(variants: list[Variant]) -> list[list[Any]]:
    """The ONNX files of the variants that are safe to parse, looked at once here and not by every worker. One that is
    not is left to its workers, whose rows then say why."""
    for folder in dict.fromkeys(v.folder for v in variants if not reads_weights(v.runner)):
        with suppress(OptimizeError):
            onnx_file(Path(folder))
    return passed()


def _check(variants: list[Variant], rounds: int, calls: int) -> None:
    twice = [k for k, n in Counter(v.key for v in variants).items() if n > 1]
    if twice:
        raise UserError(f"bench: keys given twice: {', '.join(twice)}. Give every variant a name of its own.")
    if rounds < 1 or calls < 1:
        raise UserError(f"bench: rounds = {rounds}, calls_per_round = {calls}; both must be 1 or more.")


class WorkerFailed(OptimizeError):
    """A worker answered an error, ended, or did not answer in time; `refused`: this machine lacks what it takes."""

    def __init__(self, reason: str, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class _Row:
    """A variant, its worker while it lives, and what it gave so far."""

    def __init__(self, variant: Variant, bench: str, timeout_s: float) -> None:
        self.variant, self.bench, self.timeout_s = variant, bench, timeout_s
        self.about = about(variant)
        self.worker: Worker | None = None
        self._ended = False
        self._lock = threading.Lock()  # between the thread that starts the worker and the one that ends it
        self.gpu: Gpu | None = None
        self.found: dict[str, Any] = {"call_s": [], "image_s": [], "memory": {}, "conditions": []}

    def open(self, warm_s: float, alone: threading.Lock, checked: list[list[Any]]) -> None:
        """Start the worker and load, `checked` ONNX files without a look (see `_looked_at`); then, holding `alone`, make
        the first call and warm up."""
        self.found["threads"] = thread_environment(self.variant.threads)
        with self._lock:
            if self._ended:  # broken off while this row waited for its thread
                return
            self.worker = Worker(self.found["threads"], self.timeout_s)
        opened = self._ask({"do": "open", "variant": self.variant.to_json(), "checked": checked})
        with alone:
            warmed = self._ask({"do": "warm", "limit_s": warm_s})
        if opened is None or warmed is None or self.worker is None:
            return
        cold = {"process_s": self.worker.start_s, **opened.pop("cold"), **warmed.pop("cold")}
        self.gpu = _gpu(opened.pop("gpu"))
        self.found |= opened | warmed | {"cold": cold}

    def every(self, turn_s: float, at_most: int) -> int:
        """The images of every how many rounds are timed: the least power of two that brings their share of a round below
        ten turns, up to `at_most`. Powers of two, so that two variants that sit out have rounds in common."""
        every, images = 1, self.found["image_s"]
        while images and images[0] and sum(images[0]) > SLOW * turn_s * every and 2 * every <= at_most:
            every *= 2
        return every

    def turn(self, calls: int, limit_s: float, kinds: Sequence[str], cores: Sequence[int]) -> None:
        """Samples of one round, and the conditions they were taken under; on the first of `cores` where the variant has
        fewer threads than there are cores."""
        if self.worker is None:
            return
        if self.variant.threads and self.variant.threads < len(cores):
            place(self.worker.pid, cores[: self.variant.threads])
        before = machine.now()
        with ExitStack() as stack:
            watch = stack.enter_context(Watch(self.gpu, self.worker.pid)) if self.gpu else None
            taken = self._ask({"do": "turn", "calls": calls, "limit_s": limit_s, "kinds": list(kinds)})
        for name, values in (taken or {}).items():
            self.found[name].append(values)
        if taken is not None and "image" not in kinds and self.found["image_s"]:
            self.found["image_s"].append([])  # sat out
        gpu = {"gpu": watch.summary()} if watch else {}
        self.found["conditions"].append(machine.between(before, machine.now()) | gpu)

    def close(self) -> Measurement:
        """The Measurement; the worker has ended."""
        last = self._ask({"do": "close"}) or {}
        self.found["memory"] |= last.get("memory", {}) | _device_peak(self.found["conditions"])
        self.found["energy"] = last.get("energy", {})
        if self.worker is not None:
            self.worker.wait(10.0)
        self.kill()
        return Measurement(self.variant, bench=self.bench, environment=environment.environment(), **self.found)

    def kill(self) -> None:
        """End the worker and whatever it started; no other is started."""
        with self._lock:
            self._ended, worker, self.worker = True, self.worker, None
        if worker is not None:
            worker.kill()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The worker's answer; None, and a failed row, where there is none."""
        if self.worker is None:
            return None
        try:
            return self.worker.ask(request)
        except WorkerFailed as error:
            self.found |= {"status": "refused" if error.refused else "failed", "reason": str(error)}
            self.kill()
            return None


def about(variant: Variant) -> str:
    """What is timed, in words: `final/openvino:bf16/16, ddim × 2`; the key alone where the artifact names no sampler."""
    sampler = variant.sampler
    with suppress(OptimizeError, ValueError, LookupError, TypeError):
        sampler = sampler or Sampler(**read_json(Path(variant.folder) / "sampler.json")["sampler"])
    return variant.key + (f", {sampler.solver} × {sampler.steps}" if sampler else "")


def drawn_cores(seed: int, round_: int) -> list[int]:
    """The cores this process may use, in an order drawn anew every round: a core may be busier than another, and a
    process stays where it is, so without this two workers would differ for as long as they live."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    found = sorted(os.sched_getaffinity(0))
    return [found[i] for i in rng.generator("cores", seed, round_).permutation(len(found)).tolist()]


def place(pid: int, cores: Sequence[int]) -> None:
    """Keep every thread of a process on these cores."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(ProcessLookupError):  # a thread that has just ended
            os.sched_setaffinity(int(task.name), cores)


def _gpu(which: str | int | None) -> Gpu | None:
    """The GPU a worker computes on, to be watched; None on the CPU, and where NVML cannot be asked."""
    if which is None:
        return None
    try:
        return Gpu(which)
    except EnvironmentLacks as error:
        logging.getLogger(__name__).warning("turns are not watched: %s", error)
        return None


def _device_peak(turns: list[dict[str, Any]]) -> dict[str, int]:
    """The most device memory NVML saw the worker hold."""
    seen = [p for t in turns if (p := t.get("gpu", {}).get("process_peak_bytes")) is not None]
    return {"device_process_peak_bytes": max(seen)} if seen else {}


class Worker:
    """A worker process. `start_s` is how long it took to say that it is ready."""

    def __init__(self, threads: dict[str, Any], timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._said: queue.Queue[str] = queue.Queue()
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._start = perf_counter()
        self.start_s: float | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-m", "optimize.measure.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
            env={**os.environ, **{k: str(v) for k, v in threads.items()}, "PYTHONPATH": _python_path()},
        )
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer. Raises WorkerFailed."""
        if self.start_s is None:
            self._answer("start")
            self.start_s = perf_counter() - self._start
        assert self._process.stdin is not None
        with suppress(OSError):  # where it has ended, its last line, or the lack of one, says why
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        return self._answer(request["do"])

    def _answer(self, asked: str) -> dict[str, Any]:
        try:
            line = self._said.get(timeout=self.timeout_s)
        except queue.Empty:
            raise WorkerFailed(f"worker: no answer to {asked} within {self.timeout_s:g} s; killed") from None
        if not line:
            code = self._process.wait()
            raise WorkerFailed(f"worker: ended with code {code} at {asked}. Last words: {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerFailed(answer["error"], answer.get("refused", False))
        return answer

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._said.put(line)
        self._said.put("")

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().splitlines() if line.strip()]
        return " | ".join(lines[-3:]) or "none"

    def wait(self, limit_s: float) -> None:
        """Let the process put its things away, for at most `limit_s`."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)

    def kill(self) -> None:
        """End the process and its children; does nothing where they have ended."""
        assert self._process.stdin is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()
        with suppress(OSError):
            self._process.stdin.close()


def thread_environment(threads: int | None) -> dict[str, Any]:
    """Environment of a worker: its thread counts. How threads wait is left as the libraries have it, as users do: asked
    to sleep, eager torch loses a third of its speed, which would flatter every ratio to it."""
    return dict.fromkeys(THREAD_VARIABLES, threads or environment.cores())


def _python_path() -> str:
    """PYTHONPATH that finds this package wherever it lies."""
    here = str(Path(__file__).resolve().parents[2])
    return os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
