"""Everything that waits for an NVIDIA GPU, in one call of less than ten minutes; a dated record says what came of it.

    python benchmarks/on_gpu.py --out records --minutes 9
    python benchmarks/on_gpu.py --out records --parts bench --networks sdxl --ways "torch fp16" --batches 16

Parts: `tests` (marked gpu), `kits` (build kits, and whether plans of TensorRT-RTX for other SMs run here), `bench`
(U-Nets of Stable Diffusion 1.5's and SDXL's shape, random weights: latency, memory, distance from the roofline of the
listed peaks, in the library's own bench). What is not possible here is a refused row, what breaks a failed one, each with
its reason, and so is what there was no time for: the cheapest rows come first. The record is rewritten after every row.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

from gpu_networks import Preparer, refusal
from networks import FULL, TINY

from optimize.errors import EnvironmentLacks, OptimizeError
from optimize.hardware import environment
from optimize.hardware.devices import here, memory_gb
from optimize.hardware.gpus import gpus
from optimize.hardware.memory import available
from optimize.measure.bench import append, numbers
from optimize.measure.record import Measurement, Variant
from optimize.measure.turns import bench
from optimize.roofline.predict import predict
from optimize.roofline.rates import Rates
from optimize.storage.commit import write_json_atomically

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]
PEAKS = Rates(name="listed peaks", compute={"default": 1.0}, bandwidth=1.0, overhead_s=0.0, spread=0.0, samples=2)
PROBES = ("own", "8.0", "8.6", "8.9", "untold")  # SMs that a kit's engine is built for by TensorRT-RTX
TESTS_SHARE = 0.4  # of the time that tests may take
WORKER_BYTES = 40 * 10**9  # of memory for each artifact that is made at once: SDXL's takes half of it
SECONDS = (30.0, 60.0, 120.0, 240.0)  # that a group of each tier should have left


@dataclass(frozen=True)
class Way:
    """One way to run a network: which artifact, which runner, and the format its roofline is drawn for."""

    name: str
    kind: str
    runner: str
    format: str
    tier: int  # the cheap ones come first
    options: dict[str, Any] = field(default_factory=dict)
    graphs: bool = False


def _ways() -> Iterator[Way]:
    cuda = {"device": "cuda"}
    for precision in ("fp16", "bf16"):
        about = cuda | {"precision": precision}
        for graphs in (False, True):
            more = " graphs" if graphs else ""
            yield Way(f"torch {precision}{more}", "weights", "torch", precision, 0, about, graphs)
            yield Way(f"onnxruntime {precision}{more}", precision, "onnxruntime", precision, 1, cuda, graphs)
            yield Way(f"torch_compile {precision}{more}", "weights", "torch_compile", precision, 2, about, graphs)
    tuned = cuda | {"precision": "fp16", "autotune": True}
    yield Way("torch_compile fp16 autotune", "weights", "torch_compile", "fp16", 3, tuned)
    yield Way("torch_compile fp16 autotune graphs", "weights", "torch_compile", "fp16", 3, tuned, True)
    for kind in ("int8", "fp8"):
        yield Way(f"onnxruntime {kind}", kind, "onnxruntime", kind, 1, cuda)
    for runner, kind in product(("tensorrt_rtx", "tensorrt"), ("fp16", "int8", "fp8")):
        yield Way(f"{runner} {kind} graphs", kind, runner, kind, 1, cuda, True)


WAYS = tuple(_ways())
REHEARSAL = (
    Way("torch fp32", "weights", "torch", "fp32", 0),
    Way("onnxruntime fp32", "fp32", "onnxruntime", "fp32", 1),
)


class Run:
    """The record of one call: rows are added as they come, each time the file is rewritten whole."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self._start = args, time.monotonic()
        self.preparer: Any = None
        stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
        self.path = args.out / f"on_gpu-{environment.device_class()}-{stamp}.json"
        self.raw = self.path.with_suffix(".measurements.jsonl")
        self.record: Row = {
            "schema": 1,
            "date": stamp,
            "command": " ".join(["python", *sys.argv]),
            "environment": environment.environment(),
            "rows": [],
        }
        self.write()

    @property
    def left(self) -> float:
        """Seconds that remain."""
        return float(60 * self.args.minutes - (time.monotonic() - self._start))

    def add(self, row: Row) -> None:
        """Keep and show a row."""
        self.record["rows"].append(row)
        self.write()
        print(line(row), flush=True)

    def write(self) -> None:
        """The record as it stands."""
        self.record["seconds"] = round(time.monotonic() - self._start, 1)
        write_json_atomically(self.path, self.record)


def line(row: Row) -> str:
    """A row for a reader."""
    name = f"{row['part']} {row['name']}" + (f", batch {row['batch']}" if "batch" in row else "")
    if row["status"] != "done":
        return f"{name:60} {row['status']}: {row['reason']}"
    if "call_s" not in row:
        return f"{name:60} {row['said']}"
    call, memory = 1e3 * row["call_s"]["p50"], row["device_peak_bytes"]
    share = row["roofline"].get("share")
    said = f"{call:.2f} ms, {'?' if memory is None else f'{memory / 1e9:.2f}'} GB"
    return f"{name:60} {said}" + (f", {share:.0%} of the roofline" if share else "")


def missing(device: str) -> str:
    """Why nothing can run on `device` here; empty where it can."""
    if device == "cpu":
        return ""
    if not gpus():
        return "no NVIDIA GPU is visible here: neither nvidia-ml-py nor /proc/driver/nvidia tells of one"
    import torch

    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no CUDA device"


def tests(run: Run) -> Iterator[Row]:
    """The tests marked gpu: how many passed, failed and were skipped, and what the latter two say. They may take a part
    of the time alone."""
    seconds = max(min(run.left, 60 * run.args.minutes * TESTS_SHARE), 1.0)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-o", "addopts=", f"--junitxml={report}", "tests"]
        command += ["--continue-on-collection-errors"]  # a file that misses a package does not keep the others from it
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired as error:
            said = error.stdout.decode(errors="replace") if isinstance(error.stdout, bytes) else error.stdout or ""
            so_far = ", ".join(f"{said.count(f' {word} ')} {word.lower()}" for word in ("PASSED", "FAILED", "SKIPPED"))
            raise OptimizeError(f"not done after {seconds:.0f} s; so far {so_far}") from None
        if not report.is_file():
            raise OptimizeError(f"pytest ended with code {done.returncode}: {done.stdout[-300:]}{done.stderr[-300:]}")
        found = list(ET.parse(report).getroot().iter("testcase"))
    told = {kind: [_said(case, kind) for case in found if case.find(kind) is not None] for kind in OUTCOMES}
    bad = len(told["failure"]) + len(told["error"])
    passed = len(found) - sum(map(len, told.values()))
    said = f"{passed} passed, {bad} failed, {len(told['skipped'])} skipped"
    good = passed > 0 and not bad
    yield {"name": "pytest -m gpu", "status": "done" if good else "failed", "reason": "" if good else said, "said": said,
           "passed": passed, **told}  # fmt: skip


OUTCOMES = ("failure", "error", "skipped")


def _said(case: ET.Element, kind: str) -> str:
    about = case.find(kind)
    message = (about.get("message") or "") if about is not None else ""
    return f"{case.get('classname')}::{case.get('name')}: {message[:300]}"


def kits(run: Run) -> Iterator[Row]:
    """Every kit for its own SM, and as TensorRT-RTX plans of other SMs: whether they load, agree and how fast they are."""
    with tempfile.TemporaryDirectory() as folder:
        for kit, probe in product(run.args.kit, PROBES):
            name = f"{kit.name} {probe}"
            try:
                yield {"name": name, **_kit(kit, probe, Path(folder), run.left)}
            except OptimizeError as error:
                yield {"name": name, "status": _status(error), "reason": str(error)}


def _kit(kit: Path, probe: str, scratch: Path, seconds: float) -> Row:
    place = scratch / f"{kit.name}-{probe}"
    shutil.copytree(kit, place)
    command = [sys.executable, str(place / "build.py"), "--calls", "200"]
    command += [] if probe == "own" else ["--module", "tensorrt_rtx", "--sm", probe, "--any-gpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        raise OptimizeError(f"not done after {seconds:.0f} s") from None
    if done.returncode not in (0, 1):
        kind = EnvironmentLacks if done.returncode == 3 else OptimizeError
        raise kind((done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1])
    result = json.loads((place / "result.json").read_text())
    unchecked = result["not_checked"]
    status = "refused" if unchecked else "done" if result["holds"] else "failed"
    reason = "; ".join(unchecked or result["problems"])
    worst = max((p["relative_l2"] for p in result.get("parity", ())), default=None)
    return {"status": status, "reason": reason, "said": f"parity {worst}", "result": result}


def planned_bench(args: argparse.Namespace) -> list[tuple[str, int, list[Way]]]:
    """(network, batch, ways of one tier), in the order they are timed."""
    ways = [w for w in (REHEARSAL if args.device == "cpu" else WAYS) if args.ways is None or w.name in args.ways]
    tiers = sorted({w.tier for w in ways})
    return [(n, b, [w for w in ways if w.tier == t]) for t, n, b in product(tiers, args.networks, args.batches)]


@contextmanager
def preparing(run: Run) -> Iterator[None]:
    """Inside the block the artifacts that the bench wants are made, while other parts run; nothing where it cannot run."""
    if "bench" not in run.args.parts or missing(run.args.device):
        yield
        return
    wanted = [(network, way.kind) for network, _, ways in planned_bench(run.args) for way in ways]
    workers = min(environment.cores() // 4, available() // WORKER_BYTES)
    with tempfile.TemporaryDirectory(dir=run.args.scratch) as folder:
        root = Path(folder)
        traces = run.args.traces or root / "traces"
        with Preparer(wanted, root, traces, tuple(run.args.batches), workers) as run.preparer:
            yield


def bench_all(run: Run) -> Iterator[Row]:
    """Latency, memory and roofline of every network, batch and way, those of one tier in turns."""
    for network, batch, ways in planned_bench(run.args):
        yield from _group(run, run.preparer, network, batch, ways)


def _group(run: Run, preparer: Preparer, network: str, batch: int, ways: list[Way]) -> Iterator[Row]:
    """The rows of one network, batch and tier."""
    chosen: dict[str, tuple[Way, Variant]] = {}
    for way in ways:
        try:
            variant = _variant(run, preparer, network, batch, way)
            chosen[variant.key] = way, variant
        except OptimizeError as error:
            yield {**_named(network, batch, way), "status": _status(error), "reason": str(error)}
    if not chosen:
        return
    beside = preparer.busy
    limit = max(run.left / len(chosen), 30.0)  # of one answer of a worker: they warm up one after another
    made = bench([v for _, v in chosen.values()], rounds=5, calls_per_round=20, turn_s=0.5, warm_s=1.0, timeout_s=limit, kinds=("call",))  # fmt: skip
    append(run.raw, made)
    for measured in made:
        way = chosen[measured.key][0]
        yield {**_named(network, batch, way), "prepared_beside": beside, **_figures(measured, network, batch, way)}


def _variant(run: Run, preparer: Preparer, network: str, batch: int, way: Way) -> Variant:
    """What is timed; OptimizeError without the time for it, or where its artifact or engine could not be made."""
    if run.left < SECONDS[way.tier]:
        raise OptimizeError(
            f"no time: {max(run.left, 0):.0f} s of {run.args.minutes:g} minutes were left; ask for it with --ways and --networks"
        )
    folder = preparer.folder(network, way.kind, run.left - SECONDS[way.tier] / 2)
    if said := refusal(folder, way.runner):
        raise EnvironmentLacks(said)
    io = "host" if run.args.device == "cpu" else "device"
    key = f"{network}/{way.name}/{batch}"
    return Variant(key=key, folder=str(folder), runner=way.runner, options=way.options, batch=batch, io=io,
                   cuda_graphs=way.graphs)  # fmt: skip


def _named(network: str, batch: int, way: Way) -> Row:
    return {"name": f"{network} {way.name}", "network": network, "batch": batch, "way": way.name, "kind": way.kind}


def _figures(measured: Measurement, network: str, batch: int, way: Way) -> Row:
    if not measured.done:
        return {"status": measured.status, "reason": measured.reason}
    call = measured.call_latency()
    return {
        "status": "done",
        "reason": "",
        "call_s": call,
        "cold": measured.cold,
        "device_peak_bytes": measured.device_peak_bytes,
        "memory": measured.memory,
        "throttled": measured.throttled,
        "runner": measured.runner,
        "roofline": _roofline(network, batch, way.format, call["p50"]),
    }


def _roofline(network: str, batch: int, format: str, call_s: float) -> Row:
    """Seconds at the listed peaks of this device, and the share of them that was reached; or why there is none."""
    target, facts = here()
    if not target.peak_tflops:
        return {"reason": f"the peaks of {target.title} are not listed"}
    found = predict(_layers(network, batch), target, format, PEAKS, memory_gb(facts))
    return {"seconds": found.seconds, "share": found.seconds / call_s, "rates": PEAKS.name, "target": target.name}


@lru_cache
def _layers(network: str, batch: int) -> list[Any]:
    from optimize.architectures.components import skeleton
    from optimize.diffusion.network import example_inputs
    from optimize.roofline.layers import layers

    module, inputs = skeleton({**FULL, **TINY}[network])
    return layers(module, feed=example_inputs(inputs, batch))


def _status(error: Exception) -> str:
    return "refused" if isinstance(error, EnvironmentLacks) else "failed"


PARTS: dict[str, Callable[[Run], Iterator[Row]]] = {"tests": tests, "kits": kits, "bench": bench_all}


def named(part: str, args: argparse.Namespace) -> list[Row]:
    """The rows a part would have, by name."""
    if part == "tests":
        return [{"name": "pytest -m gpu"}]
    if part == "kits":
        return [{"name": f"{kit.name} {probe}"} for kit, probe in product(args.kit, PROBES)]
    return [_named(network, batch, way) for network, batch, ways in planned_bench(args) for way in ways]


def guarded(run: Run, part: str) -> None:
    """Every row of a part; where the part itself breaks, or cannot run here, that is said and the next one goes on."""
    if reason := missing(run.args.device):
        for row in named(part, run.args):
            run.add({"part": part, **row, "status": "refused", "reason": reason})
        return
    try:
        for row in PARTS[part](run):
            run.add({"part": part, **row})
    except Exception as error:  # noqa: BLE001 - whatever one part meets, the others and the record go on
        text = str(error) if isinstance(error, OptimizeError) else f"{type(error).__name__}: {error}"
        run.add({"part": part, "name": part, "status": _status(error), "reason": text})


def main(given: list[str] | None = None) -> int:
    """0 where something was done and nothing failed, 1 where a row failed, 3 where all was refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--minutes", type=float, default=9.0, help="it may take")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--kit", type=Path, action="append", default=[], help="build kit (folder); repeat for more")
    parser.add_argument("--networks", default="sd15,sdxl")
    parser.add_argument("--batches", default="1,4,16")
    parser.add_argument("--ways", action="append", choices=[w.name for w in (*WAYS, *REHEARSAL)], help="only these")
    parser.add_argument("--traces", type=Path, help="folder of traced graphs, kept for the next call")
    parser.add_argument("--scratch", type=Path, help="folder for large files, emptied afterwards")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal, in FP32")
    args = parser.parse_args(given)
    args.networks, args.batches = args.networks.split(","), numbers(args.batches, "--batches")
    args.parts = args.parts.split(",")
    for kind, values, known in (("--networks", args.networks, {**FULL, **TINY}), ("--parts", args.parts, PARTS)):
        if wrong := [v for v in values if v not in known]:
            parser.error(f"{kind}: {wrong[0]} is not known. Allowed: {', '.join(known)}")
    args.out.mkdir(parents=True, exist_ok=True)
    run = Run(args)
    with preparing(run):
        for part in args.parts:
            guarded(run, part)
    run.write()
    found = {row["status"] for row in run.record["rows"]}
    print(f"{run.path}: {len(run.record['rows'])} rows in {run.record['seconds']:.0f} s")
    return 1 if "failed" in found else 0 if "done" in found else 3


if __name__ == "__main__":
    sys.exit(main())
