"""What drawing images is predicted to take on a device class: time, memory, size, from the roofline of every call.

Always a prediction. Where this model was measured on this class, predictions are scaled by what was measured there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import UserError
from optimize.hardware import environment
from optimize.hardware.targets import Target
from optimize.measure.record import Measurement, device_class
from optimize.roofline.predict import Prediction, predict
from optimize.roofline.rates import LEVEL, Rates

if TYPE_CHECKING:
    from optimize.planning.subject import Subject
    from optimize.roofline.layers import Layer

LEAST_SPREAD = 0.05  # of ln(measured / predicted): closer agreement of a few measurements is luck
ON_CPUS = ("int8", "bf16")  # formats a CPU has no rates of
NARROWED = ("conv", "linear")  # layers that quantization makes narrow
COMPUTED = ("fp32", "tf32", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What may become of a model: a student of `nfe` evaluations an image, or `steps` of a better solver (None: as it is
    sampled today), a share of the MACs removed, and the format it computes in."""

    nfe: int | None = None
    share: float = 0.0
    format: str = "fp32"
    steps: int | None = None


@dataclass(frozen=True)
class Calibration:
    """How far measurements of this model on a class lie from its prediction: `ratio` is measured / predicted."""

    ratio: float = 1.0
    spread: float | None = None  # standard deviation of ln ratio; None: fewer than three measurements
    samples: int = 0
    runner: str = ""  # that was measured fastest
    notes: tuple[str, ...] = ()

    def factor(self, rates_factor: float) -> float:
        """Half width of the interval as a ratio. Measurements of this model narrow it; never below what few can say."""
        if self.spread is None:
            return rates_factor
        from scipy.stats import t

        spread = max(self.spread, LEAST_SPREAD)
        quantile = float(t.ppf((1 + LEVEL) / 2, self.samples - 1))
        return min(math.exp(quantile * spread * math.sqrt(1 + 1 / self.samples)), rates_factor)


@dataclass(frozen=True)
class Forecast:
    """Predicted seconds of one batch of images with their 90 % interval, bytes of device memory and on disk."""

    candidate: Candidate
    batch: int
    nfe: int
    seconds: float
    low: float
    high: float
    memory_bytes: int  # weights and live activations; without the runtime's own
    size_bytes: int
    rates: str  # what it rests on
    calibrated: str = ""  # by which measurements, where there are some
    predicted: bool = True

    def to_json(self) -> dict[str, Any]:
        """JSON form; times in milliseconds as well."""
        times = {
            f"{k}_ms": 1e3 * getattr(self, n) for k, n in (("latency", "seconds"), ("low", "low"), ("high", "high"))
        }
        return asdict(self) | times


class Forecaster:
    """Predictions of one subject; the layers of a network batch are read once."""

    def __init__(self, subject: Subject, batch: int) -> None:
        self.subject, self.batch = subject, batch
        self.layers = lru_cache(maxsize=8)(subject.read)

    def at(self, batch: int) -> Forecaster:
        """The same of another batch of images, with the layers that were read already."""
        other = copy(self)
        other.batch = batch
        return other

    def forecast(
        self, target: Target, candidate: Candidate, rates: Rates | None = None, calibration: Calibration | None = None
    ) -> Forecast:
        """Of one batch of images on a target. Raises UserError where the target does not compute in the format."""
        calibration = calibration or Calibration()
        subject = self.subject.sampled(candidate.steps) if candidate.steps else self.subject
        parts = [
            (count, self.call(target, candidate, fan * self.batch, rates))
            for count, fan in subject.calls(candidate.nfe)
        ]
        seconds = calibration.ratio * sum(count * p.seconds for count, p in parts)
        low, high = (calibration.ratio * sum(count * getattr(p, end) for count, p in parts) for end in ("low", "high"))
        if calibration.spread is not None:
            low = max(low, seconds / calibration.factor(seconds / low))
            high = min(high, seconds * calibration.factor(high / seconds))
        largest = max((p for _, p in parts), key=lambda p: p.memory_bytes)
        about = f"{counted(calibration.samples)} on {calibration.runner}" if calibration.samples else ""
        nfe = candidate.nfe or subject.nfe
        sizes = (largest.memory_bytes, largest.size_bytes)
        return Forecast(candidate, self.batch, nfe, seconds, low, high, *sizes, largest.rates, about)

    def call(self, target: Target, candidate: Candidate, network_batch: int, rates: Rates | None) -> Prediction:
        """One network call."""
        found = thinned(self.layers(network_batch), candidate.share)
        if not target.cuda and candidate.format in ON_CPUS:
            return _as_fp32(found, target, candidate.format, rates)
        return predict(found, target, format=candidate.format, rates=rates)

    def usable(self, target: Target, measured: Sequence[Measurement]) -> list[Measurement]:
        """The measurements of this subject on this class."""
        return [m for m in measured if m.done and m.call_s and _is_of(m, self.subject) and _is_on(m, target)]

    def calibrate(self, target: Target, measured: Sequence[Measurement], rates: Rates | None = None) -> Calibration:
        """From measurements of this subject on this class; others are counted in the notes and not used."""
        mine = [m for m in measured if m.done and m.call_s and _is_of(m, self.subject)]
        used = self.usable(target, mine)
        notes = _unused(measured, mine, used, target)
        ratios: dict[str, list[float]] = {}
        for m in used:
            precision = str(m.runner.get("precision", "fp32"))
            if precision in COMPUTED and not _quantized(self.subject):
                spec = m.variant.runner
                expected = self.call(target, Candidate(format=precision), m.variant.batch, rates).seconds
                ratios.setdefault(spec, []).append(m.call_latency()["p50"] / expected)
        if not ratios:
            return Calibration(notes=notes)
        runner = min(ratios, key=lambda r: _mean_log(ratios[r]))
        logs = [math.log(r) for r in ratios[runner]]
        mean, n = sum(logs) / len(logs), len(logs)
        spread = math.sqrt(sum((x - mean) ** 2 for x in logs) / (n - 1)) if n >= 3 else None
        return Calibration(math.exp(mean), spread, n, runner, notes)


def _as_fp32(layers: Sequence[Layer], target: Target, format: str, rates: Rates | None) -> Prediction:
    """A CPU's rates are those of FP32: another format is predicted to take as long, and may take half of it."""
    found = predict(layers, target, format="fp32", rates=rates)
    weights, narrow = (sum(x.weights for x in layers if not kinds or x.kind in kinds) for kinds in ((), NARROWED))
    size = narrow + 2 * (weights - narrow) if format == "int8" else found.size_bytes
    memory = found.memory_bytes - found.size_bytes + size
    note = f"{found.rates}; {format.upper()} taken to be as fast as FP32"
    return replace(found, low=found.low / 2, memory_bytes=memory, size_bytes=size, rates=note)


def thinned(layers: Sequence[Layer], share: float) -> list[Layer]:
    """Layers with `share` of their MACs removed by pruning channels: a width w becomes w sqrt(1 - share), so products
    and weights shrink by 1 - share, activations by its root."""
    if not share:
        return list(layers)
    area, width = 1 - share, math.sqrt(1 - share)
    return [
        replace(
            layer,
            macs=round(layer.macs * area),
            weights=round(layer.weights * area),
            other_flops=round(layer.other_flops * width),
            inputs=round(layer.inputs * width),
            outputs=round(layer.outputs * width),
            live=round(layer.live * width),
        )
        for layer in layers
    ]


def read_measurements(path: Path) -> list[Measurement]:
    """Measurements of a measurements.jsonl; UserError where it is missing or no such file."""
    from optimize.measure import bench

    if not path.is_file():
        raise UserError(
            f"measurements: no such file: {path}. A finished run has one: exported/<recipe>/measurements.jsonl."
        )
    try:
        found = bench.read(path)
    except UserError as error:
        raise UserError(f"measurements: {path} is no measurements.jsonl of this version ({error}).") from None
    if not found:
        raise UserError(f"measurements: {path} holds none. Run optimize bench or optimize run first, or leave it out.")
    return found


def counted(count: int) -> str:
    """A number of measurements in words."""
    return f"{count} measurement{'s' * (count != 1)}"


def _mean_log(ratios: Sequence[float]) -> float:
    return sum(math.log(r) for r in ratios) / len(ratios)


def _is_of(m: Measurement, subject: Subject) -> bool:
    """Whether the measured artifact is this one, or the untouched model of this recipe."""
    if subject.id:
        return Path(m.variant.folder).name == subject.id[:32]
    return m.key.split("/")[0] == subject.variant


def _is_on(m: Measurement, target: Target) -> bool:
    """Whether it was measured on this class; of CPUs, on this very kind with as many cores."""
    if device_class(m) != target.name:
        return False
    mine = (environment.cpu_name(), m.variant.threads or environment.cores())
    return target.cuda or (m.environment.get("cpu"), m.variant.threads or m.environment.get("cores")) == mine


def _quantized(subject: Subject) -> bool:
    return "quantize" in subject.passes


def _unused(
    measured: Sequence[Measurement], mine: Sequence[Measurement], used: Sequence[Measurement], target: Target
) -> tuple[str, ...]:
    notes = []
    if measured and not mine:
        notes.append(f"none of the {len(measured)} measurements is of this model: not used")
    if others := [m for m in mine if m not in used]:
        classes = ", ".join(sorted({device_class(m) for m in others}))
        where = "another machine" if classes == target.name else f"another class ({classes})"
        were, are = ("was", "is") if len(others) == 1 else ("were", "are")
        notes.append(f"{target.name}: {counted(len(others))} {were} made on {where} and {are} not used")
    return tuple(notes)
