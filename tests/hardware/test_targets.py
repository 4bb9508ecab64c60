"""Device classes: every figure against the table they come from, names drivers report, nearest names."""

from __future__ import annotations

import pytest

from optimize.errors import UserError
from optimize.hardware.targets import NAMES, class_name, classify, target, targets

# name: SM, GB, GB/s, FP32, TF32, FP16 (acc32), BF16, FP8, INT8, INT4, 2:4, W, L2 MB: dense peaks, typed from the datasheets
TABLE = {
    "v100": ("7.0", (16, 32), (900, 900), 15.7, None, 125, None, None, 63, None, False, 300, 6),
    "t4": ("7.5", (16,), (320,), 8.1, None, 65, None, None, 130, 260, False, 70, 4),
    "a100": ("8.0", (40, 80), (1555, 2039), 19.5, 156, 312, 312, None, 624, 1248, True, 400, 40),
    "a10": ("8.6", (24,), (600,), 31.2, 62.5, 125, 125, None, 250, 500, True, 150, 6),
    "rtx3090": ("8.6", (24,), (936,), 35.6, 35.6, 71, 71, None, 284, 568, True, 350, 6),
    "l4": ("8.9", (24,), (300,), 30.3, 60, 121, 121, 242, 242, 485, True, 72, 48),
    "rtx4090": ("8.9", (24,), (1008,), 82.6, 82.6, 165, 165, 330, 661, 1321, True, 450, 72),
    "h100": ("9.0", (80,), (3350,), 67, 495, 989, 989, 1979, 1979, None, True, 700, 50),
    "h200": ("9.0", (141,), (4800,), 67, 495, 989, 989, 1979, 1979, None, True, 700, 50),
}
RATES = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4")


@pytest.mark.parametrize("name", TABLE)
def test_every_figure_of_a_class_is_the_tables(name: str) -> None:
    sm, memory, bandwidth, *rates, sparse, watts, l2 = TABLE[name]
    found = target(name)
    assert (found.sm_text, found.memory_gb, found.bandwidth_gb_s) == (sm, memory, bandwidth)
    assert [found.peak_tflops.get(r) for r in RATES] == rates
    assert (found.sparsity_2_4, found.watts, found.l2_mb) == (sparse, watts, l2)


def test_the_table_names_every_class() -> None:
    assert {*TABLE, "cpu"} == set(targets())
    assert {*targets(), "here"} == set(NAMES)


@pytest.mark.parametrize(
    ("sm", "formats"),
    [
        ("7.0", {"fp16", "int8"}),
        ("7.5", {"fp16", "int8"}),
        ("8.0", {"tf32", "fp16", "bf16", "int8"}),
        ("8.6", {"tf32", "fp16", "bf16", "int8"}),
        ("8.9", {"tf32", "fp16", "bf16", "int8", "fp8"}),
        ("9.0", {"tf32", "fp16", "bf16", "int8", "fp8"}),
    ],
)
def test_formats_follow_the_compute_capability(sm: str, formats: set[str]) -> None:
    classes = [t for t in targets().values() if t.sm_text == sm]
    assert classes
    for found in classes:
        assert {f for f in ("tf32", "fp16", "bf16", "int8", "fp8", "fp4") if found.computes(f)} == formats


def test_what_software_still_runs_on_a_class() -> None:
    assert target("v100").tensorrt == "10.4" and not target("v100").int8_tensor_cores
    assert all(
        t.tensorrt == "current" and t.int8_tensor_cores for n, t in targets().items() if n in TABLE and n != "v100"
    )
    rtx = {n for n, t in targets().items() if t.tensorrt_rtx}
    assert rtx == {"t4", "a100", "a10", "rtx3090", "l4", "rtx4090"}
    assert target("cpu").tensorrt is None and not target("cpu").cuda


def test_peaks_from_memory_are_marked() -> None:
    marked = {n: set(t.unconfirmed) for n, t in targets().items() if t.unconfirmed}
    tensor = {"tf32", "fp16", "bf16", "int8", "int4"}
    assert marked == {"v100": {"int8"}, "a10": tensor, "rtx3090": tensor, "l4": tensor | {"fp8"}}


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("Tesla V100-SXM2-16GB", "v100"),
        ("Tesla V100-PCIE-32GB", "v100"),
        ("Tesla V100S-PCIE-32GB", None),
        ("Tesla T4", "t4"),
        ("NVIDIA T400", None),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("GRID A100-10C", None),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", None),
        ("NVIDIA A10-24Q", None),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 5090", None),
    ],
)
def test_a_drivers_name_finds_its_class_and_no_other(reported: str, name: str | None) -> None:
    found = classify(reported)
    assert (found.name if found else None) == name


def test_a_gpu_of_no_class_is_named_after_itself() -> None:
    assert class_name("NVIDIA GeForce RTX 3090") == "rtx3090"
    assert class_name("NVIDIA GeForce RTX 5090") == "rtx-5090"
    assert class_name("NVIDIA RTX A6000") == "rtx-a6000"
    assert class_name("NVIDIA") == "gpu"


def test_bandwidth_is_that_of_the_part_with_the_memory() -> None:
    a100 = target("a100")
    assert [a100.bandwidth(m) for m in (None, 39.4, 79.2, 96)] == [1555, 1555, 2039, 2039]
    with pytest.raises(UserError, match="target cpu: its memory bandwidth is not listed"):
        target("cpu").bandwidth()


@pytest.mark.parametrize(("given", "near"), [("a1000", "a100"), ("rtx-3090", "rtx3090"), ("v10", "v100")])
def test_an_unknown_class_offers_the_nearest(given: str, near: str) -> None:
    with pytest.raises(UserError, match=f'target: "{given}" is not known. Allowed: .*Did you mean "{near}"'):
        target(given)
