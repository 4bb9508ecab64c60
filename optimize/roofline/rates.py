"""The roofline itself: what a device reaches of its peaks (`Rates`), and the seconds of a table of layers at these rates.

An operator takes the longer of its arithmetic and its memory traffic, each at the share of the peak that `Rates` found
in measurements, and an overhead (Williams et al., "Roofline", CACM 2009).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from optimize.hardware.targets import Target
from optimize.roofline.layers import Layer

BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "fp4": 0.5}


NARROW = ("fp8", "int8", "int4", "fp4")  # formats of convolutions and linear layers alone; the rest stays wider


FUSED = ("elementwise",)


LEVEL = 0.9  # of the interval


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device reaches of its peaks, with how far predictions by it were off on networks it had not seen."""

    name: str  # what was measured: device, software, figures
    # share of the peak by kind of layer, "default" for kinds not named; "other": of what are no multiply-accumulates,
    # which cost nothing but their traffic where it is missing
    compute: Mapping[str, float]
    bandwidth: float  # share of the memory bandwidth; above 1 where caches hold what is moved
    overhead_s: float  # of each operator that is not fused
    spread: float  # standard deviation of ln(measured / predicted), out of sample
    samples: int  # predictions that `spread` is the spread of, at least 2
    cache: float = 1.0  # how much faster than memory activations come from the last cache, where they fit; at least 1
    launch: Mapping[str, float] = field(default_factory=dict)  # overhead_s of the kinds that differ
    scale: float = 1.0  # of all seconds: what the device's own figures say beside those of its kind
    fused: bool = True  # False: every element-wise operator goes through memory (torch eager)
    formats: tuple[str, ...] = ("fp16",)  # formats that were measured
    peak_tflops: Mapping[str, float] = field(default_factory=dict)  # measured peaks, in place of the target's
    bandwidth_gb_s: float | None = None  # likewise

    def factor(self, level: float = LEVEL) -> float:
        """Half width of the interval as a ratio: a prediction p means [p / factor, p * factor] at this level."""
        from scipy.stats import t

        quantile = float(t.ppf((1 + level) / 2, max(self.samples - 1, 1)))
        return math.exp(quantile * self.spread * math.sqrt(1 + 1 / self.samples))


class Device:
    """A target at the rates it reaches; `seconds(layers, format)` is the roofline itself."""

    def __init__(self, target: Target, rates: Rates, memory_gb: float | None = None) -> None:
        self.target, self.rates = target, rates
        self.peaks = rates.peak_tflops or target.peak_tflops
        gb_s = rates.bandwidth_gb_s or target.bandwidth(memory_gb)
        self.bytes_s = 1e9 * gb_s * rates.bandwidth

    def base(self, format: str) -> str:
        """Format of what a narrow format leaves alone."""
        if format not in NARROW:
            return format
        return next(f for f in ("fp16", "bf16", "fp32") if f in self.peaks)

    def format(self, layer: Layer, format: str) -> tuple[str, str]:
        """(format of the weights, format of the arithmetic) of one layer."""
        base = self.base(format)
        if layer.kind not in ("conv", "linear"):
            return base, base
        narrow = layer.format or format
        return (narrow, narrow if narrow in self.peaks and narrow != "int4" else base)

    def seconds(self, table: Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(compute, memory, overhead) seconds (N,) of each operator; it takes max(compute, memory) + overhead."""
        rates = self.rates
        shares = np.array([rates.compute.get(k, rates.compute.get("default", 1.0)) for k in table.kinds])
        compute = table.ideal / shares
        if "other" in rates.compute:
            compute = compute + table.other / rates.compute["other"]
        fused = table.elementwise if rates.fused else np.zeros(len(shares), bool)
        traffic = np.where(fused, table.beside, table.read + table.written)
        memory = (traffic * self.slowness(table.read + table.written) + table.weights) / self.bytes_s
        launched = np.array([rates.launch.get(k, rates.overhead_s) for k in table.kinds])
        overhead = np.where(fused | table.idle, 0.0, launched)
        return rates.scale * compute, rates.scale * memory, rates.scale * overhead

    def slowness(self, held_bytes: np.ndarray) -> np.ndarray:
        """Time of traffic against memory alone, of tensors this large: the part of them that the cache keeps, c / (c +
        size) of a cache of c bytes, comes `rates.cache` times as fast."""
        cache = 1e6 * (self.target.l2_mb or 0)
        kept = cache / (cache + held_bytes) if cache else np.zeros_like(held_bytes)
        return 1 - kept * (1 - 1 / self.rates.cache)


class Table:
    """Layers as columns (N,) for one device and format: bytes moved, and seconds at the peak."""

    def __init__(self, layers: Sequence[Layer], device: Device, format: str) -> None:
        formats = [device.format(layer, format) for layer in layers]
        wide, peaks = BYTES[device.base(format)], device.peaks
        peak = np.array([1e12 * peaks[arithmetic] for _, arithmetic in formats])
        self.kinds = [layer.kind for layer in layers]
        self.idle = np.array([k == "unused" for k in self.kinds])  # nothing runs
        self.elementwise = np.array([k in FUSED for k in self.kinds])
        self.ideal = np.array([2.0 * layer.macs for layer in layers]) / peak
        self.other = np.array([float(layer.other_flops) for layer in layers]) / peak
        stored = np.array([BYTES[s] for s, _ in formats])
        self.size = stored * np.array([layer.weights for layer in layers])  # bytes on disk
        looked_up = np.array([k == "embedding" for k in self.kinds])  # of a table only the rows asked for are read
        self.weights = np.where(self.idle | looked_up, 0.0, self.size)
        self.read = np.array([BYTES[a] for _, a in formats]) * np.array([layer.inputs for layer in layers])
        self.written = wide * np.array([layer.outputs for layer in layers])
        self.beside = np.maximum(self.read - self.written, 0.0)  # of a fused operator: its other operands
