"""The NVIDIA GPUs of this machine as their driver describes them; plain facts, torch-free.

NVML (nvidia-ml-py) is asked where it is installed; without it Linux's /proc still gives names and the driver.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

PROC = Path("/proc/driver/nvidia")


@lru_cache
def gpus() -> tuple[dict[str, Any], ...]:
    """Facts of every GPU that CUDA_VISIBLE_DEVICES leaves visible, in its order; empty where there is none.

    Keys, absent where the driver does not say: name, uuid, sm (major, minor), memory_bytes, driver, cuda (the newest
    version the driver runs, "13.0"), memory_clock_mhz (highest), bus_bits.
    """
    try:
        import pynvml as nvml
    except ImportError:
        return tuple(_from_proc())
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        return tuple(_from_proc())
    try:
        return tuple(_facts(nvml, handle) for handle in _handles(nvml))
    finally:
        nvml.nvmlShutdown()


def bandwidth_gb_s(facts: dict[str, Any]) -> float | None:
    """Highest memory bandwidth (GB/s): two transfers a clock over the whole bus, e.g. 2 x 1215 MHz x 5120 bits = 1555."""
    clock, bits = facts.get("memory_clock_mhz"), facts.get("bus_bits")
    return 2 * clock * bits / 8 / 1000 if clock and bits else None


def _handles(nvml: Any) -> list[Any]:
    """NVML handles of the visible GPUs. NVML counts by PCI bus; CUDA does so too unless several kinds are mixed."""
    count, chosen = nvml.nvmlDeviceGetCount(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
    handles = []
    for entry in (e.strip() for e in chosen.split(",")):
        if entry.isdigit() and int(entry) < count:
            handles.append(nvml.nvmlDeviceGetHandleByIndex(int(entry)))
        elif entry.startswith(("GPU-", "MIG-")):
            handles.append(nvml.nvmlDeviceGetHandleByUUID(entry))
        else:  # as CUDA does: what follows an invalid entry is invisible
            break
    return handles


def _facts(nvml: Any, handle: Any) -> dict[str, Any]:
    def ask(question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except nvml.NVMLError:  # not told by this device or driver
            return None

    memory, cuda = ask(nvml.nvmlDeviceGetMemoryInfo, handle), ask(nvml.nvmlSystemGetCudaDriverVersion_v2)
    part = ask(nvml.nvmlDeviceIsMigDeviceHandle, handle)  # a slice of a GPU has neither its bandwidth nor its peaks
    found = {
        "name": _text(ask(nvml.nvmlDeviceGetName, handle)) + (" MIG" if part else ""),
        "uuid": _text(ask(nvml.nvmlDeviceGetUUID, handle)),
        "sm": ask(nvml.nvmlDeviceGetCudaComputeCapability, handle),
        "memory_bytes": int(memory.total) if memory else None,
        "driver": _text(ask(nvml.nvmlSystemGetDriverVersion)),
        "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        "memory_clock_mhz": None if part else ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
        "bus_bits": None if part else ask(nvml.nvmlDeviceGetMemoryBusWidth, handle),
    }
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if v}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _from_proc() -> Iterator[dict[str, Any]]:
    """Names and driver version from Linux's own files."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    version = PROC / "version"
    words = version.read_text().split() if version.is_file() else []
    driver = next((w for w in words if w[:1].isdigit() and "." in w), None)
    for file in sorted(PROC.glob("gpus/*/information")):
        fields = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        found = {"name": fields.get("Model", "").strip(), "uuid": fields.get("GPU UUID", "").strip(), "driver": driver}
        yield {k: v for k, v in found.items() if v}
