"""Predicted time and memory of a network call on a device class, operator by operator, without running it.

An operator takes the longer of its arithmetic and its memory traffic, each at the share of the peak that `Rates` found
in measurements, and an overhead (Williams et al., "Roofline", CACM 2009). Element-wise operators are fused into the
one before them, as engines do: they cost the reading of their other operands alone. Figures are always predictions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from optimize.errors import UserError, unknown
from optimize.layers import Layer
from optimize.targets import FORMATS, Target

Bound = Literal["compute", "memory", "overhead"]
BYTES = {"fp32": 4.0, "tf32": 4.0, "fp16": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5, "fp4": 0.5}
ARITHMETIC = ("conv", "linear", "attention", "matmul")
NARROW = ("fp8", "int8", "int4", "fp4")  # formats of convolutions and linear layers alone; the rest stays wider
FUSED = ("elementwise",)
LEVEL = 0.9  # of the interval


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What a device reaches of its peaks, with how far predictions by it were off on networks it had not seen."""

    name: str  # what was measured: device, software, figures
    compute: Mapping[str, float]  # share of the peak by kind of layer; "default" for kinds not named; (0, inf)
    bandwidth: float  # share of the memory bandwidth; may exceed 1 where caches hold the activations
    overhead_s: float  # of each operator that is not fused
    spread: float  # standard deviation of ln(measured / predicted), out of sample
    samples: int  # predictions that `spread` is the spread of, at least 2
    fused: bool = True  # False: every element-wise operator goes through memory (torch eager)
    formats: tuple[str, ...] = ("fp16",)  # formats that were measured
    peak_tflops: Mapping[str, float] = field(default_factory=dict)  # measured peaks, in place of the target's
    bandwidth_gb_s: float | None = None  # likewise

    def factor(self, level: float = LEVEL) -> float:
        """Half width of the interval as a ratio: a prediction p means [p / factor, p * factor] at this level."""
        from scipy.stats import t

        quantile = float(t.ppf((1 + level) / 2, max(self.samples - 1, 1)))
        return math.exp(quantile * self.spread * math.sqrt(1 + 1 / self.samples))


class Share(NamedTuple):
    """Predicted seconds of one operator and what bounds it."""

    path: str
    kind: str
    seconds: float
    bound: Bound


@dataclass(frozen=True)
class Prediction:
    """One network call at the layers' batch. `low` and `high`: 90 % interval of `seconds`."""

    seconds: float
    low: float
    high: float
    memory_bytes: int  # weights and the most activations alive at once; without the runtime's own memory
    size_bytes: int  # weights on disk
    by_layer: list[Share]
    rates: str  # what the prediction rests on
    predicted: bool = True


def predict(
    layers: Sequence[Layer],
    target: Target,
    format: str = "fp16",
    rates: Rates | None = None,
    memory_gb: float | None = None,
) -> Prediction:
    """Roofline of `layers` (see `optimize.layers`) on `target`, computing in `format`.

    `format` int8, fp8, fp4: convolutions and linear layers, the rest in 16 bit; int4: their weights alone. Layers that
    are quantized already keep their format. `rates`: the target's own where not given; a CPU has none before it was
    calibrated. `memory_gb` picks the part of a class sold with several memories.
    Raises UserError for an unknown format, one the target does not compute in, and a CPU without rates.
    """
    rates = rates or _published(target)
    device = _Device(target, rates, memory_gb)
    _check(device, format)
    shares = [device.share(layer, format) for layer in layers]
    seconds, factor = sum(s.seconds for s in shares), rates.factor()
    low, high = seconds / factor, seconds * factor
    base = device.base(format)
    if format not in rates.formats and format in NARROW:  # nobody measured it: it may bring nothing
        high = max(high, factor * sum(device.share(layer, base).seconds for layer in layers))
    weights = math.ceil(sum(layer.weights * BYTES[device.format(layer, format)[0]] for layer in layers))
    live = math.ceil(max((layer.live for layer in layers), default=0) * BYTES[base])
    return Prediction(seconds, low, high, weights + live, weights, shares, rates.name)


def _published(target: Target) -> Rates:
    if not target.cuda:
        raise UserError(
            f"target {target.name}: its rates are not known before they were measured. Pass rates=calibrate(...) of this machine."
        )
    from optimize.measure.published import gpu_rates

    return gpu_rates()


def _check(device: _Device, format: str) -> None:
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format != "int4" and format not in device.peaks:
        raise UserError(
            f"target {device.target.name}: it does not compute in {format}. It computes in {', '.join(device.peaks)}."
        )


class _Device:
    """A target at the rates it reaches."""

    def __init__(self, target: Target, rates: Rates, memory_gb: float | None) -> None:
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

    def share(self, layer: Layer, format: str) -> Share:
        """Seconds of one operator; a fused one launches nothing and finds its first operand where it is computed."""
        stored, arithmetic = self.format(layer, format)
        fused = self.rates.fused and layer.kind in FUSED
        wide = BYTES[self.base(format)]
        if fused:
            traffic = wide * max(layer.inputs - layer.outputs, 0)
        else:
            traffic = BYTES[arithmetic] * layer.inputs + wide * layer.outputs
        memory = (traffic + BYTES[stored] * layer.weights) / self.bytes_s
        share = self.rates.compute.get(layer.kind, self.rates.compute.get("default", 1.0))
        compute = 2 * layer.macs / (1e12 * self.peaks[arithmetic] * share)
        overhead = 0.0 if fused or layer.kind == "unused" else self.rates.overhead_s
        times: dict[Bound, float] = {"compute": compute, "memory": memory, "overhead": overhead}
        return Share(layer.path, layer.kind, max(compute, memory) + overhead, max(times, key=lambda k: times[k]))
