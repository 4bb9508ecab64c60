"""The data that a recipe names, checked whole before any work: by themselves, against the network, and for what the recipe
asks of them. Nothing is trained, drawn or judged before both checks held."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimize.diffusion import conditions
from optimize.diffusion.denoiser import Conditioning
from optimize.errors import UserError, shown
from optimize.quality.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS
from optimize.recipes.schema import Recipe
from optimize.storage.cache import Stage
from optimize.storage.dataset import Samples, check_shape, samples_in
from optimize.storage.weights import read_json

Given = dict[str, Samples]  # field -> what its file holds
FEWEST = {"fd": 2, "kid": 2, "precision_recall": 1 + NEIGHBOURS, "density_coverage": 1 + DENSITY_NEIGHBOURS}


def samples_of(recipe: Recipe) -> Given:
    """What the files of the recipe hold; UserError naming everything that is wrong with them."""
    problems: list[str] = []
    found: Given = {}
    for field, path in {"data.training": recipe.data.training, "data.held_out": recipe.data.held_out}.items():
        try:
            found[field] = samples_in(path, field)
        except UserError as error:
            problems.append(str(error))
    _raise(recipe, [*problems, *_too_few(recipe, found)])
    return found


def check_fit(recipe: Recipe, given: Given, source: Stage) -> None:
    """Raise UserError naming everything in which samples, labels and judges do not fit the network of the source."""
    about = read_json(source.folder / "sampler.json")
    told, latents = Conditioning.from_json(about["conditioning"]), about["limit"] is None
    problems: list[str] = []
    for field, found in given.items():
        learnt = field == "data.training" and any(_learns(step) for step in recipe.passes)
        try:
            _check_images(found, latents)
            check_shape(found, tuple(about["shape"]), latents)
            if learnt or found.labels is not None:
                told.check_labels(found.labels, found.where)
            if learnt and told.kind == "tensors":
                conditions.checked(_further(recipe.data.training, found), told, found.where, found.count)
        except UserError as error:
            problems.append(str(error))
    _raise(recipe, [*problems, *_judged(recipe, told)])


def _raise(recipe: Recipe, problems: list[str]) -> None:
    if problems:
        raise UserError("\n".join([f"recipe {recipe.name}:", *(f"  {p}" for p in problems)]))


def _check_images(found: Samples, latents: bool) -> None:
    """A run ends in images that are judged; latents have no judge."""
    if found.kind != "latents":
        return
    works = "works on latents, which a run cannot judge" if latents else "works on images in [-1, 1]"
    advice = "Use its passes from Python (docs/python.md)" if latents else "Give `images`"
    raise UserError(f"{found.where} holds latents, and this network {works}. {advice}.")


def _learns(step: Any) -> bool:
    """Whether a pass sees the training data."""
    return "data" in step.requires or getattr(step, "importance", "") == "diffusion_taylor"


def _further(path: Path, found: Samples) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in found.further}


def _too_few(recipe: Recipe, found: Given) -> Iterator[str]:
    """Figures that need more samples, or labels, than there are."""
    metrics = recipe.quality.metrics
    for samples in found.values():
        if samples.count < FEWEST["fd"]:
            yield f"{samples.where}: {samples.count} images; a distribution needs at least {FEWEST['fd']}, and 1,000 to say much."
        if "fd_per_class" in metrics and samples.labels is None:
            yield f"{samples.where}: no labels, and quality.metrics asks for fd_per_class. Give them, or leave it out."
    total = sum(samples.count for samples in found.values())
    for metric in metrics:
        if len(found) == 2 and total < FEWEST.get(metric, 0):
            yield f"quality.metrics: {metric} needs {FEWEST[metric]} real images at least, data has {total}. Give more, or leave it out."


def _judged(recipe: Recipe, told: Conditioning) -> Iterator[str]:
    """Classes that the judges do not know."""
    quality = recipe.quality
    if told.kind != "class":
        return
    last = told.label(told.classes - 1)
    if quality.classifier and "class_accuracy" in quality.metrics:
        known = read_json(quality.classifier / "config.json").get("classes", 0)
        if not isinstance(known, int) or last >= known:
            yield f"quality.classifier: it knows {shown(known, 20)} classes, and the network draws {told.labels}. Give one that knows them all, or say source.classes and source.null_class."
    if "clip_score" in quality.metrics and len(quality.prompts) <= last:
        yield f"quality.prompts: {len(quality.prompts)} given, and classes go up to {last}; give one for every class, in order."
