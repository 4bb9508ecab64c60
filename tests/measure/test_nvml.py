"""NVML and energy through a made-up driver and made-up counters; the real ones where there is a GPU."""

from __future__ import annotations

import builtins
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimize.errors import EnvironmentLacks
from optimize.measure import energy
from optimize.measure.nvml import Gpu, Watch


class Driver:
    """A pynvml of one GPU; what is set to None raises as NVML does where a counter is missing."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = "sm", "memory", 0

    class NVMLError(Exception):
        pass

    def __init__(self, **values: Any) -> None:
        clocks = {"sm": 1980, "memory": 2619}
        usual = {"clocks": clocks, "heat": 55, "power": 300_000, "energy": 1_000, "reasons": 0, "processes": []}
        self.values = usual | values
        self.asked_energy = 0

    def nvmlInit(self) -> None:
        return None

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def _value(self, name: str) -> Any:
        if self.values[name] is None:
            raise self.NVMLError("Not Supported")
        return self.values[name]

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: str) -> int:
        return self._value("clocks")[kind]

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return self._value("heat")

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return self._value("power")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        self.asked_energy += 1
        return self._value("energy") * self.asked_energy

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        return self._value("reasons")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> Any:
        return self._value("processes")


def test_a_gpus_state_is_read_in_plain_units_and_throttling_has_names():
    gpu = Gpu("GPU-1", Driver(reasons=0x1 | 0x4 | 0x40))  # idle counts for nothing
    assert gpu.state() == {
        "sm_mhz": 1980,
        "memory_mhz": 2619,
        "temperature_c": 55,
        "power_w": 300.0,
        "throttled": ["software power cap", "hardware thermal slowdown"],
    }


def test_a_counter_that_is_missing_is_absent_not_zero():
    gpu = Gpu(0, Driver(clocks=None, power=None, energy=None, reasons=None, processes=None))
    assert gpu.state() == {"temperature_c": 55}
    assert gpu.energy_j() is None and gpu.process_bytes(1) is None


def test_memory_is_that_of_the_process_asked_for():
    listed = [SimpleNamespace(pid=7, usedGpuMemory=100), SimpleNamespace(pid=8, usedGpuMemory=900)]
    gpu = Gpu(0, Driver(processes=listed))
    assert gpu.process_bytes(7) == 100 and gpu.process_bytes(9) is None


def test_a_watch_keeps_ranges_reasons_and_the_peak():
    driver = Driver(processes=[SimpleNamespace(pid=7, usedGpuMemory=100)])
    with Watch(Gpu(0, driver), pid=7, every_s=0.001) as watch:
        until(lambda: len(watch.states) >= 1)
        driver.values |= {"heat": 80, "reasons": 0x20, "processes": [SimpleNamespace(pid=7, usedGpuMemory=500)]}
        until(lambda: watch.peak_bytes == 500)
        driver.values |= {"processes": [SimpleNamespace(pid=7, usedGpuMemory=200)]}
    found = watch.summary()
    assert found["temperature_c"] == [55, 80] and found["throttled"] == ["software thermal slowdown"]
    assert found["process_peak_bytes"] == 500


def until(holds: Any) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_gpu_that_is_not_there_and_a_missing_library_say_what_to_do(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(EnvironmentLacks, match=r"GPU GPU-2 cannot be asked \(Not Found\).*Install NVIDIA's driver"):
        Gpu("GPU-2", Driver())
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EnvironmentLacks, match="pip install nvidia-ml-py"):
        Gpu(0)


def test_energy_takes_the_counter_then_the_power_then_nothing():
    counter = energy.meter("GPU-1", nvml=Driver(energy=2_000))
    counter.start()
    assert counter.by.startswith("NVML energy counter") and counter.stop() == 2.0  # the driver adds 2 J a reading
    sampled = energy.meter("GPU-1", nvml=Driver(energy=None))
    sampled.start()
    time.sleep(0.05)
    joules = sampled.stop()
    assert sampled.by.startswith("NVML power") and 0.9 * 300 * 0.04 < joules < 300 * 20
    with pytest.raises(EnvironmentLacks, match="tells neither its energy nor its power"):
        energy.meter("GPU-1", nvml=Driver(energy=None, power=None))


def test_sampled_power_is_integrated_by_trapezoids():
    assert energy.integral([(0.0, 100.0), (1.0, 200.0), (3.0, 200.0)]) == 150.0 + 400.0
    assert energy.integral([(0.0, 100.0)]) == 0.0


def rapl(root: Path, *counts: int) -> Path:
    for i, count in enumerate(counts):
        for name in (f"intel-rapl:{i}", f"intel-rapl:{i}:0"):  # cores count within their package
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / "max_energy_range_uj").write_text("10000000\n")
            (root / name / "energy_uj").write_text(f"{count}\n")
    return root


def test_rapl_adds_up_packages_and_survives_a_counter_that_starts_again(tmp_path: Path):
    meter = energy.meter(None, rapl(tmp_path, 1_000_000, 9_000_000))
    meter.start()
    rapl(tmp_path, 3_000_000, 500_000)
    assert meter.stop() == pytest.approx(2.0 + 1.5)


def test_no_energy_counter_is_a_reason_not_a_zero(tmp_path: Path):
    with pytest.raises(EnvironmentLacks, match="no RAPL counter under"):
        energy.meter(None, tmp_path)
    folder = rapl(tmp_path, 1)
    (folder / "intel-rapl:0" / "energy_uj").unlink()
    with pytest.raises(EnvironmentLacks, match=r"energy_uj cannot be read .* Run as root"):
        energy.meter(None, folder)


@pytest.mark.gpu
def test_a_real_gpu_tells_its_state_and_counts_energy():
    import torch

    gpu = Gpu(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    assert {"sm_mhz", "temperature_c", "power_w", "throttled"} <= set(gpu.state())
    meter = energy.meter(0)
    x = torch.randn(4096, 4096, device="cuda")
    meter.start()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        x = (x @ x).clamp(-1, 1)
        torch.cuda.synchronize()
    assert 20 < meter.stop() < 2000
