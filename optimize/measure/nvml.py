"""One GPU through NVML (nvidia-ml-py): its state, its counters, and a thread that watches them during a turn.

NVML is asked from outside the timed process wherever that is possible, so that nothing takes the timed thread's time.
Every counter may be missing on some GPU: then it is absent from what is returned, never zero.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from optimize.errors import EnvironmentLacks

# clock event reasons that make a timing slower than the GPU can do (nvml.h, nvmlClocksEventReasons)
THROTTLES = {
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
}


class Gpu:
    """One GPU, by its UUID ("GPU-…") or its NVML index. `nvml` is the pynvml module."""

    def __init__(self, which: str | int, nvml: Any = None) -> None:
        """Raises EnvironmentLacks without nvidia-ml-py, without a driver, or for a GPU that is not there."""
        self.nvml = nvml or _pynvml()
        try:
            self.nvml.nvmlInit()
            by_index = isinstance(which, int)
            find = self.nvml.nvmlDeviceGetHandleByIndex if by_index else self.nvml.nvmlDeviceGetHandleByUUID
            self.handle = find(which)
        except self.nvml.NVMLError as error:
            raise EnvironmentLacks(
                f"NVML: GPU {which} cannot be asked ({error}). Install NVIDIA's driver, or give a GPU of nvidia-smi -L."
            ) from error

    def state(self) -> dict[str, Any]:
        """`{sm_mhz, memory_mhz, temperature_c, power_w, throttled: [reason]}`, each where the GPU tells it."""
        n, h = self.nvml, self.handle
        found = {
            "sm_mhz": self._ask(lambda: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_SM)),
            "memory_mhz": self._ask(lambda: n.nvmlDeviceGetClockInfo(h, n.NVML_CLOCK_MEM)),
            "temperature_c": self._ask(lambda: n.nvmlDeviceGetTemperature(h, n.NVML_TEMPERATURE_GPU)),
            "power_w": self.power_w(),
            "throttled": self._ask(self._throttled),
        }
        return {k: v for k, v in found.items() if v is not None}

    def power_w(self) -> float | None:
        """Board power now, watts."""
        milliwatts = self._ask(lambda: self.nvml.nvmlDeviceGetPowerUsage(self.handle))
        return None if milliwatts is None else milliwatts / 1e3

    def energy_j(self) -> float | None:
        """Joules since the driver was loaded; None where the GPU does not count them (before Volta)."""
        millijoules = self._ask(lambda: self.nvml.nvmlDeviceGetTotalEnergyConsumption(self.handle))
        return None if millijoules is None else millijoules / 1e3

    def process_bytes(self, pid: int) -> int | None:
        """Device memory of one process, context included; None where the driver does not see it (e.g. in a container)."""
        listed = self._ask(lambda: self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle))
        found = [p.usedGpuMemory for p in listed or [] if p.pid == pid and p.usedGpuMemory is not None]
        return max(found) if found else None

    def _throttled(self) -> list[str]:
        n = self.nvml
        ask = getattr(n, "nvmlDeviceGetCurrentClocksEventReasons", None) or n.nvmlDeviceGetCurrentClocksThrottleReasons
        bits = ask(self.handle)
        return [name for bit, name in THROTTLES.items() if bits & bit]

    def _ask(self, question: Callable[[], Any]) -> Any:
        """An answer, or None where this GPU or driver has none."""
        with suppress(self.nvml.NVMLError):
            return question()
        return None


class Watch:
    """A thread that looks at a GPU, and at one process's memory there, every `every_s` seconds inside a `with` block."""

    def __init__(self, gpu: Gpu, pid: int | None = None, every_s: float = 0.02) -> None:
        self._gpu, self._pid, self._every_s = gpu, pid, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.states: list[dict[str, Any]] = []
        self.peak_bytes: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def summary(self) -> dict[str, Any]:
        """`{sm_mhz: [low, high], memory_mhz, temperature_c, power_w, throttled, process_peak_bytes}` of what was seen."""
        found: dict[str, Any] = {}
        for key in ("sm_mhz", "memory_mhz", "temperature_c", "power_w"):
            values = [s[key] for s in self.states if key in s]
            found |= {key: [min(values), max(values)]} if values else {}
        found["throttled"] = sorted({reason for s in self.states for reason in s.get("throttled", [])})
        return found if self.peak_bytes is None else found | {"process_peak_bytes": self.peak_bytes}

    def _look(self) -> None:
        while True:
            self.states.append(self._gpu.state())
            used = self._gpu.process_bytes(self._pid) if self._pid is not None else None
            self.peak_bytes = max(filter(None, (self.peak_bytes, used)), default=None)
            if self._over.wait(self._every_s):
                return


def _pynvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise EnvironmentLacks("NVML: nvidia-ml-py is not installed. pip install nvidia-ml-py") from error
    return pynvml
