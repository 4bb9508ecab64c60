"""Making one engine: refused early, estimated, keyed by content, built in a watched process, checked, and written with
its record. `order` says what; `make` does it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimize.configs import digest
from optimize.engines import libraries, memory
from optimize.engines.builder import Job, Shapes
from optimize.engines.graph import GraphFacts
from optimize.engines.plan_text import compare, read_plan_file
from optimize.engines.profiles import bound_text
from optimize.engines.settings import EngineSettings
from optimize.errors import EnvironmentLacks, OptimizeError, UserError
from optimize.hardware.memory import available
from optimize.storage.commit import write_json
from optimize.storage.disk import writing
from optimize.storage.weights import file_sha256, read_json

log = logging.getLogger(__name__)
ENGINE, RECORD = "model.engine", "engine.json"
SCHEMA = 1
# Peak memory of a build, just above all that was measured (benchmarks/engines.py): the libraries, and a multiple of the
# weights, since the parser, the optimizer and the plan each hold them. Every further profile compiles the network again.
BASE_BYTES, WEIGHTS_FACTOR = 0.7e9, 3.5
PROFILE_BYTES, PROFILE_FACTOR = 0.05e9, 0.4


@dataclass(frozen=True)
class Order:
    """One engine that is wanted: the file, the module that builds it, and for which GPU."""

    onnx: Path
    facts: GraphFacts
    module: str
    version: str
    sm: tuple[int, int]
    profiles: list[Shapes]
    settings: EngineSettings
    gpu: str | None = None  # name of the GPU it is built on; None: the first one here

    @property
    def name(self) -> str:
        """Folder of the engine, `<sm>-<module>-<version>`."""
        return f"{libraries.sm_text(self.sm)}-{self.module}-{self.version}"

    @property
    def content(self) -> dict[str, Any]:
        """Everything the engine depends on; no path."""
        s = self.settings
        return {
            "schema": SCHEMA,
            "onnx": self.facts.files,
            "module": self.module,
            "version": self.version,
            "sm": list(self.sm),
            "profiles": self.profiles,
            "flags": sorted(s.flags),
            "hardware_compatible": s.hardware_compatible,
            "tf32": s.tf32,
            "level": s.level,
            "workspace_bytes": round(s.workspace_gb * 1e9),
            # TensorRT takes the kernels that are fastest on the very card; TensorRT-RTX is told the SM alone
            "gpu": self._card if self.module == "tensorrt" else "",
        }

    @property
    def _card(self) -> str:
        return libraries.gpu_name() if self.gpu is None else self.gpu

    @property
    def key(self) -> str:
        """Digest of the content: what the engine is found by."""
        return digest(self.content)

    @property
    def estimate(self) -> int:
        """Bytes of memory the build is expected to take at its peak."""
        weights, further = self.facts.weight_bytes, max(0, len(self.profiles) - 1)
        return int(BASE_BYTES + WEIGHTS_FACTOR * weights + further * (PROFILE_BYTES + PROFILE_FACTOR * weights))

    def job(self, timing_cache: str = "") -> Job:
        """The order as the builder takes it."""
        c = self.content
        return {
            "onnx": str(self.onnx),
            "sm": list(self.sm),
            "profiles": self.profiles,
            "flags": c["flags"],
            "hardware_compatible": c["hardware_compatible"],
            "tf32": c["tf32"],
            "level": c["level"],
            "workspace_bytes": c["workspace_bytes"],
            "timing_cache": timing_cache,
        }

    def refuse(self, gpu: tuple[int, int] | None) -> None:
        """Raise where it cannot be made here (see `libraries.refuse`)."""
        wish = libraries.Wish(
            self.sm, frozenset(self.facts.formats), self.settings.flags, self.settings.hardware_compatible
        )
        libraries.refuse(self.module, self.version, wish, gpu)


def make(order: Order, folder: Path) -> dict[str, Any]:
    """Build into `folder` (existing): model.engine and engine.json, the record, which is returned.

    Raises UserError or EnvironmentLacks where it is refused, is estimated to need or does take too much memory or time,
    or where TensorRT does not take the file; OptimizeError where the engine lost the graph's precision."""
    order.refuse(libraries.gpu_sm())
    what = f"engine {order.name}"
    limit = int(order.settings.memory_gb * 1e9) if order.settings.memory_gb else int(0.9 * available())
    memory.check(order.estimate, limit, what)
    cache = _timing_cache(order)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-build-") as place:
        facts = _built(order, Path(place), what, limit, cache)
        record = record_of(order, Path(place) / ENGINE, facts)
        _judge(order, record, what)
        (Path(place) / ENGINE).replace(folder / ENGINE)
    write_json(folder / RECORD, record)
    log.info("%s %s %.1f s %d bytes", what, order.key[:12], record["seconds"], record["plan_bytes"])
    return record


def _timing_cache(order: Order) -> str:
    """The file of kernels measured with this module, version and SM; none for TensorRT-RTX, which measures nothing."""
    if order.module == "tensorrt_rtx":
        return ""
    folder = order.settings.timing_cache or Path.home() / ".cache" / "optimize" / "timing"
    return str(folder / f"{order.name}.cache")


def _built(order: Order, place: Path, what: str, limit: int, cache: str) -> dict[str, Any]:
    """Run the worker under the watch; its facts with peak memory and seconds of the whole process."""
    job = place / "job.json"
    job.write_text(json.dumps({"module": order.module, "job": order.job(cache)}))
    command = [sys.executable, "-m", "optimize.engines.worker", str(job), str(place)]
    start, log_file = time.perf_counter(), place / "log"
    with (
        log_file.open("w") as said,
        subprocess.Popen(command, stdout=said, stderr=said, text=True) as process,
        memory.Watch(process, limit) as watch,
    ):
        try:
            code = process.wait(timeout=order.settings.minutes * 60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise EnvironmentLacks(
                f"{what}: not done after {order.settings.minutes:g} minutes and stopped; nothing was written. Raise minutes (--minutes), or lower level (--level)."
            ) from None
        except BaseException:  # broken off: a build answers no signal until it is done
            process.kill()
            raise
    if watch.killed or code in (-9, 137):
        raise memory.too_little(what, watch.peak, limit)
    if code == 2 and (place / "error.json").is_file():
        said_by = read_json(place / "error.json")["error"]
        if memory.ran_out(said_by):
            raise EnvironmentLacks(f"{what}: {said_by} Lower workspace_gb (--workspace-gb), or build on a larger GPU.")
        raise UserError(f"{what}: {said_by}")
    if code == 3:
        with writing(place):
            raise OSError(_end(log_file))
    if code:
        raise OptimizeError(f"{what}: the build ended with code {code}: {_end(log_file)}")
    facts: dict[str, Any] = read_json(place / "facts.json")
    peak = max(watch.peak, facts["peak_memory_bytes"] or 0)
    return facts | {"peak_memory_bytes": peak, "process_seconds": round(time.perf_counter() - start, 2)}


def _end(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:]) or "it said nothing"


def record_of(order: Order, engine: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an engine: its order, `facts` of its build ({found: layers, seconds, ...}; a TensorRT-RTX plan tells
    its layers itself), and what it lost of the graph's precision."""
    found, sms = facts.get("found") or {}, [libraries.sm_text(order.sm)]
    if order.module == "tensorrt_rtx":
        found, sms = read_plan_file(engine)
    return {
        **order.content,
        "key": order.key,
        "sm": libraries.sm_text(order.sm),
        "profiles": bound_text(order.profiles),
        "sha256": file_sha256(engine),
        "plan_bytes": engine.stat().st_size,
        "estimated_memory_bytes": order.estimate,
        **facts,
        "targets": sms,
        "expected": order.facts.expected,
        "found": found,
        "problems": compare(order.facts.expected, found, order.module == "tensorrt_rtx"),
        "built_on_gpu": libraries.gpu_sm() is not None,
    }


def _judge(order: Order, record: dict[str, Any], what: str) -> None:
    """A lost precision is an error, or a warning where the settings say so; both stand in the record."""
    for problem in record["problems"]:
        if order.settings.precision_lost == "error":
            raise OptimizeError(
                f"{what}: {problem} Nothing was written; precision_lost: warn (--precision-lost warn) keeps such an engine."
            )
        log.warning("%s: %s", what, problem)
