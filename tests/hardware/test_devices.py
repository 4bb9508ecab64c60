"""The device found here and its class; which class a measurement belongs to."""

from __future__ import annotations

from typing import Any

import pytest

from optimize.errors import UserError
from optimize.hardware import devices
from optimize.hardware.targets import targets
from optimize.measure.record import Measurement, Variant, device_class

H200 = {"name": "NVIDIA H200", "sm": (9, 0), "memory_bytes": 141 * 10**9}
NEW = {
    "name": "NVIDIA GeForce RTX 5090",
    "sm": (12, 0),
    "memory_bytes": 32 * 2**30,
    "memory_clock_mhz": 14001,
    "bus_bits": 512,
}


def found(monkeypatch: pytest.MonkeyPatch, *facts: dict[str, Any]) -> None:
    monkeypatch.setattr(devices, "gpus", lambda: facts)


def test_a_machine_without_a_gpu_is_the_cpu_class(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch)
    target, facts = devices.here()
    assert target is targets()["cpu"]
    assert facts["cores"] >= 1 and devices.memory_gb(facts) is None


def test_a_listed_gpu_is_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, H200)
    target, facts = devices.here()
    assert target is targets()["h200"]
    assert devices.memory_gb(facts) == pytest.approx(131.3, abs=0.1)


def test_an_unlisted_gpu_is_what_its_driver_tells_and_has_no_peaks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    found(monkeypatch, NEW)
    target, _ = devices.here()
    assert (target.name, target.sm, target.memory_gb) == ("rtx-5090", (12, 0), (32,))
    assert target.bandwidth() == pytest.approx(1792, abs=1)
    assert not target.peak_tflops and target.tensorrt == "current" and target.tensorrt_rtx and target.sparsity_2_4
    assert "NVIDIA GeForce RTX 5090 is of no listed class: its peak rates are unknown" in caplog.text


def test_an_old_gpu_has_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    old = devices.of({"name": "Tesla P100-PCIE-16GB", "sm": (6, 0)})
    assert old.tensorrt is None and not old.tensorrt_rtx and not old.sparsity_2_4 and not old.int8_tensor_cores
    volta = devices.of({"name": "Tesla V100S-PCIE-32GB", "sm": (7, 0)})
    assert volta.tensorrt == "10.4"


def test_torch_is_asked_where_nvml_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, {"name": "NVIDIA RTX A6000"})
    monkeypatch.setattr(devices, "_asked_of_torch", lambda: {"sm": (8, 6), "memory_bytes": 48 * 2**30})
    target, _ = devices.here()
    assert (target.name, target.sm, target.memory_gb) == ("rtx-a6000", (8, 6), (48,))


def test_names_become_classes_once_each(monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch, H200)
    assert [t.name for t in devices.resolve(["a100", "here", "h200", "cpu"])] == ["a100", "h200", "cpu"]


def test_every_unknown_target_is_named_with_the_nearest() -> None:
    with pytest.raises(UserError) as caught:
        devices.resolve(["a1000", "rtx3080", "v100"])
    message = str(caught.value)
    assert '"a1000" is not known. Did you mean "a100"?' in message
    assert '"rtx3080" is not known. Did you mean "rtx3090"?' in message
    assert "Allowed: here, cpu, v100" in message
    with pytest.raises(UserError, match="target: none given"):
        devices.resolve([])


@pytest.mark.parametrize(
    ("device", "expected"),
    [("cpu", "cpu"), ("AMD EPYC", "cpu"), ("cuda", "h200"), ("cuda:0", "h200"), ("NVIDIA H200", "h200"), (None, "cpu")],
)
def test_a_measurement_belongs_to_the_device_its_runner_ran_on(device: str | None, expected: str) -> None:
    variant = Variant(key="a/b/1", folder="x", runner="torch")
    runner = {"device": device} if device else {}
    assert device_class(Measurement(variant, runner=runner, environment={"device": "h200"})) == expected


@pytest.mark.gpu
def test_the_gpu_here_has_a_class_and_a_bandwidth() -> None:
    from optimize.hardware.gpus import bandwidth_gb_s

    target, facts = devices.here()
    assert target.cuda and target.sm == facts["sm"]
    listed, told = target.bandwidth(devices.memory_gb(facts)), bandwidth_gb_s(facts)
    assert told == pytest.approx(listed, rel=0.1)
