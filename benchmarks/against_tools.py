"""This harness against OpenVINO's benchmark_app, a plain ONNX Runtime loop and torch.utils.benchmark, interleaved.

Same exported file (or module), inputs, batch, threads, thread settings and cores. In every round the three tools come in
an order drawn anew, on the first `threads` of the cores in an order drawn anew; the harness takes its turn right before
the tool's or right after, as a coin falls. benchmark_app is a fresh process every time, since it is made to
be run so; all other processes start anew every life, since two processes of one program differ for as long as they live.
Both processes of eager torch keep what they free: how much of it glibc gives back depends on the largest block that a
process ever freed, and taking it anew costs a call up to 7 %.
Printed is what the harness says a call takes over what the tool says, with the interval of the paired rounds. Exits with
1 where a ratio is off by more than 3 %.

    python benchmarks/against_tools.py exported/digits/final --torch exported/digits/distill --batch 16
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from optimize import rng
from optimize.hardware.environment import environment
from optimize.measure.record import Variant
from optimize.measure.statistics import ratio_interval
from optimize.measure.turns import Worker, drawn_cores, place, thread_environment

LIMIT = 0.03
OURS = {"benchmark_app": "openvino", "onnxruntime loop": "onnxruntime", "torch.utils.benchmark": "torch"}
KEPT = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**34)}  # freed memory stays
Turn = Callable[[int, list[int]], float]  # calls, cores -> median seconds of a call


def main() -> int:
    """Take turns, print the table, write the record."""
    asked = _arguments()
    if asked.serve:
        return _serve(asked)
    if not asked.artifact:
        raise SystemExit("give an artifact with an exported ONNX file, e.g. exported/digits/final")
    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs(asked.artifact, asked.batch, Path(folder))
        taken = _lives(asked, inputs)
    record = {
        "program": "against_tools",
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(asked).items()},
        "environment": environment(),
        "call_s": taken,
        "ratios": {tool: _ratio(taken[tool]) for tool in OURS},
    }
    record["holds"] = all(abs(r["value"] - 1) <= LIMIT for r in record["ratios"].values())
    _show(record)
    if asked.out:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(record) + "\n")
    return 0 if record["holds"] else 1


def _ratio(taken: list[list[float]]) -> dict[str, Any]:
    return ratio_interval([[ours] for ours, _ in taken], [[tool] for _, tool in taken]).to_json()


def _lives(asked: argparse.Namespace, inputs: Path) -> dict[str, list[list[float]]]:
    """By tool, a row a round: median seconds of a call in the harness and in the tool."""
    taken: dict[str, list[list[float]]] = {tool: [] for tool in OURS}
    for life in range(asked.lives):
        opened = _open(asked, inputs)
        try:
            _rounds(asked, life, {name: turn for name, (turn, _) in opened.items()}, taken)
        finally:
            for _, close in opened.values():
                close()
        print(f"life {life + 1} of {asked.lives}", file=sys.stderr)
    return taken


def _rounds(asked: argparse.Namespace, life: int, turns: dict[str, Turn], taken: dict[str, list[list[float]]]) -> None:
    """The rounds of one life, added to what was taken; the first one warms up and is not kept."""
    tools = list(OURS)
    for round_ in range(asked.rounds + 1):
        cores = drawn_cores(asked.seed, life * 1000 + round_)[: asked.threads]
        drawn = rng.generator("against", asked.seed, life, round_)
        for index in drawn.permutation(len(tools)).tolist():
            pair = [OURS[tools[index]], tools[index]]
            found = {name: turns[name](asked.calls, cores) for name in (pair if drawn.random() < 0.5 else pair[::-1])}
            if round_:
                taken[tools[index]].append([found[name] for name in pair])


def _open(asked: argparse.Namespace, inputs: Path) -> dict[str, tuple[Turn, Callable[[], None]]]:
    """Every participant: how it takes a turn, and how it is ended."""
    module = asked.torch or asked.artifact
    ours = {
        runner: _harness(asked, runner, module if runner == "torch" else asked.artifact) for runner in OURS.values()
    }
    loops = {
        "onnxruntime loop": _loop(asked, "onnxruntime", asked.artifact, inputs),
        "torch.utils.benchmark": _loop(asked, "torch", module, inputs),
    }
    return {**ours, **loops, "benchmark_app": (_benchmark_app(asked, inputs), lambda: None)}


def _harness(asked: argparse.Namespace, runner: str, folder: Path) -> tuple[Turn, Callable[[], None]]:
    """A worker of the harness; a turn is what `bench` asks of it."""
    worker = Worker(thread_environment(asked.threads) | (KEPT if runner == "torch" else {}), 600.0)
    variant = Variant(key=runner, folder=str(folder), runner=runner, batch=asked.batch, threads=asked.threads)
    worker.ask({"do": "open", "variant": variant.to_json()})
    worker.ask({"do": "warm", "limit_s": 1.0})

    def turn(calls: int, cores: list[int]) -> float:
        place(worker.pid, cores)
        answer = worker.ask({"do": "turn", "calls": calls, "limit_s": 60.0, "kinds": ["call"]})
        return float(np.median(answer["call_s"]))

    return turn, worker.kill


def _loop(asked: argparse.Namespace, which: str, folder: Path, inputs: Path) -> tuple[Turn, Callable[[], None]]:
    """A process that runs this file's `_serve`: a number of calls a line in, the median seconds out."""
    command = [sys.executable, __file__, "--serve", which, "--inputs", str(inputs), "--threads", str(asked.threads)]
    process = subprocess.Popen(
        [*command, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=_threads(asked) | (KEPT if which == "torch" else {}),
    )

    def turn(calls: int, cores: list[int]) -> float:
        assert process.stdin is not None and process.stdout is not None
        place(process.pid, cores)
        process.stdin.write(f"{calls}\n")
        process.stdin.flush()
        return float(process.stdout.readline())

    def close() -> None:
        process.kill()
        process.wait()

    return turn, close


def _threads(asked: argparse.Namespace) -> dict[str, str]:
    """The environment of a tool: the thread counts that the harness sets for its workers."""
    return {**os.environ, **{name: str(value) for name, value in thread_environment(asked.threads).items()}}


def _benchmark_app(asked: argparse.Namespace, inputs: Path) -> Turn:
    """One run of OpenVINO's own tool; its median is printed with two decimals of a millisecond."""
    tool = shutil.which("benchmark_app", path=str(Path(sys.executable).parent)) or shutil.which("benchmark_app")
    if tool is None:
        raise SystemExit("benchmark_app is not there. pip install openvino")
    files = sorted(inputs.glob("*.npy"))
    shapes = ",".join(f"{f.stem}{list(np.load(f).shape)}".replace(" ", "") for f in files)
    command = [tool, "-m", str(asked.artifact / "onnx" / "model.onnx"), "-d", "CPU", "-api", "sync"]
    one_at_a_time = {"-hint": "none", "-nireq": "1", "-nstreams": "1"}  # as the latency hint has it
    options = one_at_a_time | {"-nthreads": str(asked.threads), "-infer_precision": "f32", "-shape": shapes}
    command += [text for pair in options.items() for text in pair]
    command += ["-i", ",".join(f"{f.stem}:{f}" for f in files)]

    def turn(calls: int, cores: list[int]) -> float:
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if shutil.which("taskset") else []
        once = [*pinned, *command, "-niter", str(calls)]
        done = subprocess.run(once, capture_output=True, text=True, timeout=300, env=_threads(asked))
        found = re.search(r"Median:\s+([\d.]+) ms", done.stdout)
        if found is None:
            raise SystemExit(f"benchmark_app ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-500:]}")
        return float(found[1]) / 1e3

    return turn


def _inputs(artifact: Path, batch: int, folder: Path) -> Path:
    """The harness's own inputs at this batch, one .npy a name."""
    from optimize.architectures.artifact import model_around
    from optimize.diffusion.backend import open_runner
    from optimize.measure.worker import middle_inputs

    with open_runner(artifact, "onnxruntime", threads=1) as network:
        for name, value in middle_inputs(model_around(artifact, network), batch).items():
            np.save(folder / f"{name}.npy", value.numpy())
    return folder


def _serve(asked: argparse.Namespace) -> int:
    """Answer every number of calls with the median seconds of a call, as the tool measures it."""
    feed = {f.stem: np.load(f) for f in asked.inputs.glob("*.npy")}
    measure = {"onnxruntime": _plain_loop, "torch": _timer}[asked.serve](asked, feed)
    for line in sys.stdin:
        print(measure(int(line)), flush=True)
    return 0


def _plain_loop(asked: argparse.Namespace, feed: dict[str, np.ndarray]) -> Callable[[int], float]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = asked.threads
    path = str(asked.artifact / "onnx" / "model.onnx")
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])

    def measure(calls: int) -> float:
        taken = []
        session.run(None, feed)
        for _ in range(calls):
            start = perf_counter()
            session.run(None, feed)
            taken.append(perf_counter() - start)
        return float(np.median(taken))

    return measure


def _timer(asked: argparse.Namespace, feed: dict[str, np.ndarray]) -> Callable[[int], float]:
    import torch
    from torch.utils.benchmark import Timer

    from optimize.architectures.artifact import load_model

    tensors = {name: torch.from_numpy(value) for name, value in feed.items()}
    names = {"module": load_model(asked.artifact).module, "feed": tensors, "torch": torch}
    statement = "with torch.inference_mode():\n    module(**feed)"
    timer = Timer(statement, globals=names, num_threads=asked.threads)

    def measure(calls: int) -> float:
        return float(np.median([timer.timeit(1).median for _ in range(calls)]))

    return measure


def _show(record: dict[str, Any]) -> None:
    print(f"{'tool':24}{'tool ms':>10}{'harness ms':>12}{'ratio':>8}{'95 % interval':>18}   within {LIMIT:.0%}")
    for tool, r in record["ratios"].items():
        taken = 1e3 * np.array(record["call_s"][tool])
        times = [float(np.median(taken[:, 1])), float(np.median(taken[:, 0]))]
        verdict = "yes" if abs(r["value"] - 1) <= LIMIT else "NO"
        if verdict == "NO" and r["low"] <= 1 + LIMIT and r["high"] >= 1 - LIMIT:
            verdict += ", though the interval reaches it: too noisy to tell"
        interval = f"[{r['low']:.3f}, {r['high']:.3f}]"
        print(f"{tool:24}{times[0]:10.3f}{times[1]:12.3f}{r['value']:8.3f}{interval:>18}   {verdict}")
    if shutil.which("trtexec") is None:
        print("trtexec: not on PATH, not compared")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path, nargs="?", help="artifact folder with onnx/model.onnx in FP32")
    parser.add_argument("--torch", type=Path, help="artifact folder for the torch rows; the same where not given")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lives", type=int, default=10, help="times that the processes start anew")
    parser.add_argument("--rounds", type=int, default=6, help="in a life")
    parser.add_argument("--calls", type=int, default=10, help="calls in a turn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON record")
    parser.add_argument("--serve", choices=("onnxruntime", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
