"""What the harness costs: around a call, in a turn, and for a suite of 40 rows.

Wrapping: a runner's call with its backend replaced by one that answers at once, over the backend called as its own
documentation does (numpy in, numpy out), alternating in one process. Turn: how much longer a turn takes than the
samples it returns. Both at most 1 %. `--suite` runs `optimize bench` with its defaults over the given artifacts until
there are 40 rows, which must take at most 10 minutes; `--suite-only` runs nothing else.

    python benchmarks/overhead.py exported/digits/final [--suite exported/digits/*]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console

from optimize import rng
from optimize.cli.bars import rich_progress
from optimize.hardware.environment import environment
from optimize.measure import machine
from optimize.measure.bench import FEWEST, variants
from optimize.measure.record import Variant
from optimize.measure.statistics import ratio_interval
from optimize.measure.timing import no_garbage_collection
from optimize.measure.turns import Worker, bench, thread_environment
from optimize.measure.worker import middle_inputs

LIMIT, ROWS, SUITE_S = 0.01, 40, 600.0
Call = Callable[[], Any]


def main() -> int:
    """Measure, print, write the record."""
    asked = _arguments()
    record: dict[str, Any] = {"program": "overhead", "environment": environment(), "wrapping": {}, "turn": {}}
    record["settings"] = {k: [str(x) for x in v] if isinstance(v, list) else str(v) for k, v in vars(asked).items()}
    for runner in () if asked.suite_only else ("onnxruntime", "openvino"):
        record["wrapping"][runner] = wrapping(asked.artifact, runner, asked)
        record["turn"][runner] = turn(asked.artifact, runner, asked)
    if asked.suite:
        record["suite"] = suite(asked.suite)
    _show(record)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(record) + "\n")
    return 0 if _holds(record) else 1


def wrapping(folder: Path, runner: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What the runner adds to a call, as a share of the raw call, with its interval; random order in every round.

    Two sessions of one backend differ by more than a wrapping costs (where their memory lies), so the runner is timed
    around a backend that does nothing.
    """
    import torch

    from optimize.architectures.artifact import model_around
    from optimize.diffusion.backend import open_runner

    with torch.inference_mode(), open_runner(folder, runner, threads=asked.threads) as network:
        feed = middle_inputs(model_around(folder, network), asked.batch)
        arrays = {name: value.numpy() for name, value in feed.items()}
        raw = {"onnxruntime": _raw_onnxruntime, "openvino": _raw_openvino}[runner](folder, arrays, asked.threads)
        _hollow(network, runner, asked.batch, network(**feed).numpy())
        calls: list[Call] = [lambda: network(**feed), raw]
        taken: list[list[list[float]]] = [[], []]
        for round_ in range(asked.rounds + 3):  # three to warm up
            for which in rng.generator("overhead", round_).permutation(2).tolist():
                samples = _samples(calls[which], asked.calls)
                if round_ >= 3:
                    taken[which].append(samples)
    return ratio_interval(*taken).to_json()


class _Hollow:
    """A session and a request in one that have the answer ready."""

    def __init__(self, output: np.ndarray) -> None:
        self._output = [output]

    def run_with_iobinding(self, *_: Any) -> None:
        return None

    def infer(self, *_: Any, **__: Any) -> list[np.ndarray]:
        return self._output


def _hollow(network: Any, runner: str, batch: int, output: np.ndarray) -> None:
    """Take the backend out of an opened runner."""
    if runner == "onnxruntime":
        network._bound._session = _Hollow(output)
    else:
        network._requests[batch] = (_Hollow(output), *network._requests[batch][1:])


def _samples(call: Call, count: int) -> list[float]:
    found = []
    with no_garbage_collection():
        call()
        for _ in range(count):
            start = perf_counter()
            call()
            found.append(perf_counter() - start)
    return found


def _raw_onnxruntime(folder: Path, arrays: dict[str, np.ndarray], threads: int) -> Call:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    path = str(folder / "onnx" / "model.onnx")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, arrays)


def _raw_openvino(folder: Path, arrays: dict[str, np.ndarray], threads: int) -> Call:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(folder / "onnx" / "model.onnx"))
    model.reshape({name: list(value.shape) for name, value in arrays.items()})
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda: request.infer(arrays, share_inputs=True, share_outputs=True)


def turn(folder: Path, runner: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Seconds of turns, as the bench waits for them, over the seconds of the samples they return, less one.

    The call before the samples, which takes the caches back, is measured work and counted as one more sample.
    """
    worker = Worker(thread_environment(asked.threads), 600.0)
    try:
        variant = Variant(key=runner, folder=str(folder), runner=runner, batch=asked.batch, threads=asked.threads)
        worker.ask({"do": "open", "variant": variant.to_json()})
        worker.ask({"do": "warm", "limit_s": 0.6})
        shares = []
        for _ in range(asked.rounds):
            start, before = perf_counter(), machine.now()
            taken = worker.ask({"do": "turn", "calls": 10**6, "limit_s": asked.seconds})
            machine.between(before, machine.now())
            whole = perf_counter() - start
            first = float(np.median(taken["call_s"]))
            shares.append(whole / (sum(taken["call_s"]) + sum(taken["image_s"]) + first) - 1)
    finally:
        worker.kill()
    low, high = np.percentile(shares, (2.5, 97.5))
    return {"value": float(np.median(shares)), "low": float(low), "high": float(high), "n": len(shares)}


def suite(artifacts: list[Path]) -> dict[str, Any]:
    """Seconds of 40 rows with the defaults of `optimize bench`."""
    runners, batches = ("torch", "onnxruntime", "openvino"), (1, 2, 4, 8, 16)
    asked = variants(artifacts, runners, batches)[:ROWS]
    start = perf_counter()
    with rich_progress(Console(stderr=True)) as progress:
        rows = bench(asked, rounds=20, turn_s=0.1, warm_s=0.6, fewest=FEWEST, progress=progress)
    failed = {r.key: r.reason for r in rows if not r.done}
    return {"rows": len(rows), "failed": failed, "seconds": perf_counter() - start}


def _holds(record: dict[str, Any]) -> bool:
    wrapped = all(r["value"] <= LIMIT for r in record["wrapping"].values())
    turned = all(r["value"] <= LIMIT for r in record["turn"].values())
    timed = record.get("suite", {"rows": ROWS, "seconds": 0.0, "failed": {}})
    return wrapped and turned and timed["seconds"] <= SUITE_S and timed["rows"] == ROWS and not timed["failed"]


def _show(record: dict[str, Any]) -> None:
    print(f"{'overhead':34}{'share':>9}{'95 %':>20}   asked: ≤ {LIMIT:.0%}")
    for runner, r in record["wrapping"].items():
        _line(f"call of runner {runner}", r["value"], r["low"], r["high"])
    for runner, r in record["turn"].items():
        _line(f"turn of {runner}", r["value"], r["low"], r["high"])
    if "suite" in record:
        s = record["suite"]
        print(
            f"{s['rows']} rows in {s['seconds']:.0f} s, asked: {ROWS} within {SUITE_S:.0f} s; failed: {s['failed'] or 'none'}"
        )


def _line(name: str, value: float, low: float, high: float) -> None:
    verdict = "yes" if value <= LIMIT else "NO"
    interval = f"[{low:.2%}, {high:.2%}]"
    print(f"{name:34}{value:9.2%}{interval:>20}   {verdict}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, help="artifact folder with onnx/model.onnx in FP32")
    parser.add_argument("--suite", type=Path, nargs="*", default=[], help="artifact folders of the 40 rows")
    parser.add_argument("--suite-only", action="store_true", help="no wrapping and no turns")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.1, help="of a turn, as optimize bench has it")
    parser.add_argument("--out", type=Path, help="JSON record")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
