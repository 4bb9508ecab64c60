"""The NVIDIA GPUs of this machine as their driver describes them; plain facts, torch-free.

NVML (nvidia-ml-py) is asked where it is installed, else CUDA's driver; Linux's /proc still gives names without both.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

PROC = Path("/proc/driver/nvidia")
DRIVERS = ("libcuda.so.1", "nvcuda.dll")
CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@lru_cache
def gpus() -> tuple[dict[str, Any], ...]:
    """Facts of every GPU that CUDA_VISIBLE_DEVICES leaves visible, in its order; empty where there is none.

    Keys, absent where the driver does not say: name, uuid, sm (major, minor), memory_bytes, driver, cuda (the newest
    version the driver runs, "13.0"), memory_clock_mhz (highest), bus_bits.
    """
    try:
        import pynvml as nvml
    except ImportError:
        return tuple(_from_cuda()) or tuple(_from_proc())
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver
        return tuple(_from_cuda()) or tuple(_from_proc())
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


def _from_cuda() -> Iterator[dict[str, Any]]:
    """Name, compute capability, memory and CUDA version of the visible GPUs from CUDA's driver; no context is made."""
    cuda = _cuda()
    if cuda is None or cuda.cuInit(0):
        return
    version = _number(cuda.cuDriverGetVersion)
    for index in range(_number(cuda.cuDeviceGetCount)):
        device = _number(cuda.cuDeviceGet, index)
        name, size = ctypes.create_string_buffer(128), ctypes.c_size_t()
        cuda.cuDeviceGetName(name, 128, device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(size), device)
        sm = tuple(_number(cuda.cuDeviceGetAttribute, which, device) for which in CAPABILITY)
        found = {"name": name.value.decode(), "sm": sm, "memory_bytes": size.value, "driver": _driver()}
        found["cuda"] = f"{version // 1000}.{version % 1000 // 10}"
        yield {k: v for k, v in found.items() if v}


def _cuda() -> Any:
    """libcuda, which comes with NVIDIA's driver; None without one."""
    for name in DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _number(question: Callable[..., Any], *arguments: Any) -> int:
    value = ctypes.c_int()
    question(ctypes.byref(value), *arguments)
    return value.value


def _driver() -> str | None:
    """The driver's version, from Linux's own files."""
    version = PROC / "version"
    words = version.read_text().split() if version.is_file() else []
    return next((w for w in words if w[:1].isdigit() and "." in w), None)


def _from_proc() -> Iterator[dict[str, Any]]:
    """Names and driver version from Linux's own files."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return
    for file in sorted(PROC.glob("gpus/*/information")):
        fields = dict(line.split(":", 1) for line in file.read_text().splitlines() if ":" in line)
        found = {
            "name": fields.get("Model", "").strip(),
            "uuid": fields.get("GPU UUID", "").strip(),
            "driver": _driver(),
        }
        yield {k: v for k, v in found.items() if v}
