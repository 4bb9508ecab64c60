"""What a plan is about: a network to be looked at without its weights, how it is sampled, and the recipe it comes with.

`open_subject` takes a recipe (name or file), an artifact folder, or a model folder in diffusers layout.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.architectures.artifact import load_model
from optimize.architectures.original import is_single, part_weights
from optimize.architectures.recognized import recognized
from optimize.diffusion.followed import clip_of, followed
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.diffusion.schedule import Schedule, from_diffusers
from optimize.errors import ArtifactError, UserError, did_you_mean
from optimize.hardware.feasibility import Facts
from optimize.recipes.paths import RELATIVE, builtin, examples_root
from optimize.recipes.read import load
from optimize.recipes.schema import Recipe
from optimize.storage.trust import MANIFEST
from optimize.storage.variants import weights_files, weights_of
from optimize.storage.weights import PICKLED, read_json
from optimize.training.reread import blind_up_to, wide_up_to

if TYPE_CHECKING:
    from optimize.roofline.layers import Layer
    from optimize.storage.variants import Weights

DENOISERS = ("unet", "transformer")  # folders of a pipeline that hold the denoiser
RESOLVED = "recipe.resolved.yaml"
FEWEST = "dpmpp_2m"  # the solver that needs the fewest steps of an untrained change


@dataclass(frozen=True)
class Subject:
    """A network, and how images are drawn from it. `read(batch)` gives its layers at a network batch."""

    name: str  # as it was given
    variant: str  # as measurements call it: baseline, or an artifact's name
    read: Callable[[int], list[Layer]]
    sampler: Sampler
    schedule: Schedule
    architecture: str = "UNet2DModel"
    prediction: str = ""  # the head, where it is known
    positions: int | None = None
    recipe: Recipe | None = None  # whose data, judges and settings a proposal takes over
    folder: Path | None = None  # an artifact's, or the model's; its checkpoint in one file
    id: str = ""  # an artifact's
    passes: tuple[str, ...] = ()  # what an artifact went through
    notes: tuple[str, ...] = ()  # what was assumed
    config: Path | None = None  # of a checkpoint in one file: the folder of its configs

    @cached_property
    def nfe(self) -> int:
        """Network evaluations an image."""
        return self.sampler.nfe(self.schedule)

    def calls(self, nfe: int | None = None) -> tuple[tuple[int, int], ...]:
        """(calls, samples an image) of drawing images: as it is sampled today, or by a student of `nfe` evaluations.
        A batched guided step is one call of two samples."""
        if nfe is not None:
            return ((nfe, 1),)
        plain = self.sampler.model_copy(update={"guidance": Guidance()}).nfe(self.schedule)
        doubled = self.nfe - plain
        if not doubled or not self.sampler.guidance.batched:
            return ((self.nfe, 1),)
        return tuple(part for part in ((plain - doubled, 1), (doubled, 2)) if part[0])

    def sampled(self, steps: int) -> Subject:
        """Drawn in so many steps of the solver that needs the fewest."""
        changed = {"solver": FEWEST, "steps": steps, "timesteps": None}
        return replace(self, sampler=self.sampler.model_copy(update=changed))

    def facts(self, batch: int) -> Facts:
        """What rules want to know."""
        guidance = self.sampler.guidance
        return Facts(
            nfe=self.nfe,
            guided=bool(guidance.cfg),
            folded=guidance.folded,
            positions=self.positions,
            blind_nfe=blind_up_to(self.prediction, self.schedule),
            wide_steps=wide_up_to(self.prediction, self.schedule),
            preserving=self.schedule.kind == "vp",
            clipped=clip_of(self.sampler, self.schedule) is not None,
            batch=batch,
        )


def open_subject(
    name: str,
    steps: int | None = None,
    guidance: float | None = None,
    like: str | None = None,
    config: Path | None = None,
) -> Subject:
    """The subject a command names. `steps` and `guidance` replace those it is sampled with; `like` is a recipe whose
    data and judges a proposal takes over; `config` is the folder of the configs of a checkpoint in one file. Raises
    UserError for what is none of these, naming what is missing."""
    folder, base = Path(name), load(like) if like else None
    if config is not None and not is_single(folder):
        raise UserError(
            f"--config: {config}: for a checkpoint in one .safetensors file, and {name} is none. Leave it out."
        )
    if (folder / MANIFEST).is_file():
        found = _artifact(name, folder, base)
    elif folder.is_dir() or (folder.is_file() and folder.suffix.lower() in (".safetensors", ".gguf", *PICKLED)):
        found = _pipeline(name, folder, config, base or _shipped_for(folder))
    elif name in builtin() or folder.suffix in (".yaml", ".yml"):
        found = _of_recipe(name, base)
    else:
        raise UserError(
            f'model: "{name}" is no folder and no recipe. Give a model folder (unet/config.json), an artifact folder '
            f"(manifest.json), a recipe file, or a built-in recipe: {', '.join(builtin())}.{did_you_mean(name, builtin())}"
        )
    return _sampled(found, steps, guidance)


def _sampled(found: Subject, steps: int | None, guidance: float | None) -> Subject:
    changed: dict[str, Any] = {} if steps is None else {"steps": steps, "timesteps": None}
    if guidance is not None:
        changed["guidance"] = Guidance(cfg=guidance or None)
    if not changed:
        return found
    notes = tuple(n for n in found.notes if not (steps and "steps" in n))
    return replace(found, sampler=found.sampler.model_copy(update=changed), notes=notes)


def _of_recipe(name: str, base: Recipe | None) -> Subject:
    recipe = load(name)
    if not recipe.source.path.exists():
        raise UserError(f"recipe {recipe.name}: source.path: {recipe.source.path} does not exist. {RELATIVE}")
    if recipe.source.kind != "diffusers":
        raise UserError(
            f"recipe {recipe.name}: source.kind: {recipe.source.kind}: a plan reads the configs of a model in diffusers layout, and this source has none. Give an artifact of its run, e.g. exported/{recipe.name}/baseline."
        )
    found = _pipeline(name, recipe.source.path, recipe.source.config, base or recipe)
    sampler, notes = followed(recipe.sampler, found.schedule)
    return replace(found, sampler=sampler, notes=notes)


def _artifact(name: str, folder: Path, base: Recipe | None) -> Subject:
    model = load_model(folder)

    def read(batch: int) -> list[Layer]:
        from optimize.roofline.layers import layers

        return layers(model, batch)

    resolved = folder.parent / RESOLVED
    manifest = read_json(folder / MANIFEST)
    return Subject(
        name,
        folder.name,
        read,
        model.sampler,
        model.denoiser.schedule,
        model.structure.architecture,
        model.denoiser.parameterization.prediction,
        model.shape[1] * model.shape[2],
        base or (load(str(resolved)) if os.path.lexists(resolved) else None),
        folder,
        model.id,
        tuple(p["name"] for p in manifest.get("passes", ())),
    )


def _pipeline(name: str, path: Path, configs: Path | None, recipe: Recipe | None) -> Subject:
    """A model folder, or a checkpoint in one file with the folder of its configs; only configs are read, and the headers
    of weights, which must fit."""
    from optimize.architectures.components import class_name, skeleton

    place, config = _denoiser(path, configs)
    folder, weights = configs or path, _weights(path, place, config)
    module, inputs = skeleton(config, weights)

    def read(batch: int) -> list[Layer]:
        from optimize.diffusion.network import example_inputs
        from optimize.roofline.layers import layers

        return layers(module, feed=example_inputs(inputs, batch))

    schedule, prediction, notes = _noise(folder)
    guided = any(i.name == "encoder_hidden_states" for i in inputs)
    today = Sampler(guidance=Guidance(cfg=6.5 if guided else None))  # w of Meng et al.; 7.5 in diffusers' count
    sampler, unlike = followed(recipe.sampler if recipe else today, schedule)
    notes = (*notes, *unlike)
    if recipe is None:
        how = " with guidance" if guided else ""
        said = f"assumed to be sampled in {sampler.steps} steps of {sampler.solver}{how}; say otherwise with --steps, --cfg"
        notes = (*notes, said)
    sizes = inputs[0].shape(1)[2:]
    positions = int(sizes[0] * sizes[1]) if len(sizes) == 2 else None
    about = (schedule, class_name(config), prediction, positions, recipe, path)
    return Subject(name, "baseline", read, sampler, *about, notes=notes, config=configs)


def _denoiser(path: Path, configs: Path | None) -> tuple[Path, dict[str, Any]]:
    """(folder of the denoiser's config, config); ArtifactError saying what the path is where there is none."""
    from optimize.architectures.components import COMPONENTS, class_name

    folder = configs or path
    place = next((folder / d for d in (*DENOISERS, ".") if (folder / d / "config.json").is_file()), None)
    if place is None:
        raise ArtifactError(f"model: {recognized(folder)}")
    config = read_json(place / "config.json")
    if place == folder and (class_name(config) not in COMPONENTS or COMPONENTS[class_name(config)].role != "denoiser"):
        raise ArtifactError(f"model: {recognized(folder)}")
    return place, config


def _weights(path: Path, place: Path, config: dict[str, Any]) -> Weights | None:
    """The denoiser's weights, None where a folder has only configs."""
    from optimize.architectures.components import class_name

    if not path.is_file():
        return weights_of(place) if weights_files(place) else None
    found = part_weights(path, place.name, class_name(config), config)
    if found is None:
        raise ArtifactError(f"model: {recognized(path)}")
    return found


def _noise(folder: Path) -> tuple[Schedule, str, tuple[str, ...]]:
    """Schedule, head, and what was assumed where the folder does not say."""
    from optimize.diffusion.parameterization import from_diffusers as head

    path = folder / "scheduler" / "scheduler_config.json"
    if not os.path.lexists(path):
        return from_diffusers({}), "", (f"{path} is missing: an ordinary 1000-step schedule is assumed",)
    config = read_json(path)
    return from_diffusers(config), head(config).prediction, ()


def _shipped_for(folder: Path) -> Recipe | None:
    """The first built-in recipe whose source is this folder."""
    recipes = (load(name) for name in builtin()) if examples_root() is not None else ()
    return next((r for r in recipes if r.source.path.resolve() == folder.resolve()), None)
