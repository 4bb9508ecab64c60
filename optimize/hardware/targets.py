"""Device classes: what a GPU class can compute, how fast at best, and what software still runs on it. Torch-free.

Peaks are dense and those of the SXM part where there is one; many pages print the sparse figure as the dense one.
Sources: NVIDIA's datasheets and architecture whitepapers (V100 2017, T4 2018, A100 2020, GA102 2020, A10 2021, L4 2023,
AD102 2022, H100 2022, H200 2023); TensorRT's support matrix for `tensorrt`. A rate in `unconfirmed` comes from memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal

from optimize.errors import UserError, unknown

Format = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "fp4"]
FORMATS: tuple[Format, ...] = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "fp4")


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device class. `peak_tflops` holds dense peaks (TFLOP/s, or TOP/s for integers) of the formats it computes in."""

    name: str
    title: str  # as a table prints it
    device: Literal["cuda", "cpu"] = "cuda"
    sm: tuple[int, int] | None = None  # compute capability
    memory_gb: tuple[int, ...] = ()  # sizes it is sold with, largest last
    bandwidth_gb_s: tuple[float, ...] = ()  # of each of those sizes
    peak_tflops: Mapping[str, float] = field(default_factory=dict)
    watts: float | None = None  # board power
    l2_mb: float | None = None
    sparsity_2_4: bool = False
    tensorrt: str | None = None  # the last usable version, "current", or None where there is none
    tensorrt_rtx: bool = False  # whether TensorRT-RTX builds engines for its SM, ahead of time as well
    int8_tensor_cores: bool = True
    unconfirmed: tuple[str, ...] = ()  # formats whose peak is not from a datasheet
    matches: tuple[str, ...] = ()  # parts of the names that drivers report

    @property
    def cuda(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.device == "cuda"

    def computes(self, format: str) -> bool:
        """Whether the hardware computes in this format at all."""
        return format in self.peak_tflops

    @property
    def sm_text(self) -> str:
        """The compute capability as it is written, "8.6"; empty where there is none."""
        return f"{self.sm[0]}.{self.sm[1]}" if self.sm else ""

    def bandwidth(self, memory_gb: float | None = None) -> float:
        """Memory bandwidth (GB/s) of the part with at least this memory; of the smallest part where not given.

        UserError where it is not listed: a CPU's is measured on the spot."""
        if not self.bandwidth_gb_s:
            raise UserError(
                f"target {self.name}: its memory bandwidth is not listed. Measure it, and give it as a rate."
            )
        fits = [b for m, b in zip(self.memory_gb, self.bandwidth_gb_s) if memory_gb is None or m >= memory_gb]
        return fits[0] if fits else self.bandwidth_gb_s[-1]


def _gpu(name: str, title: str, sm: tuple[int, int], peak: dict[str, float], **facts: Any) -> Target:
    defaults = {"tensorrt": "current", "tensorrt_rtx": sm in RTX_SMS, "sparsity_2_4": sm >= (8, 0)}
    return Target(name=name, title=title, sm=sm, peak_tflops=MappingProxyType(peak), **{**defaults, **facts})


RTX_SMS = frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)})


@lru_cache
def targets() -> Mapping[str, Target]:
    """Every GPU class and `cpu`, by name; `here` is whatever is found (see `optimize.hardware.devices`)."""
    classes = (
        _gpu(
            "v100", "V100 SXM2", (7, 0), memory_gb=(16, 32), bandwidth_gb_s=(900, 900), watts=300, l2_mb=6,
            peak={"fp32": 15.7, "fp16": 125, "int8": 63}, tensorrt="10.4", int8_tensor_cores=False,
            unconfirmed=("int8",), matches=("V100",),
        ),
        _gpu(
            "t4", "T4", (7, 5), memory_gb=(16,), bandwidth_gb_s=(320,), watts=70, l2_mb=4,
            peak={"fp32": 8.1, "fp16": 65, "int8": 130, "int4": 260}, matches=("T4",),
        ),
        _gpu(
            "a100", "A100 SXM", (8, 0), memory_gb=(40, 80), bandwidth_gb_s=(1555, 2039), watts=400, l2_mb=40,
            peak={"fp32": 19.5, "tf32": 156, "fp16": 312, "bf16": 312, "int8": 624, "int4": 1248}, matches=("A100",),
        ),
        _gpu(
            "a10", "A10", (8, 6), memory_gb=(24,), bandwidth_gb_s=(600,), watts=150, l2_mb=6,
            peak={"fp32": 31.2, "tf32": 62.5, "fp16": 125, "bf16": 125, "int8": 250, "int4": 500},
            unconfirmed=("tf32", "fp16", "bf16", "int8", "int4"), matches=("A10",),
        ),
        _gpu(
            "rtx3090", "GeForce RTX 3090", (8, 6), memory_gb=(24,), bandwidth_gb_s=(936,), watts=350, l2_mb=6,
            # tensor-core rates with 32-bit accumulation, which frameworks use; FP16 with 16-bit accumulation is 142
            peak={"fp32": 35.6, "tf32": 35.6, "fp16": 71, "bf16": 71, "int8": 284, "int4": 568},
            unconfirmed=("tf32", "fp16", "bf16", "int8", "int4"), matches=("RTX 3090",),
        ),
        _gpu(
            "l4", "L4", (8, 9), memory_gb=(24,), bandwidth_gb_s=(300,), watts=72, l2_mb=48,
            peak={"fp32": 30.3, "tf32": 60, "fp16": 121, "bf16": 121, "fp8": 242, "int8": 242, "int4": 485},
            unconfirmed=("tf32", "fp16", "bf16", "fp8", "int8", "int4"), matches=("L4",),
        ),
        _gpu(
            "rtx4090", "GeForce RTX 4090", (8, 9), memory_gb=(24,), bandwidth_gb_s=(1008,), watts=450, l2_mb=72,
            # with 32-bit accumulation; FP16 with 16-bit accumulation is 330, FP8 661
            peak={"fp32": 82.6, "tf32": 82.6, "fp16": 165, "bf16": 165, "fp8": 330, "int8": 661, "int4": 1321},
            matches=("RTX 4090",),
        ),
        _gpu(
            "h100", "H100 SXM", (9, 0), memory_gb=(80,), bandwidth_gb_s=(3350,), watts=700, l2_mb=50,
            peak={"fp32": 67, "tf32": 495, "fp16": 989, "bf16": 989, "fp8": 1979, "int8": 1979}, matches=("H100",),
        ),
        _gpu(
            "h200", "H200 SXM", (9, 0), memory_gb=(141,), bandwidth_gb_s=(4800,), watts=700, l2_mb=50,
            peak={"fp32": 67, "tf32": 495, "fp16": 989, "bf16": 989, "fp8": 1979, "int8": 1979}, matches=("H200",),
        ),
        Target(name="cpu", title="CPU", device="cpu"),  # its rates are measured on the spot
    )  # fmt: skip
    return MappingProxyType({t.name: t for t in classes})


# words in a driver's name that say it is another part of the family, or a slice of the GPU, with other rates
OTHER_PARTS = frozenset({"ti", "super", "laptop", "mobile", "nvl", "pcie", "max", "d", "mig", "grid"})
PCIE_TOO = frozenset({"V100", "A100"})  # their PCIe cards have the same memory and nearly the same peaks
VGPU = re.compile(r"\d+[ABCQ]")  # a share of a GPU, "A10-24Q"

NAMES = ("here", "cpu", "v100", "a100", "rtx3090", "t4", "a10", "l4", "rtx4090", "h100", "h200")


def target(name: str) -> Target:
    """The class of this name; UserError with the nearest name where there is none. `here` must be found out first."""
    known = targets()
    if name not in known:
        raise unknown("target", name, known)
    return known[name]


def classify(device_name: str) -> Target | None:
    """The class of a GPU from the name its driver reports, e.g. "NVIDIA A100-SXM4-80GB"; None for one that is not listed.

    A name is matched by whole words, so that "A10" is not found in "A100"; another part of the family, e.g. an
    "RTX 3090 Ti", is no member of the class."""
    words = device_name.replace("-", " ").split()
    other = OTHER_PARTS - ({"pcie"} if PCIE_TOO & set(words) else set())
    if any(w.lower() in other or VGPU.fullmatch(w) for w in words):
        return None
    for known in targets().values():
        for pattern in known.matches:
            parts = pattern.split()
            if any(words[i : i + len(parts)] == parts for i in range(len(words))):
                return known
    return None


def class_name(device_name: str) -> str:
    """The class's name, or for a GPU of no listed class its own as one word: "NVIDIA RTX A6000" is rtx-a6000."""
    known = classify(device_name)
    words = device_name.lower().replace("(", " ").replace(")", " ").split()
    return known.name if known else "-".join(w for w in words if w not in ("nvidia", "geforce")) or "gpu"
