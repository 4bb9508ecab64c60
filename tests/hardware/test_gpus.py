"""What NVML and /proc tell: read through a stand-in for the library, since most machines that run tests have no GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimize.hardware import environment
from optimize.hardware import gpus as module
from optimize.hardware.gpus import bandwidth_gb_s, gpus


class NVMLError(Exception):
    """As in the library."""


class Nvml:
    """Answers like nvidia-ml-py for a list of GPUs, each a dict of what it can tell."""

    NVMLError, NVML_CLOCK_MEM = NVMLError, 2

    def __init__(self, devices: list[dict[str, Any]], driver: bool = True) -> None:
        self.devices, self.driver, self.open = devices, driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise NVMLError("library not found")
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:
        return next(d for d in self.devices if d["uuid"] == uuid)

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.95.05"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str:
        return str(self._tell(handle, "name"))

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str:
        return str(self._tell(handle, "uuid"))

    def nvmlDeviceGetCudaComputeCapability(self, handle: dict[str, Any]) -> Any:
        return self._tell(handle, "sm")

    def nvmlDeviceGetMemoryInfo(self, handle: dict[str, Any]) -> Any:
        return SimpleNamespace(total=self._tell(handle, "memory"))

    def nvmlDeviceIsMigDeviceHandle(self, handle: dict[str, Any]) -> int:
        return int(handle.get("mig", 0))

    def nvmlDeviceGetMaxClockInfo(self, handle: dict[str, Any], kind: int) -> Any:
        assert kind == self.NVML_CLOCK_MEM
        return self._tell(handle, "clock")

    def nvmlDeviceGetMemoryBusWidth(self, handle: dict[str, Any]) -> Any:
        return self._tell(handle, "bits")

    def _tell(self, handle: dict[str, Any], what: str) -> Any:
        if what not in handle:
            raise NVMLError("not supported")
        return handle[what]


A100 = {
    "name": "NVIDIA A100-SXM4-40GB",
    "uuid": "GPU-a",
    "sm": [8, 0],
    "memory": 40 * 2**30,
    "clock": 1215,
    "bits": 5120,
}
RTX = {
    "name": "NVIDIA GeForce RTX 5090",
    "uuid": "GPU-b",
    "sm": [12, 0],
    "memory": 32 * 2**30,
    "clock": 14001,
    "bits": 512,
}
SLICE = A100 | {"uuid": "MIG-c", "memory": 5 * 2**30, "mig": 1}


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(module, "_cuda", lambda: None)
    gpus.cache_clear()
    yield
    gpus.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, *devices: dict[str, Any], driver: bool = True) -> Nvml:
    library = Nvml(list(devices), driver)
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type]
    return library


def test_facts_are_what_the_driver_tells_and_the_library_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    library = install(monkeypatch, A100)
    (found,) = gpus()
    assert found == {
        "name": "NVIDIA A100-SXM4-40GB",
        "uuid": "GPU-a",
        "sm": (8, 0),
        "memory_bytes": 40 * 2**30,
        "driver": "580.95.05",
        "cuda": "13.0",
        "memory_clock_mhz": 1215,
        "bus_bits": 5120,
    }
    assert library.open == 0
    assert bandwidth_gb_s(found) == pytest.approx(1555.2)


def test_what_a_device_does_not_tell_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, {"name": "NVIDIA X1", "uuid": "GPU-x"})
    (found,) = gpus()
    assert set(found) == {"name", "uuid", "driver", "cuda"}
    assert bandwidth_gb_s(found) is None


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("1", ["GPU-b"]),
        ("1,0", ["GPU-b", "GPU-a"]),
        ("GPU-b", ["GPU-b"]),
        ("", []),
        ("-1", []),
        ("0,9,1", ["GPU-a"]),
        ("MIG-c", ["MIG-c"]),
    ],
)
def test_only_visible_gpus_count(visible: str, uuids: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, A100, RTX, SLICE)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [g["uuid"] for g in gpus()] == uuids


def test_a_slice_of_a_gpu_is_no_member_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, SLICE)
    (found,) = gpus()
    assert found["name"].endswith("MIG") and bandwidth_gb_s(found) is None
    assert environment.device_class() == "a100-sxm4-40gb-mig"


def test_without_a_driver_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "PROC", tmp_path)
    install(monkeypatch, A100, driver=False)
    assert gpus() == ()


def test_without_the_library_linux_still_names_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it fails
    monkeypatch.setattr(module, "PROC", tmp_path)
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    information = "Model: \t\t NVIDIA H200\nIRQ:   	 92\nGPU UUID: 	 GPU-h\n"
    (tmp_path / "gpus" / "0000:01:00.0" / "information").write_text(information)
    (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue\n")
    assert gpus() == ({"name": "NVIDIA H200", "uuid": "GPU-h", "driver": "580.95.05"},)
    assert environment.gpu() == {"gpu": {"name": "NVIDIA H200", "driver": "580.95.05", "count": 1}}
    gpus.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus() == ()


class Cuda:
    """CUDA's driver with one GPU, or with none it can use."""

    def __init__(self, usable: bool = True) -> None:
        self.usable = usable

    def cuInit(self, flags: int) -> int:
        return 0 if self.usable else 100

    def cuDriverGetVersion(self, to: Any) -> None:
        to._obj.value = 13020

    def cuDeviceGetCount(self, to: Any) -> None:
        to._obj.value = 1

    def cuDeviceGet(self, to: Any, index: int) -> None:
        to._obj.value = 40 + index

    def cuDeviceGetName(self, to: Any, size: int, device: int) -> None:
        assert device == 40 and size == 128
        to.value = b"NVIDIA H200"

    def cuDeviceTotalMem_v2(self, to: Any, device: int) -> None:
        to._obj.value = 141 * 2**30

    def cuDeviceGetAttribute(self, to: Any, which: int, device: int) -> None:
        to._obj.value = {75: 9, 76: 0}[which]


def test_without_the_library_cudas_driver_tells_of_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(module, "PROC", tmp_path)  # as in a container that hides it
    monkeypatch.setattr(module, "_cuda", Cuda)
    assert gpus() == ({"name": "NVIDIA H200", "sm": (9, 0), "memory_bytes": 141 * 2**30, "cuda": "13.2"},)
    assert environment.device_class() == "h200"
    gpus.cache_clear()
    monkeypatch.setattr(module, "_cuda", lambda: Cuda(usable=False))
    assert gpus() == ()


def test_where_there_is_no_driver_none_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(module, "DRIVERS", ("libsurely-not-there.so",))
    assert module._cuda() is None


def test_the_environment_names_class_and_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, A100, A100)
    found = environment.environment()
    assert found["device"] == "a100"
    about = {"name": A100["name"], "sm": [8, 0], "memory_gib": 40.0, "driver": "580.95.05", "cuda": "13.0", "count": 2}
    assert found["gpu"] == about
    with_gpu = environment.key()
    gpus.cache_clear()
    install(monkeypatch)
    assert environment.environment()["device"] == "cpu" and "gpu" not in environment.environment()
    assert environment.key() != with_gpu


@pytest.mark.gpu
def test_nvml_and_torch_agree_on_the_gpu_here() -> None:
    import torch

    about, (first, *_) = torch.cuda.get_device_properties(0), gpus()
    assert first["sm"] == (about.major, about.minor)
    assert first["name"] == about.name
    assert first["memory_bytes"] == pytest.approx(about.total_memory, rel=0.03)
