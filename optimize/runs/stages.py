"""The stages of a run: each builds its content key, and computes only where the store has no answer."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.architectures.artifact import load_model, save_model
from optimize.architectures.finite import Watched
from optimize.diffusion.backend import open_runner, spec_parts
from optimize.diffusion.context import Context, Data, Keep
from optimize.diffusion.schedule import Schedule
from optimize.errors import ArtifactError, EnvironmentLacks, UserError, some
from optimize.hardware import environment
from optimize.hardware.devices import here
from optimize.progress import Progress
from optimize.quality import shards
from optimize.quantization.fake_quant import formats
from optimize.recipes.paths import content
from optimize.recipes.schema import Recipe
from optimize.registry import SOURCES
from optimize.runs.rounded import as_stored
from optimize.storage.cache import Stage, Store, code_hash
from optimize.storage.commit import commit, write_json
from optimize.storage.dataset import samples_in
from optimize.storage.disk import save_tensors
from optimize.storage.trust import MANIFEST, verify
from optimize.storage.weights import file_sha256, read_json, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.diffusion.model import Model
    from optimize.diffusion.sampling import Sampler


@dataclass(frozen=True)
class Variant:
    """One model of a run with its exports. Only JSON is read until `model` is asked for."""

    name: str
    stage: str  # the pass that made it, or "source"
    artifact: Stage  # weights, structure, sampler and every exported file
    parity: dict[str, Any]  # runner spec -> figures against the torch network, and the runner's description

    @property
    def folder(self) -> Path:
        """The artifact's folder in the store."""
        return self.artifact.folder

    @property
    def id(self) -> str:
        """Content address of the artifact."""
        return self.artifact.id

    @cached_property
    def sampling(self) -> dict[str, Any]:
        """sampler.json."""
        return read_json(self.folder / "sampler.json")

    @cached_property
    def precision(self) -> str:
        """fp32, or the format that a pass quantized it to: int8 or fp8."""
        edits = read_json(self.folder / "structure.json")["edits"]
        found = formats(row for e in edits for row in e["record"].get("quantizers", ()))
        return next(iter(found.values()), "fp32")

    @property
    def exported_precision(self) -> str:
        """fp32, fp16 or bf16: the float type of the ONNX file."""
        return self.artifact.manifest.get("exports", {}).get("onnx", {}).get("precision", "fp32")

    @property
    def runners(self) -> list[str]:
        """Runner specs this machine can offer."""
        return [spec for spec, found in self.parity.items() if "refused" not in found]

    @cached_property
    def model(self) -> Model:
        """The torch model."""
        return open_model(self.artifact)


def load_data(path: Path, field: str) -> Data:
    """Samples, labels and conditions of a safetensors file; UserError where it does not hold `images`, which lie in [-1, 1],
    or `latents` (see `optimize.storage.dataset`). All other tensors are conditions by input name, a row a sample."""
    found = samples_in(path, field)
    tensors = read_tensors(path)
    conditions = {name: tensors[name] for name in found.further}
    labels = None if found.labels is None else tensors["labels"].long()
    return Data(tensors[found.kind].float(), labels, conditions, where=found.where)


def source_stage(store: Store, recipe: Recipe, progress: Progress) -> Stage:
    """The untouched model with the sampler it is used with today."""
    source = _source(recipe)
    code = code_hash(type(source).__module__)
    key = {
        "files": source.fingerprint(),
        "sha256": recipe.source.sha256,
        "sampler": recipe.sampler.model_dump(
            mode="json", exclude_unset=True
        ),  # what is left out is the scheduler's to say
        "code": code,
    }

    def compute(folder: Path, work: Path) -> dict[str, Any]:
        with progress("load the model", 1) as advance:
            model = source.load(recipe.sampler)
            save_model(folder, model)
            advance(1)
        return {"parent": None, "source": model.source, "passes": [], "seed": recipe.seed}

    return store.stage("source", key, compute)


def _source(recipe: Recipe) -> Any:
    """The recipe's source; UserError for options that its kind does not take."""
    about = recipe.source
    try:
        return SOURCES.get(about.kind)(about.path, about.sha256, **about.options())
    except TypeError as error:
        taken = inspect.signature(SOURCES.get(about.kind)).parameters
        given = some(name for name in about.options() if name not in taken) or some(about.options())
        raise UserError(
            f"source: kind {about.kind} does not take all of {given} ({error}). Leave out what it does not."
        ) from error


def pass_stage(store: Store, recipe: Recipe, index: int, parent: Stage, baseline: Stage, progress: Progress) -> Stage:
    """Pass number `index` of the recipe applied to the model in `parent`."""
    step, device = recipe.passes[index], pass_device(recipe)
    key = {
        "parent": parent.id,
        "config": content(step),
        "code": code_hash(type(step).__module__),
        "data": file_sha256(recipe.data.training),
        "baseline": baseline.id,
        "seed": recipe.seed,
        "device": here()[0].name if device == "cuda" else device,
        **_numerics(),
    }

    def compute(folder: Path, work: Path) -> dict[str, Any]:
        data = load_data(recipe.data.training, "data.training")
        context = Context(recipe.seed, device, data, lambda name: _teacher(name, baseline), work, progress)
        made, record = step.apply(open_model(parent), context)
        save_model(folder, made)
        return _lineage(parent, step, record, recipe.seed)

    return store.stage(step.name, key, compute)


def pass_device(recipe: Recipe) -> str:
    """Where passes compute: on the GPU found here, unless the recipe is for the CPU or torch cannot use it."""
    if recipe.target == "cpu" or not here()[0].cuda:
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _numerics() -> dict[str, Any]:
    """What changes numbers besides code: library versions, instruction sets, threads."""
    return {"libraries": environment.versions(), "cpu": environment.instructions(), "threads": environment.threads()}


def _teacher(name: str, baseline: Stage) -> Model:
    if name != "baseline":
        raise UserError(f'teacher: "{name}" is not known. Allowed: baseline.')
    return open_model(baseline)


def _lineage(parent: Stage, step: Any, record: dict[str, Any], seed: int) -> dict[str, Any]:
    entry = {"name": step.name, "config": step.to_json(), "record": record}
    return {
        "parent": parent.id,
        "source": parent.manifest["source"],
        "passes": [*parent.manifest["passes"], entry],
        "seed": seed,
        "environment": environment.environment(),
    }


def open_model(stage: Stage) -> Model:
    """The model in a stage; its id is the stage's."""
    return replace(load_model(stage.folder), id=stage.id)


def export_stage(
    store: Store, recipe: Recipe, name: str, made: Stage, runners: Sequence[str], progress: Progress
) -> Variant:
    """Model files and exported files in one folder, size and work counted; then their parity on every runner."""
    meant = [in_use(meant_for(e, recipe.target), recipe, made.folder) for e in recipe.exports]
    codes = [code_hash(m) for m in (*(type(e).__module__ for e in meant), "optimize.diffusion.macs")]
    exports = [{e.name: content(e)} for e in meant]
    key = {"model": made.id, "exports": exports, "code": codes, **_numerics(), **card_of(meant)}

    def compute(folder: Path, work: Path) -> dict[str, Any]:
        from optimize.diffusion.macs import count

        for file in made.manifest["files"]:
            shutil.copy2(made.folder / file, folder / file)
        model = open_model(made)
        context = Context(recipe.seed, progress=progress, keep=keeper(store, {"code": codes, **_numerics()}))
        records = {e.name: e.export(model, folder, context) for e in meant}
        fields = {k: v for k, v in made.manifest.items() if k not in ("schema", "files", "id", "stage", "seconds")}
        return fields | {"count": count(model), "exports": records}

    stage = store.stage("export", key, compute)
    # at the batch that is timed later, so that a compiling runner compiles once
    parity = _parity_stage(store, name, stage, runners, max(recipe.benchmark.batch), progress)
    return Variant(name, made.name, stage, parity)


def meant_for(export: Any, target: str) -> Any:
    """An exporter whose target `here` is the recipe's own."""
    named = getattr(export, "targets", ())
    if target == "here" or "here" not in named:
        return export
    return export.model_copy(update={"targets": tuple(target if name == "here" else name for name in named)})


def in_use(export: Any, recipe: Recipe, artifact: Path) -> Any:
    """An exporter that plans for batches, which are the recipe's own where it names none: a single sample, what is timed
    and what is judged, and each twice where guidance evaluates both branches in one call. The largest that is timed is
    what engines are tuned for."""
    if not hasattr(export, "best_batch") or "batch" in export.model_fields_set:
        return export
    guidance = read_json(artifact / "sampler.json")["sampler"]["guidance"]
    times = 2 if guidance["cfg"] is not None and guidance["batched"] else 1
    timed, judged = recipe.benchmark.batch, recipe.quality.batch
    batch = sorted({n * k for n in (1, *timed, judged) for k in (1, times)})
    return export.model_copy(update={"batch": tuple(batch), "best_batch": export.best_batch or max(timed) * times})


def card_of(exports: Sequence[Any]) -> dict[str, Any]:
    """The GPU found, where one of the exports builds for `here` or on the card it finds: another card must not get the
    first one's engine. Empty where all are built ahead of time for named targets, or without a GPU."""
    if not any("here" in getattr(e, "targets", ()) or getattr(e, "of_the_card", False) for e in exports):
        return {}
    target, facts = here()
    return {"gpu": [target.name, facts["name"], list(facts.get("sm", ()))]} if target.cuda else {}


def keeper(store: Store, always: dict[str, Any]) -> Keep:
    """Keeps intermediate results in the store; `always` is what all of them depend on."""

    def keep(name: str, depends: dict[str, Any], write: Callable[[Path], None]) -> Path:
        def compute(folder: Path, work: Path) -> dict[str, Any]:
            write(folder)
            return {}

        return store.stage(name, depends | always, compute).folder

    return keep


def _parity_stage(
    store: Store, name: str, artifact: Stage, runners: Sequence[str], batch: int, progress: Progress
) -> dict[str, Any]:
    """Relative L2 and largest difference between each runner and the torch network, at ten noise levels; `refused` with
    the reason for a runner this machine cannot offer."""
    specs = [(r, runner_code(r)) for r in runners]
    key = {"artifact": artifact.id, "runners": specs, "batch": batch, "code": code_hash("optimize.diffusion.parity")}
    key |= environment.gpu()  # what one machine refuses another one runs

    def compute() -> dict[str, Any]:
        from optimize.diffusion.parity import parity

        found, model = {}, open_model(artifact)
        stored = artifact.manifest.get("exports", {}).get("onnx", {}).get("precision", "fp32")
        with progress(f"parity {name}", len(runners)) as advance:
            for spec in runners:
                try:
                    with open_spec(artifact.folder, spec) as network:
                        found[spec] = parity(model, network, batch=batch) | {"runner": network.describe()}
                except EnvironmentLacks as error:
                    found[spec] = {"refused": str(error)}
                advance(1, spec)
        return as_stored(found, artifact.folder, stored, model)

    return json_stage(store, "parity", key | _numerics(), compute)


def runner_code(spec: str) -> str:
    """Digest of a runner's source."""
    return code_hash(f"optimize.runners.{spec_parts(spec)[0]}")


def open_spec(folder: Path, spec: str, **options: Any) -> Any:
    """The runner a spec names (see `optimize.diffusion.backend.spec_parts`) on an artifact folder."""
    name, asked = spec_parts(spec)
    return open_runner(folder, name, **asked, **options)


def images_stage(
    store: Store,
    variant: Variant,
    spec: str,
    sampler: Sampler,
    count: int,
    batch: int,
    progress: Progress,
    processes: int = 1,
    purpose: str = "images",
) -> Stage:
    """Images of seeds 0..count-1 drawn with `sampler` through a runner of the variant; read them with `images`.

    They do not depend on the number of processes, so it is no part of the key; neither is `purpose`, a word for the
    progress. Raises GateFailed where the runner, or the torch network beside it, gives NaN or infinities on the way.
    """
    key = {
        "artifact": variant.id,
        "runner": [spec, runner_code(spec)],
        "sampler": sampler.to_json(),
        "count": count,
        "batch": batch,
        "code": [code_hash(f"optimize.{m}") for m in ("diffusion.model", "architectures.finite")],
        **environment.gpu(),
    }

    def compute(folder: Path, work: Path) -> dict[str, Any]:
        nfe = sampler.nfe(Schedule.from_json(variant.sampling["schedule"]))
        title = f"{purpose}: {variant.name} on {spec}, {sampler.solver} × {sampler.steps}, {nfe} NFE"
        with progress(title, count) as advance:
            if processes > 1:
                name, options = spec_parts(spec)
                about = (sampler.to_json(), count, batch, processes)
                drawn = shards.images(variant.folder, name, options, *about)
                advance(count)
            else:
                with open_spec(variant.folder, spec) as network:
                    witness = None if spec_parts(spec)[0] == "torch" else variant.model.denoiser.network
                    watched = Watched(network, witness, f"quality: {variant.name} on {spec}")
                    drawn = variant.model.with_network(watched).sample(range(count), batch, sampler, advance)
        save_tensors({"images": drawn.contiguous()}, folder / "images.safetensors")
        return {"artifact": variant.id}

    return store.stage("images", key, compute)


def images(stage: Stage) -> Tensor:
    """The images (N,C,H,W) in [-1, 1] of an images stage."""
    return read_tensors(stage.folder / "images.safetensors")["images"]


def json_stage(store: Store, name: str, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
    """A stage whose result is one JSON value."""

    def write(folder: Path, work: Path) -> dict[str, Any]:
        write_json(folder / "result.json", compute())
        return {}

    return read_json(store.stage(name, key, write).folder / "result.json")


def publish(variant: Variant, name: str, out: Path) -> Path:
    """Copy an artifact to `out/name`, whole or not at all; an identical one is left alone."""
    folder = out / name
    if published(folder) == (variant.artifact.id, variant.parity):
        return folder

    def write(temporary: Path) -> dict[str, Any]:
        shutil.copytree(variant.folder, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        fields = {k: v for k, v in variant.artifact.manifest.items() if k not in ("schema", "files")}
        return fields | {"parity": variant.parity}

    commit(folder, write)
    return folder


def published(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Id and parity of the whole artifact in `folder`; None where there is none, or a damaged one."""
    try:
        manifest = verify(folder)
    except ArtifactError:
        return None
    return manifest["id"], manifest["parity"]
