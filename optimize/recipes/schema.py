"""A recipe as frozen configs, torch-free: every section and field, its range and its default.

`optimize.recipes.read` makes one of YAML. Paths in a file are relative to its folder (see `optimize.recipes.paths`); a
Recipe holds them as the working directory sees them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from optimize.configs import MOST, AtOnce, Config, Count, Seed
from optimize.diffusion.sampling import SOLVERS, Sampler
from optimize.diffusion.schedule import Spacing
from optimize.errors import cut, some
from optimize.quality.metrics import DEFAULT_METRICS, FeatureNetwork, Metric, check_metrics

Share = Annotated[float, Field(ge=0, le=1)]
TAKEN = ("held_out", "training", "all", "features", "per_class")  # names that are no further network's
Wish = Annotated[float, Field(gt=0)] | None
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


LONGEST_NAME = 100
NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"


def _once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if twice := [v for v in dict.fromkeys(values) if values.count(v) > 1]:
        raise ValueError(f"{some(twice)} stands there twice; give each once")
    return values


def _name(value: str) -> str:
    if not re.fullmatch(NAME, value) or len(value) > LONGEST_NAME:
        raise ValueError(
            f"letters, digits, '.', '_' and '-' only, starting with a letter or digit, {LONGEST_NAME} at most"
        )
    return value


def plain_name(text: str) -> str:
    """A text as a recipe's name: everything that may not stand in one is a hyphen."""
    made = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return made if re.fullmatch(NAME, made) else "model"


class SourceConfig(Config):
    """Where the trained model is."""

    path: Path
    """The model's folder, or its checkpoint in one .safetensors file; for kind module the file of weights."""
    kind: str = "diffusers"
    """What the path is: the name of a registered source."""
    sha256: Sha256 | None = None
    """Hash that the weights file must have."""
    conditions: Path | None = None
    """File of tensors by input name; without it seeded ones stand in where the network is told any."""
    controlnet: bool | None = None
    """The U-Net is fed a ControlNet's residuals."""
    config: Path | None = None
    """Of a checkpoint in one file: the folder of the pipeline whose configs belong to it; its weights are not needed."""
    classes: Annotated[int, Field(ge=1, le=MOST)] | None = None
    """How many of the network's labels are classes, from 0 on without the null one; by default all of them."""
    null_class: Annotated[int, Field(ge=0, le=MOST)] | None = None
    """The label that means no class, where the network was trained with one (often the last); guidance needs it."""
    network: str | None = None
    """Kind module: import path `package.module:Class`."""
    arguments: dict[str, Any] | None = None
    """Kind module: what the class is called with."""
    inputs: dict[str, Any] | None = None
    """Kind module: {name: dims}, the latents first, then the time."""
    scheduler: dict[str, Any] | None = None
    """Kind module: a scheduler config of diffusers."""

    def options(self) -> dict[str, Any]:
        """What is given beside path, kind and hash, as the source's class takes it."""
        rest = (f for f in type(self).model_fields if f not in ("path", "kind", "sha256"))
        return {f: getattr(self, f) for f in rest if getattr(self, f) is not None}


class DataConfig(Config):
    """Samples as safetensors: `images` (N,C,H,W) in [-1, 1] and, where the model has classes, `labels` (N,)."""

    training: Path
    """File of samples that training and pruning see."""
    held_out: Path
    """File of samples that neither sees; quality is judged by them."""


class BenchmarkConfig(Config):
    """What is timed: every stage on every runner at every batch."""

    batch: Annotated[tuple[AtOnce, ...], AfterValidator(_once), Field(min_length=1)] = (1, 16)
    """Batch sizes that are timed; speed-ups are claimed at the largest."""
    runners: Annotated[tuple[str, ...], Field(min_length=1)] = ("torch", "onnxruntime", "openvino")
    """Backends that every stage is timed on: name, name:precision, name@device or name:precision@device."""
    source_runners: tuple[str, ...] = ("torch_compile",)
    """Further backends, for the uncompressed network only."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 7
    """Turns of every worker."""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 0.25
    """Seconds of timed work of a worker in one turn; at least one call."""
    warm_up: Annotated[float, Field(ge=0, le=3600)] = 0.6
    """Seconds of a worker's warm-up at most, for calls and for images each."""
    threads: AtOnce | None = None
    """CPU threads of a worker; by default all cores."""
    io: Annotated[tuple[Literal["host", "device"], ...], AfterValidator(_once), Field(min_length=1)] = ("host",)
    """Rows of runners on a GPU: inputs and outputs in the host's memory, on the device, or a row for each."""
    cuda_graphs: Annotated[tuple[bool, ...], AfterValidator(_once), Field(min_length=1)] = (False,)
    """Rows of runners on a GPU: calls as they are, calls that replay a CUDA graph, or a row for each."""


class QualityConfig(Config):
    """How quality is judged."""

    images: Annotated[int, Field(ge=16, le=10_000_000)] = 1000
    """Images drawn of every variant and judged."""
    batch: AtOnce = 50
    """Images drawn at once."""
    features: FeatureNetwork
    """Network whose features FD and KID compare: a classifier's folder, or {inception | dinov2 | clip | import: …}."""
    further: dict[str, FeatureNetwork] = Field(default_factory=dict)
    """More feature networks by name; their figures are fd_<name> and so on."""
    classifier: Path | None = None
    """Folder of an independent image classifier; without it there is no class accuracy."""
    metrics: tuple[Metric, ...] = DEFAULT_METRICS
    """Figures wanted; fd is always among them, since a gate needs it."""
    lpips: Annotated[str, Field(min_length=1)] | None = None
    """Weights of LPIPS: file, folder or hub id (a folder is then `./owner/name`)."""
    clip: FeatureNetwork | None = None
    """{clip: folder or hub id}, for clip_score."""
    prompts: tuple[str, ...] = ()
    """For clip_score: one for every class in order, or taken in turn."""
    processes: Annotated[int, Field(ge=1, le=256)] = 1
    """Processes that images and features are shared out to; changes no figure."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where features are extracted."""
    endpoint_images: Count = 64
    """Seeds that are solved to the end for the endpoint error."""
    endpoint_steps: Annotated[int, Field(ge=1, le=1000)] = 256
    """Steps of the nearly exact solution that the endpoint error compares with."""
    replicates: Annotated[int, Field(ge=20, le=100_000)] = 200
    """Bootstrap resamples behind the intervals of quality figures."""

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
        if "endpoint_error" in self.metrics and self.endpoint_images > self.images:
            raise ValueError(
                f"endpoint_images is {self.endpoint_images}, and {self.images} images are drawn. Give endpoint_images: {self.images} at most"
            )
        for name in self.further:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in TAKEN:
                raise ValueError(
                    f'further: "{cut(name)}" cannot name a network. Give a word of its own, such as dinov2'
                )
        if self.clip and self.clip.kind != "clip":
            raise ValueError(f"clip: a {self.clip.kind} has no text side. Give {{clip: folder or hub id}}")
        return self

    def networks(self) -> dict[str, FeatureNetwork]:
        """Everything that may come from the hub, by its field; the weights of LPIPS as if they were Inception's."""
        found = {"quality.features": self.features, **{f"quality.further.{k}": n for k, n in self.further.items()}}
        found |= {"quality.clip": self.clip} if self.clip else {}
        return found | ({"quality.lpips": self._lpips} if self._lpips else {})

    @property
    def _lpips(self) -> FeatureNetwork | None:
        return FeatureNetwork(kind="inception", source=self.lpips) if self.lpips else None

    def moved(self, move: Callable[[Path], Path]) -> QualityConfig:
        """The weights of LPIPS as well, which may be a hub id."""
        weights = self._lpips.moved(move).source if self._lpips else None
        return super().moved(move).model_copy(update={"lpips": weights} if weights != self.lpips else {})


class FairConfig(Config):
    """The search for the fastest uncompressed FP32 configuration that passes the same gates."""

    solvers: Annotated[tuple[Literal["ddim", "heun", "dpmpp_2m", "ipndm"], ...], AfterValidator(_once)] = SOLVERS  # type: ignore[assignment]
    """Solvers that are tried."""
    steps: Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], AfterValidator(_once)] = (
        1,
        2,
        3,
        4,
        5,
        6,
        8,
        10,
        15,
        20,
        30,
        50,
    )
    """Numbers of steps that are tried."""
    spacings: tuple[Spacing, ...] = ("trailing", "logsnr")
    """Ways to lay out the steps that are tried."""
    guided: tuple[bool, ...] = (False, True)
    """Whether it is tried without guidance, with the baseline's, or both."""


class FdGate(Config):
    """FD <= max_ratio x the baseline's + slack."""

    max_ratio: Annotated[float, Field(gt=0)] = 1.3
    """Largest FD allowed, as a multiple of the baseline's."""
    slack: Literal["none", "half_split"] = "half_split"
    """What is added to the limit: nothing, or the FD between two halves of the real scans."""


class AccuracyGate(Config):
    """No class falls by more than this below the baseline's accuracy."""

    max_drop: Share = 0.05
    """Largest fall of a class's accuracy, a share: 0.05 is five points."""


class ParityGate(Config):
    """Largest relative L2 of an export against its torch network at any noise level; where a row computes in several
    formats, the largest of theirs. TF32 and FP16 round eight times finer than BF16."""

    fp32: Annotated[float, Field(gt=0)] = 1e-3
    """Limit where a row computes in FP32."""
    tf32: Annotated[float, Field(gt=0)] = 1e-2
    """Limit where a row computes in TF32."""
    fp16: Annotated[float, Field(gt=0)] = 1e-2
    """Limit where a row computes in FP16."""
    bf16: Annotated[float, Field(gt=0)] = 5e-2
    """Limit where a row computes in BF16."""
    int8: Annotated[float, Field(gt=0)] = 5e-2
    """Limit where a row computes in INT8."""
    fp8: Annotated[float, Field(gt=0)] = 5e-2
    """Limit where a row computes in FP8."""


class Gates(Config):
    """About being right: one that fails fails the run (exit 1)."""

    fd: FdGate = FdGate()
    """How far the Fréchet distance may rise."""
    class_accuracy: AccuracyGate = AccuracyGate()
    """How far the accuracy of a class may fall."""
    parity: ParityGate = ParityGate()
    """How far an export may be from its torch network."""


class Targets(Config):
    """About being fast and small: a miss is reported and the run still ends with code 0. None: not asked."""

    speedup_vs_baseline: Wish = None
    """Images a second over the baseline's, at the largest batch; at least this many times."""
    speedup_vs_fair: Wish = None
    """Images a second over those of the fair configuration, at the largest batch; at least this many times."""
    size_ratio: Wish = None
    """Bytes of the final ONNX file over those of the source's weights; at most this."""
    int8_speedup: Wish = None
    """INT8 against FP32 of the same network on the same runner, at the largest batch; at least this many times."""


class Recipe(Config):
    """One run, resolved. `passes` and `exports` hold validated plugin configs."""

    version: Literal[1] = 1
    """Version of this format."""
    name: Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{NAME}$"})]
    """Name of the run, and of its folder below `exported`."""
    seed: Seed = 0
    """Seed of everything random; 0 or more."""
    target: str = "here"
    """Device class the run is for; `here` is the machine it runs on."""
    source: SourceConfig
    """The trained model."""
    sampler: Sampler = Sampler()
    """How the model is used today: the baseline."""
    data: DataConfig
    """Samples for training and for judging."""
    passes: tuple[Any, ...] = ()
    """What is done to the model, in this order."""
    exports: tuple[Any, ...] = ()
    """Files that are made of every stage, in this order."""
    benchmark: BenchmarkConfig = BenchmarkConfig()
    """What is timed, and how."""
    quality: QualityConfig
    """What judges the images, and how."""
    pinned: dict[str, Sha256] = Field(default_factory=dict)
    """Files that must have these hashes before anything starts: path -> SHA-256."""
    fair: FairConfig | None = FairConfig()
    """The search for the fair baseline; null leaves it out."""
    gates: Gates = Gates()
    """Limits of quality and parity; one that fails fails the run."""
    targets: Targets = Targets()
    """Wishes of speed and size; a miss is reported."""
    prices: Path | None = None
    """File with a price table; by default the shipped prices.yaml."""

    def to_json(self) -> dict[str, Any]:
        """The recipe as it can be written and read again, by a file in the working directory."""
        plain = {f: getattr(self, f) for f in type(self).model_fields if f not in ("passes", "exports")}
        value = {k: v.to_json() if isinstance(v, Config) else v for k, v in plain.items()}
        return value | {k: [{p.name: p.to_json()} for p in getattr(self, k)] for k in ("passes", "exports")}

    def moved(self, move: Callable[[Path], Path]) -> Recipe:
        """The pinned files as well."""
        pinned = {str(move(Path(name))): expected for name, expected in self.pinned.items()}
        return super().moved(move).model_copy(update={"pinned": pinned} if pinned != self.pinned else {})
