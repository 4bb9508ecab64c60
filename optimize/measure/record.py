"""What was timed (Variant) and what came out (Measurement): raw samples are kept, statistics are derived. Torch-free."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pydantic import Field

from optimize.configs import AtOnce, Config, canonical
from optimize.diffusion.sampling import Sampler
from optimize.errors import OptimizeError
from optimize.measure import machine, statistics
from optimize.measure.statistics import Interval

KINDS = ("call", "image")  # what a turn times: one network call, one batch of images


class Variant(Config):
    """One thing to time: an artifact on a runner at a batch size."""

    key: str  # unique name within a bench
    folder: str  # artifact folder: structure.json, sampler.json and what the runner reads
    runner: str  # a registered runner
    options: dict[str, Any] = Field(default_factory=dict)  # the runner's own options
    batch: AtOnce = 1  # images drawn at once; a guided batched sampler runs twice this
    sampler: Sampler | None = None  # instead of the artifact's own
    threads: AtOnce | None = None  # CPU threads; every core this process may use where not given
    # host: inputs come from and outputs go to pageable host memory; device: both stay on the device
    io: Literal["host", "device"] = "host"
    cuda_graphs: bool = False  # whether calls replay a captured CUDA graph


def policy_text(io: str, cuda_graphs: bool) -> str:
    """What a row's key ends with: `+device`, `+graphs`, both; nothing for the usual policy."""
    return ("+device" if io == "device" else "") + ("+graphs" if cuda_graphs else "")


@dataclass(frozen=True)
class Measurement:
    """Times of one variant by round, in seconds: `call_s` of one network call, `image_s` of a whole batch of images.

    `cold` holds what happens once (process_s, import_s, load_s, first_call_s, first_image_s), `memory` bytes, `runner`
    the runner's own description with the clock, `conditions` one entry a turn (see `machine.between`; `gpu` as NVML
    saw it), `energy` joules of `images` images and what counted them, or the reason why nothing did. Rounds with the
    same `bench` were interleaved; a round that a slow variant sat out is an empty list.
    """

    variant: Variant
    status: str = "done"  # or, with the reason, "failed", or "refused": not possible on this machine
    reason: str = ""
    bench: str = ""
    artifact_id: str = ""
    call_s: list[list[float]] = field(default_factory=list)
    image_s: list[list[float]] = field(default_factory=list)
    nfe: int = 0
    cold: dict[str, float] = field(default_factory=dict)
    warm_up: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, int] = field(default_factory=dict)
    energy: dict[str, Any] = field(default_factory=dict)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    runner: dict[str, Any] = field(default_factory=dict)
    threads: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The variant's name."""
        return self.variant.key

    @property
    def done(self) -> bool:
        """Whether there are samples to speak of."""
        return self.status == "done"

    @property
    def noisy(self) -> bool:
        """Whether the image latency's interquartile range exceeds 10 % of its median (the call's, without images)."""
        return self.done and bool((self.image_latency() if self.image_s else self.call_latency())["noisy"])

    @property
    def throttled(self) -> list[str]:
        """Why the processor or the GPU ran slower than it can during the turns; empty where nothing was seen."""
        return machine.throttled(self.conditions)

    @property
    def energy_j(self) -> float | None:
        """Joules per image; None where nothing counted them (`energy` has the reason)."""
        images = self.energy.get("images")
        return self.energy["joules"] / images if images else None

    @property
    def peak_memory_bytes(self) -> int | None:
        """Highest resident memory of the worker, loading and compiling included."""
        return self.memory.get("peak_bytes")

    @property
    def device_peak_bytes(self) -> int | None:
        """Most device memory: the process's as NVML saw it, context included, else what torch's allocator held."""
        return self.memory.get("device_process_peak_bytes") or self.memory.get("device_peak_bytes")

    def call_latency(self) -> dict[str, Any]:
        """`statistics.summary` of one network call at the variant's batch, in seconds."""
        return statistics.summary(self._samples("call_s"))

    def image_latency(self) -> dict[str, Any]:
        """`statistics.summary` of drawing one batch of images, in seconds."""
        return statistics.summary(self._samples("image_s"))

    def images_per_s(self) -> Interval:
        """Images a second at the median image latency, with its interval."""
        middle, batch = statistics.median_interval(self._samples("image_s")), self.variant.batch
        return Interval(batch / middle.value, batch / middle.high, batch / middle.low, middle.n)

    def _samples(self, name: str) -> list[list[float]]:
        if not self.done:
            raise OptimizeError(f"{self.key}: not measured ({self.reason})")
        return [taken for taken in getattr(self, name) if taken]

    def to_json(self) -> dict[str, Any]:
        """Raw samples, everything recorded, and the derived figures under `derived`; JSON values."""
        value = {**asdict(self), "variant": self.variant.to_json()}
        if self.done:
            value["derived"] = {"noisy": self.noisy, "throttled": self.throttled, "energy_j": self.energy_j}
            value["derived"] |= {"call_latency_s": self.call_latency()} if self.call_s else {}
            if self.image_s:
                value["derived"] |= {"image_latency_s": self.image_latency()}
                value["derived"] |= {"images_per_s": self.images_per_s().to_json()}
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Measurement:
        """Inverse of `to_json`; `derived` is derived again."""
        rest = {k: v for k, v in value.items() if k not in ("variant", "derived")}
        return cls(variant=Variant(**value["variant"]), **rest)


def speedup(
    baseline: Measurement,
    other: Measurement,
    what: str = "image",
    seed: int = 0,
    placement: float = statistics.PLACEMENT,
) -> Interval:
    """How many times faster `other` is, per image (`what="image"`) or per network call of one sample (`"call"`).

    With its 95 % interval (`statistics.ratio_interval`), paired by round where both come from one bench, and widened by
    what two processes of one program differ (`placement`), unless it is one and the same process. Raises OptimizeError
    where the two were measured in different environments or with different thread counts.
    """
    for name in ("environment", "threads"):
        a, b = getattr(baseline, name), getattr(other, name)
        if canonical(a) != canonical(b):
            raise OptimizeError(
                f"{other.key} against {baseline.key}: {name} differ ({unlike(a, b)}). Measure both in one bench."
            )
    apart = [m._samples(f"{what}_s") for m in (baseline, other)]
    common = _common(baseline, other, what)
    above, below = common or apart
    ratio = statistics.ratio_interval(above, below, seed=seed, paired=bool(common))
    scale = other.variant.batch / baseline.variant.batch
    if (baseline.bench, baseline.key) != (other.bench, other.key):
        ratio = statistics.widened(ratio, placement)
    return Interval(ratio.value * scale, ratio.low * scale, ratio.high * scale, ratio.n)


def paired(one: Measurement, other: Measurement, what: str = "image") -> bool:
    """Whether the rounds of the two were interleaved, so that a ratio may be taken round by round."""
    return bool(_common(one, other, what))


def _common(one: Measurement, other: Measurement, what: str) -> list[list[list[float]]]:
    """The samples of both in the rounds that have some of either; nothing where the rounds are not the same."""
    above, below = (getattr(m, f"{what}_s") for m in (one, other))
    if one.bench != other.bench or len(above) != len(below):
        return []
    both = [(a, b) for a, b in zip(above, below, strict=True) if a and b]
    return [list(side) for side in zip(*both, strict=True)]


def unlike(a: dict[str, Any], b: dict[str, Any]) -> str:
    """What differs between two flat descriptions, in words; empty where nothing does."""
    return ", ".join(f"{k}: {a.get(k)} and {b.get(k)}" for k in sorted({*a, *b}) if a.get(k) != b.get(k))


def device_class(measured: Measurement) -> str:
    """The class of the device that a measurement was made on: its runner's, on that environment's machine."""
    device = str(measured.runner.get("device", "cpu")).lower()
    on_gpu = device.startswith(("cuda", "gpu")) or "nvidia" in device
    return str(measured.environment.get("device", "cpu")) if on_gpu else "cpu"
