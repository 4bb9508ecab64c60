"""Recipe: YAML validated into frozen configs, torch-free. Every problem of a file is reported at once.

`load("digits")` finds a recipe that ships with the package; `load("my.yaml")` reads a file. Relative paths inside a
recipe are relative to the working directory.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from optimize.configs import Config
from optimize.diffusion.sampling import SOLVERS, Sampler
from optimize.diffusion.schedule import Spacing
from optimize.quality.metrics import DEFAULT_METRICS, FeatureNetwork, Metric, check_metrics

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
        raise ValueError("letters, digits, '.', '_' and '-' only, starting with a letter or digit")
    return value


class SourceConfig(Config):
    """Where the trained model is."""

    path: Path  # folder, or file of weights for kind module
    kind: str = "diffusers"  # a registered source
    sha256: Sha256 | None = None  # pinned hash of the weights file
    conditions: Path | None = None  # tensors by input name; None: seeded ones stand in where the network is told any
    controlnet: bool | None = None  # the U-Net is fed a ControlNet's residuals
    network: str | None = None  # kind module: import path package.module:Class
    arguments: dict[str, Any] | None = None  # kind module: of the class
    inputs: dict[str, Any] | None = None  # kind module: {name: dims}, the latents first, then the time
    scheduler: dict[str, Any] | None = None  # kind module: a scheduler config of diffusers

    def options(self) -> dict[str, Any]:
        """What is given beside path, kind and hash, as the source's class takes it."""
        rest = (f for f in type(self).model_fields if f not in ("path", "kind", "sha256"))
        return {f: getattr(self, f) for f in rest if getattr(self, f) is not None}


class DataConfig(Config):
    """Samples as safetensors: `images` (N,C,H,W) in [-1, 1] and, where the model has classes, `labels` (N,)."""

    training: Path  # seen by training and pruning
    held_out: Path  # never seen by either


class BenchmarkConfig(Config):
    """What is timed: every stage on every runner at every batch."""

    batch: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 16)
    runners: Annotated[tuple[str, ...], Field(min_length=1)] = (
        "torch",
        "onnxruntime",
        "openvino",
    )  # name or name:precision
    source_runners: tuple[str, ...] = ("torch_compile",)  # further ones, for the uncompressed network only
    rounds: Positive = 7  # turns of every worker
    seconds: Annotated[float, Field(gt=0)] = 0.25  # timed work of a worker in one turn; at least one call
    warm_up: Annotated[float, Field(ge=0)] = 0.6  # seconds of a worker's warm-up at most, for calls and for images each
    threads: Positive | None = None  # per worker; None: all cores
    # rows of runners on a GPU: inputs and outputs in the host's memory, on the device, or a row for each
    io: Annotated[tuple[Literal["host", "device"], ...], Field(min_length=1)] = ("host",)
    cuda_graphs: Annotated[tuple[bool, ...], Field(min_length=1)] = (False,)  # likewise: calls that replay a CUDA graph


class QualityConfig(Config):
    """How quality is judged."""

    images: Annotated[int, Field(ge=16)] = 1000
    batch: Positive = 50
    features: FeatureNetwork  # for FD and KID: a classifier's folder, or {inception | dinov2 | clip | import: …}
    further: dict[str, FeatureNetwork] = Field(default_factory=dict)  # more networks; figures are fd_<name> and so on
    classifier: Path | None = None  # independent classifier; None: no class accuracy
    metrics: tuple[Metric, ...] = DEFAULT_METRICS  # figures wanted
    lpips: str | None = None  # weights of LPIPS: file, folder or hub id
    clip: FeatureNetwork | None = None  # {clip: folder or hub id}, for clip_score
    prompts: tuple[str, ...] = ()  # for clip_score: one for every class in order, or taken in turn
    processes: Positive = 1  # that images and features are shared out to; changes no figure
    device: Literal["cpu", "cuda"] = "cpu"  # where features are extracted
    endpoint_images: Positive = 64  # seeds solved to the end for the endpoint error
    endpoint_steps: Positive = 256
    replicates: Annotated[int, Field(ge=20)] = 200  # bootstrap

    @field_validator("metrics", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            check_metrics(tuple(value))
        return value

    @model_validator(mode="after")
    def _complete(self) -> QualityConfig:
        """What the metrics need is there."""
        needs = {"lpips": self.lpips, "clip_score": self.clip and self.prompts}
        for metric, given in needs.items():
            if metric in self.metrics and not given:
                field = {"lpips": "lpips: weights", "clip_score": "clip: {clip: …} and prompts: […]"}[metric]
                raise ValueError(f"the metric {metric} needs more. Give {field}")
        for name in self.further:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in (
                "held_out",
                "training",
                "all",
                "features",
                "per_class",
            ):
                raise ValueError(f'further: "{name}" cannot name a network. Give a word of its own, such as dinov2')
        if self.clip and self.clip.kind != "clip":
            raise ValueError(f"clip: a {self.clip.kind} has no text side. Give {{clip: folder or hub id}}")
        return self


class FairConfig(Config):
    """The search for the fastest uncompressed FP32 configuration that passes the same gates."""

    solvers: tuple[Literal["ddim", "heun", "dpmpp_2m", "ipndm"], ...] = SOLVERS  # type: ignore[assignment]
    steps: tuple[Positive, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50)
    spacings: tuple[Spacing, ...] = ("trailing", "logsnr")
    guided: tuple[bool, ...] = (False, True)


class FdGate(Config):
    """FD <= max_ratio x the baseline's + slack."""

    max_ratio: Annotated[float, Field(gt=0)] = 1.3
    slack: Literal["none", "half_split"] = "half_split"  # half_split: FD between two halves of the real scans


class AccuracyGate(Config):
    """No class falls by more than this below the baseline's accuracy."""

    max_drop: Share = 0.05


class ParityGate(Config):
    """Largest relative L2 of an export against its torch network at any noise level; where a row computes in several
    formats, the largest of theirs. TF32 and FP16 round eight times finer than BF16."""

    fp32: Annotated[float, Field(gt=0)] = 1e-3
    tf32: Annotated[float, Field(gt=0)] = 1e-2
    fp16: Annotated[float, Field(gt=0)] = 1e-2
    bf16: Annotated[float, Field(gt=0)] = 5e-2
    int8: Annotated[float, Field(gt=0)] = 5e-2
    fp8: Annotated[float, Field(gt=0)] = 5e-2


class Gates(Config):
    """About being right: one that fails fails the run (exit 1)."""

    fd: FdGate = FdGate()
    class_accuracy: AccuracyGate = AccuracyGate()
    parity: ParityGate = ParityGate()


class Targets(Config):
    """About being fast and small: a miss is reported and the run still ends with code 0. None: not asked."""

    speedup_vs_baseline: float | None = None  # images a second, largest batch
    speedup_vs_fair: float | None = None
    size_ratio: float | None = None  # bytes of the final ONNX file / the source's weights, at most
    int8_speedup: float | None = None  # INT8 against FP32 of the same network on the same runner, largest batch


class Recipe(Config):
    """One run, resolved. `passes` and `exports` hold validated plugin configs."""

    version: Literal[1] = 1
    name: Annotated[str, AfterValidator(_name)]
    seed: Annotated[int, Field(ge=0)] = 0
    target: str = "here"
    source: SourceConfig
    sampler: Sampler = Sampler()  # how the model is used today: the baseline
    data: DataConfig
    passes: tuple[Any, ...] = ()
    exports: tuple[Any, ...] = ()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    quality: QualityConfig
    pinned: dict[str, Sha256] = Field(default_factory=dict)  # other files that must be these very ones: path -> hash
    fair: FairConfig | None = FairConfig()
    gates: Gates = Gates()
    targets: Targets = Targets()
    prices: Path | None = None  # price table (see `optimize/measure/prices.yaml`); None: the one that ships

    def to_json(self) -> dict[str, Any]:
        """The recipe as it can be written and read again."""
        plain = {f: getattr(self, f) for f in type(self).model_fields if f not in ("passes", "exports")}
        value = {k: v.to_json() if isinstance(v, Config) else v for k, v in plain.items()}
        return value | {k: [{p.name: p.to_json()} for p in getattr(self, k)] for k in ("passes", "exports")}
