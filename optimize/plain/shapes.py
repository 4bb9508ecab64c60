"""What the JSON files of this project hold, as far as their readers count on it: the kind of every field that is there.

`read_json` compares a file of one of these names with its shape, so that no reader meets a list where it asks for an
object. What a field means is checked where it is used; fields that are not named here may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from optimize.errors import ArtifactError, cut, shown

Json = dict[str, Any]
Size = Annotated[int, Field(ge=1, lt=2**31)]
Number = float | None
Text = str | None
Objects = dict[str, Json | None] | None


class Shape(BaseModel):
    """An object whose fields, as far as they are there, are of these kinds; further ones are let through."""

    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class Edit(Shape):
    """What a pass did to a network."""

    name: str = Field(alias="pass")
    record: Json


class Structure(Shape):
    """structure.json."""

    architecture: str
    config: Json
    edits: list[Edit]


class Told(Shape):
    """How a network is conditioned."""

    kind: str
    classes: Annotated[int, Field(ge=0, lt=2**31)] = 0
    null: int | None = None
    tensors: list[Json] = []
    nulled: list[str] = []


class Guided(Shape):
    """A sampler's guidance."""

    cfg: Number = None
    folded: Number = None


class Drawn(Shape):
    """A sampler."""

    solver: str
    steps: int
    guidance: Guided


class Level(Shape):
    """One step's time and noise level."""

    t: float
    alpha: float
    sigma: float


class Read(Shape):
    """How a network is fed and read."""

    prediction: str
    time: str = ""
    time_scale: float = 1.0
    learned_variance: bool = False
    sigma_data: float = 0.0
    boundary: float = 0.0


class Sampling(Shape):
    """sampler.json."""

    sampler: Drawn
    schedule: Json
    parameterization: Read
    conditioning: Told
    shape: Annotated[list[Size], Field(min_length=1, max_length=4)]
    limit: Number = None
    nfe: int = 0
    steps: list[Level] = []


class Done(Shape):
    """A pass in an artifact's lineage."""

    name: str
    config: Json = {}
    record: Json = {}


class Manifest(Shape):
    """manifest.json beside its files, which `optimize.storage.trust` checks."""

    id: Text = None
    stage: Text = None
    parent: Text = None
    kind: Text = None
    source: Json | None = None
    passes: list[Done] = []
    exports: Json = {}
    parity: Objects = {}
    environment: Json = {}
    count: Json = {}


class Row(Shape):
    """A row of a summary."""

    variant: Text = None
    stage: Text = None
    artifact_id: Text = None
    runner: Text = None
    precision: Text = None
    solver: Text = None
    status: Text = None
    reason: Text = None
    batch: int | None = None
    steps: Number = None
    nfe: Number = None
    params: Number = None
    macs: Number = None
    size_bytes: Number = None
    images_per_s: Number = None
    peak_memory_bytes: Number = None
    image_latency_ms: dict[str, Number] | None = None
    call_latency_ms: dict[str, Number] | None = None
    quality: Json | None = None
    speedup: Objects = None
    parity: Json | None = None
    gates: Objects = None
    targets: Objects = None
    runner_options: Json | None = None


class Summary(Shape):
    """summary.json."""

    recipe: Text = None
    rows: list[Row]
    environment: Json | None = None
    gates: Objects = None
    targets: Objects = None
    half_split_fd: Json | None = None
    judges: Json | None = None
    factors: dict[str, Number] | None = None
    factor_intervals: Objects = None
    fair_search: list[Json] | None = None
    stages: list[Json] | None = None
    samples: list[str] | None = None
    notes: list[str] | None = None


Seconds = Annotated[float, Field(gt=0)]


class Measured(Shape):
    """A line of measurements.jsonl."""

    variant: Json
    status: Literal["done", "failed", "refused"] = "done"
    reason: str = ""
    bench: str = ""
    artifact_id: str = ""
    call_s: list[list[Seconds]] = []
    image_s: list[list[Seconds]] = []
    nfe: Annotated[int, Field(ge=0)] = 0
    cold: dict[str, float] = {}
    warm_up: Json = {}
    memory: dict[str, int] = {}
    energy: Json = {}
    conditions: list[Json] = []
    runner: Json = {}
    threads: Json = {}
    environment: Json = {}

    @model_validator(mode="after")
    def _timed(self) -> Measured:
        if self.status == "done" and not any(self.call_s + self.image_s):
            raise ValueError("it is done, and nothing was timed")
        return self


SHAPES: dict[str, type[Shape]] = {
    "structure.json": Structure,
    "sampler.json": Sampling,
    "manifest.json": Manifest,
    "summary.json": Summary,
}


@contextmanager
def as_shaped(path: Path) -> Iterator[None]:
    """Whatever the readers of a file raise inside at a value of a kind that they do not count on is one ArtifactError."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {cut(' '.join(str(error).split()), 200)}"
        raise ArtifactError(
            f"{path}: a value in it is not of the kind that it has here ({reason}). It was made by another version of optimize, or altered; make it again."
        ) from error


def refuse_misshapen(value: Any, shape: type[Shape], where: str) -> None:
    """Raise ArtifactError where a value is not of this shape."""
    if wrong := misshapen(value, shape):
        raise ArtifactError(
            f"{where}: {wrong} It was made by another version of optimize, or altered; copy or make it again."
        )


def misshapen(value: Any, shape: type[Shape]) -> str:
    """What is wrong with a value of this shape, in words; empty where nothing is."""
    try:
        shape.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = cut(".".join(str(part) for part in first["loc"]) or "the file")
        if first["type"] == "missing":
            return f"{place} is missing."
        return f"{place}: {first['msg']}, found {shown(first['input'])}."
    return ""
