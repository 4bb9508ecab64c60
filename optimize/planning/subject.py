"""What a plan is about: a network to be looked at without its weights, how it is sampled, and the recipe it comes with.

`open_subject` takes a recipe (name or file), an artifact folder, or a model folder in diffusers layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.architectures.artifact import load_model
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.diffusion.schedule import Schedule, from_diffusers
from optimize.errors import ArtifactError, OptimizeError, UserError, did_you_mean
from optimize.hardware.feasibility import Facts
from optimize.recipes.paths import RELATIVE, builtin, examples_root
from optimize.recipes.read import load
from optimize.recipes.schema import Recipe
from optimize.storage.trust import MANIFEST
from optimize.storage.weights import read_json

if TYPE_CHECKING:
    from optimize.roofline.layers import Layer

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
    folder: Path | None = None  # an artifact's, or the model's
    id: str = ""  # an artifact's
    passes: tuple[str, ...] = ()  # what an artifact went through
    notes: tuple[str, ...] = ()  # what was assumed

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
            epsilon=self.prediction == "epsilon",
            alpha_end=float(self.schedule.alpha(self.schedule.noisiest)),
            batch=batch,
        )


def open_subject(
    name: str, steps: int | None = None, guidance: float | None = None, like: str | None = None
) -> Subject:
    """The subject a command names. `steps` and `guidance` replace those it is sampled with; `like` is a recipe whose
    data and judges a proposal takes over. Raises UserError for what is none of the three, naming what is missing."""
    folder, base = Path(name), load(like) if like else None
    if (folder / MANIFEST).is_file():
        found = _artifact(name, folder, base)
    elif folder.is_dir():
        found = _pipeline(name, folder, base or _shipped_for(folder))
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
    if not recipe.source.path.is_dir():
        raise UserError(f"recipe {recipe.name}: source.path: {recipe.source.path} does not exist. {RELATIVE}")
    found = _pipeline(name, recipe.source.path, base or recipe)
    return replace(found, sampler=recipe.sampler, notes=())


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
        base or (load(str(resolved)) if resolved.is_file() else None),
        folder,
        model.id,
        tuple(p["name"] for p in manifest.get("passes", ())),
    )


def _pipeline(name: str, folder: Path, recipe: Recipe | None) -> Subject:
    """A model folder; only configs are read."""
    from optimize.architectures.components import class_name, skeleton

    place = next((folder / d for d in (*DENOISERS, ".") if (folder / d / "config.json").is_file()), None)
    if place is None:
        asked = ", ".join(f"{d}/config.json" for d in DENOISERS)
        raise ArtifactError(f"model: {folder} has neither {asked} nor config.json. Give a folder in diffusers layout.")
    config = read_json(place / "config.json")
    module, inputs = skeleton(config)

    def read(batch: int) -> list[Layer]:
        from optimize.diffusion.network import example_inputs
        from optimize.roofline.layers import layers

        return layers(module, feed=example_inputs(inputs, batch))

    schedule, prediction, notes = _noise(folder)
    sampler = recipe.sampler if recipe else Sampler()
    if recipe is None:
        guided = any(i.name == "encoder_hidden_states" for i in inputs)
        sampler = Sampler(guidance=Guidance(cfg=6.5 if guided else None))  # w of Meng et al.; 7.5 in diffusers' count
        how = " with guidance" if guided else ""
        notes = (*notes, f"assumed to be sampled in {sampler.steps} DDIM steps{how}; say otherwise with --steps, --cfg")
    sizes = inputs[0].shape(1)[2:]
    positions = int(sizes[0] * sizes[1]) if len(sizes) == 2 else None
    about = (schedule, class_name(config), prediction, positions, recipe, folder)
    return Subject(name, "baseline", read, sampler, *about, notes=notes)


def _noise(folder: Path) -> tuple[Schedule, str, tuple[str, ...]]:
    """Schedule, head, and what was assumed where the folder does not say."""
    from optimize.diffusion.parameterization import from_diffusers as head

    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return from_diffusers({}), "", (f"{path} is missing: an ordinary 1000-step schedule is assumed",)
    try:
        return from_diffusers(read_json(path)), head(read_json(path)).prediction, ()
    except OptimizeError as error:
        return from_diffusers({}), "", (f"{error} An ordinary 1000-step schedule is assumed",)


def _shipped_for(folder: Path) -> Recipe | None:
    """The first built-in recipe whose source is this folder."""
    recipes = (load(name) for name in builtin()) if examples_root() is not None else ()
    return next((r for r in recipes if r.source.path.resolve() == folder.resolve()), None)
