"""A named network with random weights as an artifact that runners open, made in a process of its own.

    python benchmarks/gpu_networks.py sd15 int8 FOLDER --traces TRACES

Kinds: `weights` (model.safetensors, for torch), or the ONNX file in fp32, fp16, bf16, or with INT8 or FP8 layers and the
rest in FP16, with the engines that the TensorRT modules installed here can build for the GPU here. Ranges of activations
are made up (see `engines.py`): speed is measured with these, not quality. `Preparer` makes several at once.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from contextlib import suppress
from pathlib import Path
from typing import Any

from networks import FULL, TINY, scheduler

from optimize.architectures.artifact import sampler_json, save_model
from optimize.diffusion.context import Context
from optimize.errors import OptimizeError
from optimize.storage.commit import commit, write_json
from optimize.storage.weights import read_json

KINDS = ("weights", "fp32", "fp16", "bf16", "int8", "fp8")
ENGINES = {"tensorrt_rtx": ("fp16", "int8", "fp8"), "tensorrt": ("fp16", "int8", "fp8")}  # module -> kinds it builds
REFUSED = "refused.json"  # module -> why it built no engine


def prepare(name: str, kind: str, folder: Path, traces: Path, batches: tuple[int, ...]) -> None:
    """Make the artifact, whole or not at all."""
    from engines import network

    from optimize.architectures.assembled import assembled
    from optimize.diffusion.sampling import Sampler

    config = {**FULL, **TINY}[name]
    module, _, given = network(name)
    model = assembled(config["_class_name"], config, scheduler(config), Sampler(steps=1), module=module)

    def write(place: Path) -> dict[str, Any]:
        about = {"id": f"{name}-{kind}", "network": name, "kind": kind}
        if kind == "weights":
            save_model(place, model)
            return about
        write_json(place / "structure.json", model.structure.to_json())
        write_json(place / "sampler.json", sampler_json(model))
        about["exports"] = {"onnx": onnx(name, model, kind, given, place, traces)}
        return about | engines_of(model, kind, place, batches)

    commit(folder, write)


def onnx(name: str, model: Any, kind: str, given: Any, place: Path, traces: Path) -> dict[str, Any]:
    """`place/onnx/model.onnx`, its batch symbolic; the export's record. Traces are those of `engines.py --scratch`."""
    from engines import keeper, quantized

    from optimize.exporters.onnx import Onnx, Rounding

    narrow = kind in ("int8", "fp8")
    precision: Any = "fp16" if narrow else kind
    rounding = Rounding(quantized(model.module, kind), "fp16", model.module) if narrow else None
    exporter = Onnx(precision=precision, symbolic=("B",), embedded_bytes=0)
    about = {"structure": name, "keep": keeper(traces), "rounding": rounding}
    return exporter.export_network(model.module, model.inputs, place, feeds=lambda: [given], **about)


def engines_of(model: Any, kind: str, place: Path, batches: tuple[int, ...]) -> dict[str, Any]:
    """Engines for the GPU here by every module installed, and what the others say in refused.json."""
    from optimize.engines.place import export_engines
    from optimize.engines.settings import EngineSettings

    made, refused = {}, {}
    for module, kinds in ENGINES.items():
        if kind in kinds:
            try:
                settings = EngineSettings(batch=batches, precision_lost="warn")
                made[module] = export_engines(module, settings, model.shape, place, Context())
            except OptimizeError as error:
                refused[module] = str(error)
    write_json(place / REFUSED, refused)
    return {"engines": made}


class Preparer:
    """`with Preparer(...) as p: p.folder(name, kind, seconds)`: artifacts are made beside whatever else runs, `workers`
    at a time, in the order of `wanted`; what is still being made at the end is stopped."""

    def __init__(
        self, wanted: Iterable[tuple[str, str]], root: Path, traces: Path, batches: tuple[int, ...], workers: int
    ) -> None:
        self._root, self._traces, self._batches = root, traces, batches
        self._running: set[subprocess.Popen[str]] = set()
        self._lock, self._over = threading.Lock(), False
        self._pool = ThreadPoolExecutor(max(1, workers))
        self._made: dict[tuple[str, str], Future[Path]] = {
            both: self._pool.submit(self._make, *both) for both in dict.fromkeys(wanted)
        }

    def __enter__(self) -> Preparer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True
            for process in list(self._running):
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGKILL)
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def busy(self) -> int:
        """How many are being made at this moment."""
        return len(self._running)

    def folder(self, name: str, kind: str, seconds: float) -> Path:
        """The artifact, waited for; OptimizeError where it failed, or is not there in time."""
        try:
            return self._made[name, kind].result(timeout=max(seconds, 0.0))
        except Late:
            raise OptimizeError(
                f"{name} as {kind} was not ready after {seconds:.0f} s more; give this call less, or the traces of an earlier one"
            ) from None

    def _make(self, name: str, kind: str) -> Path:
        place = self._root / f"{name}-{kind}"
        command = [sys.executable, __file__, name, kind, str(place), "--traces", str(self._traces)]
        command += ["--batches", ",".join(map(str, self._batches))]
        with self._lock:
            if self._over:
                raise OptimizeError(f"{name} as {kind}: the time was over before it was begun")
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
            )
            self._running.add(process)
        _, said = process.communicate()
        self._running.discard(process)
        if process.returncode:
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise OptimizeError(f"{name} as {kind} could not be made (code {process.returncode}): {last}")
        return place


def refusal(folder: Path, runner: str) -> str:
    """Why there is no engine for a runner in an artifact made here; empty where there is one, or none is wanted."""
    path = folder / REFUSED
    return str(read_json(path).get(runner, "")) if path.is_file() else ""


def main() -> None:
    """Make one artifact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=[*FULL, *TINY])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=Path, required=True)
    parser.add_argument("--batches", default="1,4,16")
    args = parser.parse_args()
    os.nice(10)  # what is timed meanwhile comes first
    batches = tuple(int(b) for b in args.batches.split(","))
    make: Callable[..., None] = prepare
    make(args.network, args.kind, args.folder, args.traces, batches)
    print(json.dumps({"folder": str(args.folder)}))


if __name__ == "__main__":
    main()
