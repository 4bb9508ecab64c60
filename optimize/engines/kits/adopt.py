"""A finished build kit's engine, taken back into the artifact that the kit was made of.

What was ordered (kit.json), what the machine with the card found (result.json), the engine and the artifact's own graph
are compared with each other before anything is written. These three files alone are read, and nothing is deserialized.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, PositiveInt

from optimize.configs import Config
from optimize.engines.graph import GraphFacts
from optimize.engines.kits.read import AGAIN, KIT, KitFiles
from optimize.engines.libraries import TITLES, ModuleName, sm_text
from optimize.engines.make import ENGINE, RECORD, Order, record_of
from optimize.engines.opened import FOLDER
from optimize.engines.settings import EngineSettings, Flag
from optimize.errors import ArtifactError, UserError
from optimize.storage.commit import write_json

RESULT = "result.json"
LARGEST_ENGINE = 64 * 2**30  # bytes
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Profiles = list[dict[str, list[list[PositiveInt]]]]  # input -> [smallest, best, largest] shape


class Ordered(Config):
    """What a kit has built: see `builder.Job`."""

    profiles: Profiles
    flags: list[Flag]
    hardware_compatible: bool
    tf32: bool
    level: Annotated[int, Field(ge=0, le=5)]
    workspace_bytes: PositiveInt


class Case(Config):
    """One comparison that a kit asks for, by its files."""

    case: str
    inputs: dict[str, str]
    output: str


class About(Config):
    """kit.json: see `compose.about_kit` and `compose.write_kit`."""

    version: Literal[1] = Field(alias="schema")
    name: str
    target: str
    title: str
    sm: tuple[int, int]
    precision: str
    modules: list[ModuleName]
    pins: list[str]
    reasons: list[str]
    job: Ordered
    expected: dict[str, int]
    limit: FiniteFloat
    estimate: int
    onnx: str
    parity: list[Case]
    files: dict[str, Hash]


class Of(Config):
    """Which kit a result is of; `sha256` is kit.json's."""

    name: str
    target: str
    sm: list[int]
    precision: str
    sha256: Hash


class Gpu(Config):
    """The GPU of the machine that built it; `cuda` is the newest CUDA its driver runs."""

    name: str
    sm: str
    memory_bytes: int
    cuda: str


class Engine(Config):
    """What the machine tells of the engine: see `script.make`."""

    module: ModuleName
    version: Annotated[str, Field(pattern=r"^\d+\.\d+[0-9A-Za-z.+-]*$")]  # part of a folder's name
    sm: str
    plan_bytes: Annotated[int, Field(ge=1, le=LARGEST_ENGINE)]
    sha256: Hash
    peak_memory_bytes: int | None
    seconds: FiniteFloat
    layers: int
    timing_cache: str
    flags: list[str]
    profiles: Profiles
    expected: dict[str, int]
    found: dict[str, int]
    targets: list[str]
    problems: list[str]


class Compared(Config):
    """One case of parity."""

    case: str
    max_abs: FiniteFloat
    relative_l2: FiniteFloat
    limit: FiniteFloat
    holds: bool


class Timed(Config):
    """Milliseconds of a call."""

    case: str
    policy: str
    n: int
    p50: FiniteFloat
    p90: FiniteFloat
    p99: FiniteFloat


class Result(Config):
    """result.json: see `script.run`."""

    kit: Of
    date: str
    system: dict[str, str]
    gpu: Gpu | None
    engine: Engine
    not_checked: list[str]
    parity: list[Compared] = Field(default_factory=list)
    latency_ms: list[Timed] = Field(default_factory=list)
    problems: list[str]
    holds: bool


@dataclass(frozen=True)
class Adoption:
    """An engine that may be taken in."""

    files: KitFiles
    about: About
    result: Result
    order: Order


def examine(path: Path, onnx: Path, facts: GraphFacts, limit: float) -> Adoption:
    """A finished kit (folder or zip) for the artifact whose ONNX file and facts these are; engines may differ from its
    network by a relative L2 of `limit`. Raises UserError or EnvironmentLacks saying what was found and what to do."""
    files = KitFiles(path)
    about = files.parsed(KIT, About)
    _check_graph(path, about, facts)
    if files.size(RESULT) is None:
        pins = " ".join(f"'{p}'" for p in about.pins)
        raise UserError(
            f"{path}: not built yet, there is no {RESULT} in it. On the machine with the {about.title}: pip install {pins}; python build.py. Then bring the folder back."
        )
    result = files.parsed(RESULT, Result)
    _check_told(path, about, result, facts, files.sha256(KIT))
    _check_good(path, about, result, limit)
    order = _order(about, result, onnx, facts)
    order.refuse(_sm(result.gpu.sm) if result.gpu else None)
    _check_engine(files, result.engine)
    return Adoption(files, about, result, order)


def place(adoption: Adoption, folder: Path) -> dict[str, Any]:
    """The engine and its record below `folder` (inside a `commit`), as one built here is placed; returns the record.
    ArtifactError where the engine's own text does not tell what the result does."""
    order, result = adoption.order, adoption.result
    where = folder / FOLDER / order.name
    shutil.rmtree(where, ignore_errors=True)
    where.mkdir(parents=True)
    with (where / ENGINE).open("wb") as file:
        for block in adoption.files.blocks(_engine_name(result.engine)):
            file.write(block)
    told = result.engine.to_json()
    facts = {k: told[k] for k in ("seconds", "layers", "timing_cache", "peak_memory_bytes", "found")}
    record = record_of(order, where / ENGINE, facts)
    _check_text(adoption, record)
    record |= {"built_on_gpu": result.gpu is not None, "origin": origin(adoption)}
    write_json(where / RECORD, record)
    return record


def origin(adoption: Adoption) -> dict[str, Any]:
    """Where an adopted engine comes from, for its record: kit, machine, and what was and was not checked there."""
    told = adoption.result.to_json()
    kept = {k: told[k] for k in ("date", "system", "gpu", "latency_ms")}
    parity = told["parity"] or f"not run: {'; '.join(adoption.result.not_checked) or 'no reason is told'}"
    return {
        "by": "build kit",
        "kit": adoption.about.name,
        "kit_sha256": told["kit"]["sha256"],
        **kept,
        "parity": parity,
    }


def _check_graph(path: Path, about: About, facts: GraphFacts) -> None:
    """UserError unless the kit was made of the artifact's own ONNX file, external weights included."""
    wrong = [name for name, digest in facts.files.items() if about.files.get(name) != digest]
    if wrong or about.onnx not in facts.files:
        raise UserError(
            f"{path}: the kit of {about.name} for {about.title} was made of another ONNX file: {', '.join(wrong) or about.onnx} differs from the artifact's. Give the artifact it was made of, or make a kit of this one: optimize export."
        )


def _check_told(path: Path, about: About, result: Result, facts: GraphFacts, kit_sha256: str) -> None:
    """ArtifactError where result, kit and graph do not tell the same, naming everything that differs."""
    engine, sm = result.engine, sm_text(about.sm)
    pairs: dict[str, tuple[Any, Any]] = {
        "SHA-256 of kit.json": (result.kit.sha256, kit_sha256),
        "SM asked for": (result.kit.sm, list(about.sm)),
        "SM": (engine.sm, sm),
        "flags": (engine.flags, list(about.job.flags)),
        "profiles": (engine.profiles, about.job.profiles),
        "layers expected": (engine.expected, about.expected),
        "layers of the graph": (about.expected, facts.expected),
    }
    wrong = [
        f"{what}: {told!r:.100}, and the order is {asked!r:.100}"
        for what, (told, asked) in pairs.items()
        if told != asked
    ]
    if engine.module not in about.modules:
        wrong.append(f"module: {engine.module}, and the order is {' or '.join(about.modules)}")
    if engine.targets and sm not in engine.targets:
        wrong.append(f"the engine is for SM {', '.join(engine.targets)}, and the order is {sm}")
    wrong += [
        f"profile {n} does not fit the graph's inputs" for n, p in enumerate(about.job.profiles) if not _fits(p, facts)
    ]
    if wrong:
        raise ArtifactError(f"{path}: {RESULT} is not of this kit: {'; '.join(wrong)}. {AGAIN}")


def _fits(profile: dict[str, list[list[int]]], facts: GraphFacts) -> bool:
    """Whether a profile gives three rising shapes to every input with symbolic sizes, and to no other."""
    dims = {spec.name: spec.dims for spec in facts.inputs if any(isinstance(d, str) for d in spec.dims)}
    return set(profile) == set(dims) and all(_rising(three, dims[name]) for name, three in profile.items())


def _rising(three: list[list[int]], dims: Sequence[int | str]) -> bool:
    whole = len(three) == 3 and all(len(shape) == len(dims) for shape in three)
    return whole and all(
        sizes[0] <= sizes[1] <= sizes[2] and (isinstance(d, str) or set(sizes) == {d})
        for d, *sizes in zip(dims, *three)
    )


def _check_good(path: Path, about: About, result: Result, limit: float) -> None:
    """UserError unless formats and parity were found good on a GPU of the kit's SM; what TensorRT-RTX built without one is
    left to its plan's text."""
    engine = result.engine
    bad = [*result.problems, *engine.problems]
    bad += [
        f"parity: {p.case} differs by {p.relative_l2:.2e}, limit {limit:g}"
        for p in result.parity
        if not p.relative_l2 <= limit
    ]
    if bad or not result.holds or not all(p.holds for p in result.parity):
        raise UserError(
            f"{path}: the engine was not found good where it was built: {'; '.join(dict.fromkeys(bad)) or 'holds is false'}. Nothing was taken in. Build it with another version of {TITLES[engine.module]}, or export the graph in a wider format and make a new kit."
        )
    if not result.parity and engine.module == "tensorrt":
        told = "; ".join(result.not_checked) or "no reason is told"
        raise UserError(f"{path}: parity was not run ({told}). Run build.py on the machine with the {about.title}.")
    if result.parity and [p.case for p in result.parity] != [c.case for c in about.parity]:
        raise ArtifactError(f"{path}: the cases of parity in {RESULT} are not those of {KIT}. {AGAIN}")
    if (result.parity or engine.module == "tensorrt") and (result.gpu is None or result.gpu.sm != engine.sm):
        here = f"SM {result.gpu.sm}" if result.gpu else "no GPU"
        raise UserError(
            f"{path}: a probe: the engine is for SM {engine.sm} and was run on {here}. Run build.py on the machine with the {about.title}, without --any-gpu."
        )


def _order(about: About, result: Result, onnx: Path, facts: GraphFacts) -> Order:
    """The order as `export` would have had it on the machine with the card."""
    job = about.job
    settings = EngineSettings(
        flags=tuple(job.flags),
        hardware_compatible=job.hardware_compatible,
        tf32=job.tf32,
        level=job.level,
        workspace_gb=job.workspace_bytes / 1e9,
    )
    gpu = result.gpu.name if result.gpu and result.engine.module == "tensorrt" else ""
    return Order(onnx, facts, result.engine.module, result.engine.version, about.sm, job.profiles, settings, gpu)


def _check_engine(files: KitFiles, engine: Engine) -> None:
    """ArtifactError unless the engine's bytes are those that the result tells."""
    name = _engine_name(engine)
    size = files.size(name)
    if size is None:
        raise ArtifactError(f"{files.path}: no {name} in it, of which {RESULT} tells. Bring the whole folder back.")
    found = files.sha256(name) if size == engine.plan_bytes else f"{size} bytes"
    if found != engine.sha256:
        raise ArtifactError(
            f"{files.path}: {name} is not the engine that {RESULT} tells of: expected sha256 {engine.sha256}, {engine.plan_bytes} bytes, found {found}. Copy the kit again, or run its build.py again."
        )


def _engine_name(engine: Engine) -> str:
    return f"{FOLDER}/{engine.sm}-{engine.module}-{engine.version}/{ENGINE}"


def _check_text(adoption: Adoption, record: dict[str, Any]) -> None:
    """ArtifactError where what was copied is another engine, or a TensorRT-RTX plan tells other layers or another SM than
    the result; one that was never run must tell all of it."""
    engine, what = adoption.result.engine, f"{adoption.files.path}: {_engine_name(adoption.result.engine)}"
    if record["sha256"] != engine.sha256:
        raise ArtifactError(f"{what} changed while it was read. Copy the kit again.")
    if (record["found"], record["targets"]) != (engine.found, engine.targets):
        raise ArtifactError(
            f"{what}: its text tells {record['found']} for SM {record['targets']}, {RESULT} {engine.found} for SM {engine.targets}. {AGAIN}"
        )
    told = record["found"] and record["targets"]
    if record["problems"] or (record["expected"] and not adoption.result.parity and not told):
        problems = "; ".join(record["problems"]) or "it tells neither layers nor SM, and it was never run"
        raise ArtifactError(f"{what}: {problems}. Run build.py on the machine with the {adoption.about.title}.")


def _sm(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor)
