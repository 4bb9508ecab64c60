"""What a result depends on: machine, libraries, threads. Two results are compared only where `key` is equal."""

from __future__ import annotations

import os
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from optimize.configs import digest
from optimize.hardware.gpus import gpus
from optimize.hardware.targets import class_name

LIBRARIES = (
    "torch",
    "diffusers",
    "accelerate",
    "safetensors",
    "torch-pruning",
    "nvidia-modelopt",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
)
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni")


def environment() -> dict[str, Any]:
    """Device class, GPU where there is one, cores, memory, instruction sets, operating system, Python and library
    versions; JSON values."""
    return {
        "device": device_class(),
        **gpu(),
        "cpu": cpu_name(),
        "cores": cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instructions": instructions(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": versions(),
    }


def device_class() -> str:
    """The class of the first visible GPU (see `optimize.hardware.targets`), or cpu."""
    return class_name(gpus()[0]["name"]) if gpus() else "cpu"


def gpu() -> dict[str, Any]:
    """`{"gpu": {name, sm, memory_gib, driver, cuda, count}}` of the first visible GPU as far as known; empty without one."""
    if not gpus():
        return {}
    first = gpus()[0]
    about: dict[str, Any] = {k: first[k] for k in ("name", "driver", "cuda") if k in first}
    if "sm" in first:
        about["sm"] = list(first["sm"])
    if "memory_bytes" in first:
        about["memory_gib"] = round(first["memory_bytes"] / 2**30, 1)
    return {"gpu": about | {"count": len(gpus())}}


def key(value: dict[str, Any] | None = None) -> str:
    """Digest of an environment, this one by default."""
    return digest(value or environment())[:16]


@lru_cache
def versions(names: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Installed versions, read from metadata; imports nothing."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads() -> int:
    """Threads that libraries compute with here: OMP_NUM_THREADS where it is set, else every core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else cores()


@lru_cache
def _cpuinfo() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {k.strip(): v.strip() for k, v in pairs}


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    return _cpuinfo().get("model name") or platform.processor() or platform.machine()


def instructions() -> list[str]:
    """The instruction sets among `CPU_FLAGS` that decide which kernels are fast."""
    present = set(_cpuinfo().get("flags", "").split())
    return [f for f in CPU_FLAGS if f in present]
