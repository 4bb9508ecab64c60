"""Energy of a stretch of work: the GPU's own counter, its sampled power, or the processor's RAPL counters.

A GPU's figure is the whole board's; RAPL's is the whole package's, whatever else runs on it. Where nothing counts, the
figure is absent and the reason is given. Torch-free.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

from optimize.errors import EnvironmentLacks
from optimize.measure.nvml import Gpu

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """`by` says what counts; `stop` gives the joules since `start`."""

    by: str

    def start(self) -> None: ...

    def stop(self) -> float: ...


def meter(gpu: str | int | None, powercap: Path = POWERCAP, nvml: Any = None) -> Meter:
    """The best meter for a GPU (its UUID or NVML index), or for the processor where `gpu` is None.

    Raises EnvironmentLacks where nothing counts energy here.
    """
    if gpu is None:
        return Rapl(powercap)
    found = Gpu(gpu, nvml)
    if found.energy_j() is not None:
        return Counter(found)
    if found.power_w() is not None:
        return SampledPower(found)
    raise EnvironmentLacks(f"energy: GPU {gpu} tells neither its energy nor its power.")


class Counter:
    """The GPU's energy counter (Volta and later); it moves on every 20 to 100 ms, so short stretches round."""

    by = "NVML energy counter, whole board"

    def __init__(self, gpu: Gpu) -> None:
        self._gpu, self._before = gpu, 0.0

    def start(self) -> None:
        """Remember the counter."""
        self._before = self._read()

    def stop(self) -> float:
        """Joules since `start`."""
        return self._read() - self._before

    def _read(self) -> float:
        joules = self._gpu.energy_j()
        if joules is None:
            raise EnvironmentLacks("energy: the GPU's energy counter stopped answering.")
        return joules


class SampledPower:
    """The board's power, sampled by a thread and integrated by trapezoids."""

    by = "NVML power sampled, whole board"

    def __init__(self, gpu: Gpu, every_s: float = 0.02) -> None:
        self._gpu, self._every_s = gpu, every_s

    def start(self) -> None:
        """Begin to sample."""
        self._over, self._seen = threading.Event(), list[tuple[float, float]]()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Joules since `start`."""
        self._over.set()
        self._thread.join()
        return integral(self._seen)

    def _look(self) -> None:
        while True:
            power = self._gpu.power_w()
            if power is not None:
                self._seen.append((perf_counter(), power))
            if self._over.is_set():
                return
            self._over.wait(self._every_s)


def integral(samples: list[tuple[float, float]]) -> float:
    """Joules under (seconds, watts) samples, by trapezoids."""
    return sum((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairwise(samples))


class Rapl:
    """The processor packages' counters (Linux powercap): microjoules that start again at `max_energy_range_uj`."""

    by = "RAPL, whole processor package"

    def __init__(self, powercap: Path = POWERCAP) -> None:
        """Raises EnvironmentLacks where there is no counter, or none that may be read."""
        packages = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1)
        if not packages:
            raise EnvironmentLacks(f"energy: no RAPL counter under {powercap} (none on virtual machines, as a rule).")
        try:
            self._wraps = {p: float((p / "max_energy_range_uj").read_text()) for p in packages}
            self.start()
        except OSError as error:
            raise EnvironmentLacks(
                f"energy: {error.filename} cannot be read ({error.strerror}). Run as root, or allow reading it."
            ) from error

    def start(self) -> None:
        """Remember the counters."""
        self._before = self._read()

    def stop(self) -> float:
        """Joules since `start`; a counter that started again once is allowed for."""
        after = self._read()
        return sum((after[p] - before) % self._wraps[p] for p, before in self._before.items()) / 1e6

    def _read(self) -> dict[Path, float]:
        return {p: float((p / "energy_uj").read_text()) for p in self._wraps}
