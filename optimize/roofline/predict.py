"""Predicted time and memory of a network call on a device class, operator by operator, without running it.

An operator takes the longer of its arithmetic and its memory traffic, each at the share of the peak that `Rates` found
in measurements, and an overhead (Williams et al., "Roofline", CACM 2009). Element-wise operators are fused into the
one before them, as engines do: they cost the reading of their other operands alone. Figures are always predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from optimize.errors import UserError, unknown
from optimize.hardware.targets import FORMATS, Target
from optimize.roofline.layers import Layer
from optimize.roofline.published import gpu_rates
from optimize.roofline.rates import BYTES, NARROW, Device, Rates, Table

Bound = Literal["compute", "memory", "overhead"]
BOUNDS: tuple[Bound, ...] = ("compute", "memory", "overhead")


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
    """Roofline of `layers` (see `optimize.roofline.layers`) on `target`, computing in `format`.

    `format` int8, fp8, fp4: convolutions and linear layers, the rest in 16 bit; int4: their weights alone. Layers that
    are quantized already keep their format. `rates`: the target's own where not given; a CPU has none before it was
    calibrated. `memory_gb` picks the part of a class sold with several memories.
    Raises UserError for an unknown format, one the target does not compute in, and a CPU without rates.
    """
    rates = rates or _published(target)
    device = Device(target, rates, memory_gb)
    _check(device, format)
    table = Table(layers, device, format)
    times = np.stack(device.seconds(table))  # (3,N): compute, memory, overhead
    each, factor = _total(times), rates.factor()
    seconds = float(each.sum())
    low, high = seconds / factor, seconds * factor
    base = device.base(format)
    if format not in rates.formats and format in NARROW:  # nobody measured it: it may bring nothing
        wide = np.stack(device.seconds(Table(layers, device, base)))
        high = max(high, factor * float(_total(wide).sum()))
    size = math.ceil(table.size.sum())
    live = math.ceil(max((layer.live for layer in layers), default=0) * BYTES[base])
    shares = [
        Share(layer.path, layer.kind, float(s), BOUNDS[i]) for layer, s, i in zip(layers, each, times.argmax(axis=0))
    ]
    return Prediction(seconds, low, high, size + live, size, shares, rates.name)


def _total(times: np.ndarray) -> np.ndarray:
    return np.maximum(times[0], times[1]) + times[2]


def _published(target: Target) -> Rates:
    if not target.cuda:
        raise UserError(
            f"target {target.name}: its rates are not known before they were measured. Pass rates=calibrate(...) of this machine."
        )
    return gpu_rates(target)


def _check(device: Device, format: str) -> None:
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if format != "int4" and format not in device.peaks:
        raise UserError(
            f"target {device.target.name}: it does not compute in {format}. It computes in {', '.join(device.peaks)}."
        )
