"""`optimize export`: further files of a finished artifact, and build kits for the machines that must build their own.

The artifact is replaced whole, with the new files in its manifest; engines are kept and found again by content.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optimize.architectures.artifact import load_model
from optimize.configs import described
from optimize.delivery.as_onnx import RUNNER as CHECKED_BY
from optimize.delivery.as_onnx import export_model, limit_of, load_network, merged, write_onnx
from optimize.diffusion.context import Context
from optimize.engines import libraries
from optimize.engines.graph import GraphFacts, read_graph
from optimize.engines.kits import adopt as adoption
from optimize.engines.kits import compose
from optimize.engines.kits.kept import refuse_brought_back
from optimize.engines.make import ENGINE, Order
from optimize.engines.opened import FOLDER
from optimize.engines.place import classes, link_or_copy, order_for, place_engine, profiles_for, refuse_here
from optimize.engines.settings import EngineSettings
from optimize.errors import ArtifactError, OptimizeError, UserError
from optimize.hardware.targets import Target
from optimize.measure.bench import numbers
from optimize.onnx.vetted import ONNX_FILE
from optimize.progress import Progress, silent
from optimize.registry import EXPORTERS
from optimize.runs import stages
from optimize.storage.cache import Store, code_hash
from optimize.storage.commit import commit
from optimize.storage.ours import settled
from optimize.storage.swap import restore
from optimize.storage.trust import MANIFEST, verify
from optimize.storage.weights import file_sha256, read_json

ENGINES = ("tensorrt_rtx", "tensorrt")
FIGURES = ("seconds", "peak_memory_bytes", "plan_bytes", "expected", "found", "problems", "key")
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of one artifact. `onnx`: config of its ONNX file, by default the exporter's. `kits`: folder for build
    kits, None for none."""

    artifact: Path
    targets: tuple[str, ...]
    settings: EngineSettings
    formats: tuple[str, ...] = ENGINES
    onnx: Any = None
    kits: Path | None = None
    zipped: bool = False
    out: Path | None = None  # where the artifact of a folder of diffusers goes
    config: Path | None = None  # of a checkpoint in one file: the folder of its configs
    null_class: int | None = None  # of a network in a folder or file: the label that means no class


def export(asked: Request, store: Store, progress: Progress = silent) -> list[Row]:
    """Write what can be made here into the artifact and kits for the rest; a row for each engine, kit and refusal. A folder
    of diffusers becomes an artifact with its ONNX file first.

    Raises UserError for a wrong artifact, target, format or size before any engine; what one engine lacks is its row's reason."""
    restore(asked.artifact)
    if not (asked.artifact / MANIFEST).is_file():
        return _from_diffusers(asked, store, progress)
    if asked.null_class is not None:
        raise UserError(f"--null-class: {asked.artifact} is an artifact, which holds its classes. Leave it out.")
    settled(verify, asked.artifact)
    formats = _formats(asked)
    found = classes(asked.targets)
    _check_kits(asked, found)
    has_onnx = (asked.artifact / ONNX_FILE).is_file()
    others = [f for f in formats if f not in ENGINES] + ([] if has_onnx or "onnx" in formats else ["onnx"])
    rows: list[Row] = []
    context = kept_in(store, progress)

    def write(folder: Path) -> dict[str, Any]:
        manifest = verify(asked.artifact)  # now that nobody else can replace it
        _take_over(asked.artifact, folder)
        records, parity = dict(manifest.get("exports", {})), manifest.get("parity", {})
        for name in others:
            model = load_model(asked.artifact)
            if name != "onnx":
                records[name] = EXPORTERS.get(name)().export(model, folder, context)
                rows.append({"target": "", "what": name, "status": "done", "path": str(asked.artifact)})
                continue
            records[name], far = write_onnx(model, folder, asked.onnx or EXPORTERS.get(name)(), context)
            parity = merged(parity, far)
            rows.append(onnx_row(asked.artifact, records[name], parity))
            _drop_engines(folder, manifest, records)
        wanted = [f for f in formats if f in ENGINES]
        made = _engines(asked, found, wanted, folder, context, rows)
        if not others and not made:
            raise _NothingMadeError
        return _fields(manifest, records, made) | ({"parity": parity} if parity else {})

    with suppress(_NothingMadeError):
        commit(asked.artifact, write)
    return rows


class _NothingMadeError(Exception):
    """The artifact stays as it is: no file was made for it."""


def adopt(artifact: Path, kits: Sequence[Path]) -> list[Row]:
    """Engines that build kits (folders or zips) made elsewhere, into the artifact the kits were made of; a row each.

    Raises what `engines.adopt.examine` does before anything is written; the artifact gets all of them or none."""
    restore(artifact)
    before = settled(verify, artifact)
    facts = read_graph(artifact / ONNX_FILE)
    found = [adoption.examine(path, artifact / ONNX_FILE, facts, limit_of(narrowest(facts))) for path in kits]
    names = [f.order.name for f in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--adopt: {names.count(name)} kits hold an engine {name}. Give one of them.")
    rows: list[Row] = []

    def write(folder: Path) -> dict[str, Any]:
        manifest = verify(artifact)
        if manifest["files"].get(ONNX_FILE) != before["files"].get(ONNX_FILE):
            raise ArtifactError(
                f"{artifact}: another command has replaced {ONNX_FILE} meanwhile. Give the command again."
            )
        _take_over(artifact, folder)
        made: dict[str, dict[str, Any]] = {}
        for one in found:
            record = made.setdefault(one.order.module, {})[one.order.name] = adoption.place(one, folder)
            row: Row = {"target": one.about.target, "sm": record["sm"], "what": "engine", "module": one.order.module}
            row |= {"version": one.order.version, "origin": record["origin"]}
            rows.append(_done(row, artifact, one.order, record))
        return _fields(manifest, dict(manifest.get("exports", {})), made)

    commit(artifact, write)
    return rows


def _done(row: Row, artifact: Path, order: Order, record: dict[str, Any]) -> Row:
    """The row of an engine that stands in the artifact: where, and what its record says."""
    path = artifact / FOLDER / order.name / ENGINE
    return row | {"status": "done", "path": str(path)} | {k: record[k] for k in FIGURES}


def _fields(manifest: dict[str, Any], records: dict[str, Any], made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A manifest's fields with the engines made, by module and name, beside those that were there."""
    for module, engines in made.items():
        records[module] = {"engines": records.get(module, {}).get("engines", {}) | engines}
    return {k: v for k, v in manifest.items() if k not in ("schema", "files")} | {"exports": records}


def _from_diffusers(asked: Request, store: Store, progress: Progress) -> list[Row]:
    """The denoiser of a folder as an artifact at `out`, then what else is asked of it."""
    formats = _formats(asked)
    classes(asked.targets)
    model = load_network(asked.artifact, asked.config, asked.null_class)
    if asked.out is None:
        raise UserError(
            "--out: a network becomes an artifact in a folder of its own. Give e.g. --out exported/network."
        )
    manifest = export_model(model, asked.out, asked.onnx, kept_in(store, progress))
    first = onnx_row(asked.out, manifest["exports"]["onnx"], manifest["parity"])
    rest = tuple(f for f in formats if f != "onnx")
    return [first, *(export(replace(asked, artifact=asked.out, formats=rest), store, progress) if rest else ())]


def kept_in(store: Store, progress: Progress) -> Context:
    """A context whose traces and engines are kept in a store."""
    code = code_hash("optimize.engines.place")
    return Context(progress=progress, keep=stages.keeper(store, {"code": code}))


def onnx_row(artifact: Path, record: dict[str, Any], parity: dict[str, Any]) -> Row:
    """The row of an artifact's ONNX file: what its record says, and how far it is from the network."""
    told = ("bytes", "precision", "opset", "exporter", "reason", "symbols", "fixed", "fp32_layers", "int8_layers", "fp8_layers")  # fmt: skip
    row = {"target": "", "what": "onnx", "status": "done", "path": str(artifact / ONNX_FILE)}
    return row | {k: record[k] for k in told if k in record} | {"relative_l2": parity[CHECKED_BY]["relative_l2"]}


def _drop_engines(folder: Path, manifest: dict[str, Any], records: dict[str, Any]) -> None:
    """Engines of an earlier graph go where the new one differs."""
    earlier = manifest["files"].get(ONNX_FILE, {}).get("sha256")
    if earlier != file_sha256(folder / ONNX_FILE):
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        for name in ENGINES:
            records.pop(name, None)


def _formats(asked: Request) -> list[str]:
    for name in asked.formats:
        EXPORTERS.get(name)  # UserError with the nearest name
    return list(dict.fromkeys(asked.formats))


def _take_over(artifact: Path, folder: Path) -> None:
    """Every file of the artifact but its manifest, without copying bytes where the file system allows. A graph's files
    are copied: onnx refuses weights beside a graph that have a second name."""
    for file in sorted(p for p in artifact.rglob("*") if p.is_file() and p != artifact / MANIFEST):
        place = folder / file.relative_to(artifact)
        place.parent.mkdir(parents=True, exist_ok=True)
        take = shutil.copy2 if file.parent == (artifact / ONNX_FILE).parent else link_or_copy
        take(file, place)


def _engines(
    asked: Request, found: list[Target], wanted: Sequence[str], folder: Path, context: Context, rows: list[Row]
) -> dict[str, dict[str, Any]]:
    """Build or refuse an engine for every target and module, and a kit where TensorRT must build elsewhere."""
    made: dict[str, dict[str, Any]] = {}
    if not wanted:
        return made
    facts = read_graph(folder / ONNX_FILE)
    shape = tuple(read_json(folder / "sampler.json")["shape"]) if (folder / "sampler.json").is_file() else ()
    profiles_for(asked.settings, facts, shape, folder)  # wrong for one is wrong for all
    with context.progress("engines", len(found) * len(wanted)) as advance:
        for target in found:
            statuses = {}
            for module in wanted:
                row, record = _engine(asked, target, module, facts, shape, folder, context)
                rows.append(row)
                statuses[module] = row["status"]
                if record:
                    made.setdefault(module, {})[Path(row["path"]).parent.name] = record
                advance(1, f"{target.name} {libraries.TITLES[module]}: {row['status']}")
            if asked.kits is not None and statuses.get("tensorrt") == "refused":
                rows.append(_kit(asked, target, facts, shape, folder))
    return made


def _engine(
    asked: Request, target: Target, module: str, facts: GraphFacts, shape: Sequence[int], folder: Path, context: Context
) -> tuple[Row, dict[str, Any] | None]:
    row: Row = {"target": target.name, "sm": target.sm_text, "what": "engine", "module": module}
    try:
        order = order_for(target, module, asked.settings, facts, shape, folder)
        row["version"] = order.version
        order.refuse(libraries.gpu_sm())
        record = place_engine(order, folder, context)
    except OptimizeError as error:
        return row | {"status": "refused", "reason": str(error), "exit_code": error.exit_code}, None
    return _done(row, asked.artifact, order, record), record


def _kit(asked: Request, target: Target, facts: GraphFacts, shape: Sequence[int], folder: Path) -> Row:
    """A build kit for one target; a refusal where no TensorRT can build this graph for it."""
    row: Row = {"target": target.name, "sm": target.sm_text, "what": "kit", "module": "tensorrt"}
    place = _kit_place(asked, target)
    try:
        if target.sm is None or target.tensorrt is None:
            raise UserError(f"target {target.name}: TensorRT has no kernels for it. Use ONNX Runtime.")
        order = _order(target, asked.settings, facts, shape, folder)
        libraries.refuse_format(
            libraries.Wish(
                target.sm, frozenset(facts.formats), asked.settings.flags, asked.settings.hardware_compatible
            )
        )
        refuse_brought_back(place, asked.zipped)
        commit(place, lambda temporary: _write_kit(temporary, asked, target, order, folder))
        path = compose.zip_folder(place) if asked.zipped else place
    except OptimizeError as error:
        return row | {"status": "refused", "reason": str(error), "exit_code": error.exit_code}
    return row | {"status": "done", "path": str(path), "expected": facts.expected}


def _kit_place(asked: Request, target: Target) -> Path:
    return (asked.kits or asked.artifact.parent) / f"{asked.artifact.name}-{target.name}"


def _check_kits(asked: Request, found: Sequence[Target]) -> None:
    """Raise, before anything is built, where a kit that will be written would take the place of one that was brought
    back, or of something else."""
    if asked.kits is None or "tensorrt" not in asked.formats:
        return
    if asked.kits.resolve().is_relative_to(asked.artifact.resolve()):
        raise UserError(
            f"--kits: {asked.kits} is in the artifact {asked.artifact}, whose files are all in its manifest. Give a folder beside it."
        )
    for target in found:
        try:
            refuse_here(asked.settings, [target.name], "tensorrt")
        except OptimizeError:  # TensorRT cannot build for it here, which is what kits are for
            refuse_brought_back(_kit_place(asked, target), asked.zipped)


def _order(target: Target, settings: EngineSettings, facts: GraphFacts, shape: Sequence[int], folder: Path) -> Order:
    """The order a kit carries: profiles and flags, whatever is installed here."""
    assert target.sm is not None
    profiles = profiles_for(settings, facts, shape, folder)
    return Order(folder / ONNX_FILE, facts, "tensorrt", target.tensorrt or "", target.sm, profiles, settings)


def _write_kit(temporary: Path, asked: Request, target: Target, order: Order, folder: Path) -> dict[str, Any]:
    model = load_model(asked.artifact)
    batches = sorted({min(asked.settings.batch), max(asked.settings.batch)})
    precision = narrowest(order.facts)
    job = {k: v for k, v in order.job().items() if k not in ("onnx", "sm", "timing_cache")}
    about = compose.about_kit(
        asked.artifact.name, target, job, order.facts.expected, limit_of(precision), precision, order.estimate
    )
    compose.write_kit(temporary, order.onnx, list(order.facts.files), about, compose.cases_of(model, batches))
    return {"kit": about["name"], "target": target.name}


def narrowest(facts: GraphFacts) -> str:
    """The narrowest format a graph computes layers in."""
    return next((f for f in ("fp8", "int8", "fp16", "bf16") if facts.count(f)), "fp32")


def parse_settings(batch: str, sizes: Sequence[str], **rest: Any) -> EngineSettings:
    """Settings from a command line's texts, "1,16" and ["H=64,96"]; UserError for what they cannot be."""
    found = {}
    for text in sizes:
        symbol, equals, values = text.partition("=")
        if not equals or not symbol:
            raise UserError(f'--size: given "{text}". Write a symbolic dimension and its sizes, e.g. H=64,96.')
        found[symbol.strip()] = numbers(values, "--size")
    try:
        return EngineSettings(batch=numbers(batch, "--batch"), sizes=found, **rest)
    except ValidationError as error:
        raise UserError("\n".join(described(error, EngineSettings))) from None


def exit_code(rows: Sequence[Row]) -> int:
    """0 where every target got an engine or a kit; else the code of its first refusal."""
    for target in dict.fromkeys(row["target"] for row in rows):
        mine = [row for row in rows if row["target"] == target]
        if not any(row["status"] == "done" for row in mine):
            return int(mine[0]["exit_code"])
    return 0
