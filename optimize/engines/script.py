"""Build, check and time this kit's engine:  python build.py [--module tensorrt|tensorrt_rtx] [--calls 500]

Needs numpy and the TensorRT module, nothing else. On the machine with the card it builds the engine, compares it with
the outputs in parity/ and times it; without a GPU it builds what can be built ahead of time and says what was not
checked. Everything found goes to result.json. Exit codes: 0 done, 1 parity or precision failed, 2 the kit is damaged or
refused, 3 something is missing here.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from optimize.engines.builder import EngineError, Job, build
from optimize.engines.cuda import Cuda, CudaError, gpu
from optimize.engines.plan_text import compare, inspected, read_plan
from optimize.engines.session import Session
from optimize.hardware.memory import available, gb

KIT = Path(__file__).resolve().parent
GRAPHS = {"calls": False, "cuda graphs": True}


class Missing(Exception):
    """Something this machine lacks."""


def main(arguments: list[str] | None = None) -> int:
    """Run the kit in the script's folder; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--module", choices=("tensorrt", "tensorrt_rtx"), help="Instead of the first one installed.")
    parser.add_argument("--calls", type=int, default=500, help="Timed calls.")
    parser.add_argument("--kit", type=Path, default=KIT, help="Folder of the kit.")
    parser.add_argument("--sm", help="Probe: a TensorRT-RTX engine for another SM, e.g. 8.0, or untold.")
    parser.add_argument("--any-gpu", action="store_true", help="Probe: run it whatever the GPU here is.")
    asked = parser.parse_args(arguments)
    try:
        result = run(asked.kit, asked.module, asked.calls, asked.sm, asked.any_gpu)
    except (EngineError, CudaError) as error:
        return _fail(2, str(error))
    except Missing as error:
        return _fail(3, str(error))
    write_whole(asked.kit / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    print(summary(result))
    return 0 if result["holds"] else 1


def run(kit: Path, module: str | None, calls: int, sm: str | None = None, any_gpu: bool = False) -> dict[str, Any]:
    """Build, check, time; the result as JSON values."""
    about = check_kit(kit)
    if sm is not None:
        about |= {"sm": parse_sm(sm), "modules": ["tensorrt_rtx"]}  # TensorRT is never told an SM
    trt = import_module(module, about["modules"])
    check_memory(about.get("estimate", 0))
    device = gpu()
    check_lane(trt, about, device)
    plan, record = make(kit, about, trt)
    result: dict[str, Any] = {
        "kit": {k: about[k] for k in ("name", "target", "sm", "precision")} | {"sha256": sha256(kit / "kit.json")},
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "system": {"python": platform.python_version(), "machine": platform.machine(), "numpy": np.__version__},
        "gpu": gpu_facts(device),
        "engine": record,
        "not_checked": [],
    }
    problems = list(record["problems"])
    if device is None or (list(device.sm()) != about["sm"] and not any_gpu):
        here = f"the GPU here is SM {_dotted(device.sm())}" if device else "there is no GPU here"
        result["not_checked"] = [
            f"{what}: {here}, the engine is for SM {_dotted(about['sm'])}" for what in ("parity", "latency")
        ]
    else:
        result["parity"] = parity(kit, about, trt, plan, device)
        problems += [
            f"parity: {p['case']} differs by {p['relative_l2']:.2e}" for p in result["parity"] if not p["holds"]
        ]
        result["latency_ms"] = latency(kit, about, trt, plan, device, calls)
    return result | {"problems": problems, "holds": not problems}


def check_kit(kit: Path) -> dict[str, Any]:
    """kit.json, after every file was found with the bytes it names."""
    try:
        about: dict[str, Any] = json.loads((kit / "kit.json").read_text())
    except (OSError, ValueError) as error:
        raise EngineError(f"{kit / 'kit.json'}: not readable ({error}). Copy the kit again.") from error
    for name, digest in about["files"].items():
        path = kit / name
        if not path.is_file() or sha256(path) != digest:
            raise EngineError(f"{path}: missing, or not the file the kit was made with. Copy the kit again.")
    return about


def parse_sm(text: str) -> list[int]:
    """ "8.6" as [8, 6], "untold" as []."""
    major, dot, minor = text.partition(".")
    if text != "untold" and not (dot and major.isdecimal() and minor.isdecimal()):
        raise EngineError(f'--sm: given "{text}". Write a compute capability such as 8.0, or untold.')
    return [] if text == "untold" else [int(major), int(minor)]


def import_module(asked: str | None, allowed: list[str]) -> Any:
    """The module asked for, or the first of the kit's that is installed."""
    if asked and asked not in allowed:
        raise EngineError(f"--module {asked}: this kit's engine can be built with {', '.join(allowed)} only.")
    problems = []
    for name in [asked] if asked else allowed:
        try:
            found = importlib.import_module(name)
            if hasattr(found, "Builder"):
                return found
            problems.append(f"{name} (there is a folder of that name alone)")
        except ImportError as error:
            problems.append(f"{name} ({error})")
    raise Missing(f"not installed: {'; '.join(problems)}. See README.md for the versions to install.")


def check_memory(needed: int) -> None:
    """Refuse a build that is estimated to take more memory than there is, where the system says how much that is."""
    try:
        free = available()
    except ImportError:  # not Linux, and no psutil
        return
    if needed > free:
        raise Missing(
            f"building it is estimated to take {gb(needed)}, and {gb(free)} are free. Close other programs, or use a larger machine."
        )


def check_lane(trt: Any, about: dict[str, Any], device: Cuda | None) -> None:
    """Refuse versions that cannot build for the kit's SM, and TensorRT without its GPU."""
    name = trt.__name__.partition(".")[0]
    major, minor = (int(x) for x in trt.__version__.split(".")[:2])
    if name == "tensorrt" and about["sm"] < [7, 5] and (major, minor) > (10, 4):
        raise Missing(
            f"TensorRT {trt.__version__} has no kernels for SM 7.0; 10.4 is the last. pip install 'tensorrt==10.4.*'"
        )
    if name == "tensorrt" and (device is None or list(device.sm()) != about["sm"]):
        here = f"the GPU here is SM {_dotted(device.sm())}" if device else "there is no GPU here"
        raise Missing(
            f"TensorRT builds on a GPU of SM {_dotted(about['sm'])}, and {here}. Run this on the machine with the card."
        )


def make(kit: Path, about: dict[str, Any], trt: Any) -> tuple[bytes, dict[str, Any]]:
    """Build, check the precisions, write the engine with its record."""
    name = trt.__name__.partition(".")[0]
    told = name == "tensorrt_rtx"  # the SM; it has no timing caches
    cache = "" if told else str(kit / f"timing-{name}-{trt.__version__}-sm{''.join(map(str, about['sm']))}.cache")
    job: Job = about["job"] | {"onnx": str(kit / about["onnx"]), "sm": about["sm"], "timing_cache": cache}
    plan, facts = build(trt, job)
    found, targets = read_plan(plan) if told else (inspected(trt, plan, job["flags"]), [_dotted(about["sm"])])
    record = {
        "module": name,
        "version": trt.__version__,
        "sm": _dotted(about["sm"]),
        "plan_bytes": len(plan),
        "sha256": hashlib.sha256(plan).hexdigest(),
        "peak_memory_bytes": peak_memory(),
        **facts,
        "flags": about["job"]["flags"],
        "profiles": about["job"]["profiles"],
        "expected": about["expected"],
        "found": found,
        "targets": targets,
        "problems": compare(about["expected"], found, told),
    }
    folder = kit / "tensorrt" / f"{record['sm']}-{name}-{trt.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "model.engine", plan)
    write_whole(folder / "engine.json", (json.dumps(record, indent=1) + "\n").encode())
    return plan, record


def open_session(
    kit: Path, about: dict[str, Any], trt: Any, plan: bytes, device: Cuda, graphs: bool = False
) -> Session:
    """The engine, ready to run."""
    return Session(trt, plan, device, graphs, flags=about["job"]["flags"], onnx=str(kit / about["onnx"]))


def parity(kit: Path, about: dict[str, Any], trt: Any, plan: bytes, device: Cuda) -> list[dict[str, Any]]:
    """Every case of parity/: largest difference and relative L2 to the expected output."""
    session, rows = open_session(kit, about, trt, plan, device), []
    for case in about["parity"]:
        want = np.load(kit / case["output"], allow_pickle=False).astype(np.float64)
        got = session.run(load_inputs(kit, case)).astype(np.float64)
        rows.append({"case": case["case"], **difference(want, got, about["limit"])})
    session.close()
    return rows


def difference(want: Any, got: Any, limit: float) -> dict[str, Any]:
    """Largest absolute and relative L2 difference; what is not finite never holds."""
    relative = float(np.linalg.norm(got - want) / np.linalg.norm(want)) if got.shape == want.shape else float("inf")
    finite = bool(np.isfinite(relative))
    largest = float(np.abs(got - want).max()) if finite else float(np.finfo(np.float32).max)
    relative = relative if finite else float(np.finfo(np.float32).max)
    return {"max_abs": largest, "relative_l2": relative, "limit": limit, "holds": finite and relative <= limit}


def latency(kit: Path, about: dict[str, Any], trt: Any, plan: bytes, device: Cuda, calls: int) -> list[dict[str, Any]]:
    """p50, p90 and p99 of the GPU's own time for a call, inputs on the GPU, by case and with and without CUDA graphs."""
    rows = []
    for title, graphs in GRAPHS.items():
        session = open_session(kit, about, trt, plan, device, graphs)
        for case in about["parity"]:
            samples = timed(session, device, load_inputs(kit, case), calls)
            percentiles = {f"p{p}": float(np.percentile(samples, p)) for p in (50, 90, 99)}
            rows.append({"case": case["case"], "policy": title, "n": len(samples), **percentiles})
        session.close()
    return rows


def timed(session: Session, device: Cuda, inputs: dict[str, Any], calls: int) -> list[float]:
    """Milliseconds of each call between two events, after warm-up."""
    session.run(inputs)  # fills the buffers, and captures
    bound = session.bind({n: inputs[n].shape for n in session.inputs})
    for _ in range(max(calls // 10, 10)):
        session.execute(bound)
    events = [(device.event(), device.event()) for _ in range(calls)]
    for begin, end in events:
        device.record(begin, session.stream)
        session.execute(bound)
        device.record(end, session.stream)
    device.synchronize(session.stream)
    return [device.milliseconds(begin, end) for begin, end in events]


def load_inputs(kit: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Arrays of a parity case by input."""
    return {name: np.load(kit / file, allow_pickle=False) for name, file in case["inputs"].items()}


def gpu_facts(device: Cuda | None) -> dict[str, Any] | None:
    """The GPU as a record holds it."""
    if device is None:
        return None
    return {
        "name": device.name(),
        "sm": _dotted(device.sm()),
        "memory_bytes": device.memory()[1],
        "cuda": device.driver(),
    }


def peak_memory() -> int | None:
    """Largest resident memory of this process so far; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024


def summary(result: dict[str, Any]) -> str:
    """What the script prints: a few lines."""
    engine = result["engine"]
    lines = [
        f"{engine['module']} {engine['version']}, SM {engine['sm']}: {engine['plan_bytes'] / 1e6:.1f} MB in {engine['seconds']:.1f} s",
        f"layers expected {engine['expected']}, found {engine['found'] or 'not told'}",
    ]
    lines += [
        f"parity {p['case']}: relative L2 {p['relative_l2']:.2e} (limit {p['limit']:g})"
        for p in result.get("parity", ())
    ]
    lines += [
        f"{row['case']}, {row['policy']}: p50 {row['p50']:.3f} ms, p90 {row['p90']:.3f}, p99 {row['p99']:.3f} (n = {row['n']})"
        for row in result.get("latency_ms", ())
    ]
    lines += [f"not checked: {text}" for text in result["not_checked"]] + [f"FAILED: {p}" for p in result["problems"]]
    return "\n".join(lines)


def sha256(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as f:
        digest = hashlib.sha256()
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_whole(path: Path, data: bytes) -> None:
    """Write under a temporary name, then rename."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _dotted(sm: Any) -> str:
    return ".".join(str(n) for n in sm) or "untold"


def _fail(code: int, message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
