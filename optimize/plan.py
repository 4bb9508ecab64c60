"""The check before any work: what cannot work is refused here, by name, with the nearest thing that works."""

from __future__ import annotations

from pathlib import Path

from optimize.errors import UserError
from optimize.quality.config import FeatureNetwork
from optimize.quality.networks import imported
from optimize.recipe import Recipe
from optimize.weights import file_sha256


def check(recipe: Recipe) -> None:
    """UserError naming every problem of paths and of the order of passes."""
    problems = [*_paths(recipe), *_imports(recipe), *_pinned(recipe), *_order(recipe), *_guidance(recipe)]
    if recipe.target not in ("here", "cpu"):
        problems.append(f'target: "{recipe.target}" cannot be measured on this device. Allowed here: here, cpu.')
    if not recipe.exports and any(not s.startswith("torch") for s in recipe.benchmark.runners):
        problems.append("exports: none, but benchmark.runners asks for runners of exported files. Add `- onnx: {}`.")
    if problems:
        raise UserError("\n".join([f"recipe {recipe.name}:", *(f"  {p}" for p in problems)]))


def _paths(recipe: Recipe) -> list[str]:
    paths = {
        "source.path": recipe.source.path,
        "data.training": recipe.data.training,
        "data.held_out": recipe.data.held_out,
        **_judges(recipe),
    }
    return [
        f"{field}: {path} does not exist (relative to the working directory)."
        for field, path in paths.items()
        if not path.exists()
    ]


def _judges(recipe: Recipe) -> dict[str, Path]:
    """Paths of what judges, as far as they are local; hub ids are fetched when they are needed."""
    quality = recipe.quality
    found = {f: Path(n.source) for f, n in _networks(recipe).items() if n.kind != "import" and not n.on_hub}
    if quality.lpips and not FeatureNetwork(kind="inception", source=quality.lpips).on_hub:
        found["quality.lpips"] = Path(quality.lpips)
    return found | ({"quality.classifier": quality.classifier} if quality.classifier else {})


def _networks(recipe: Recipe) -> dict[str, FeatureNetwork]:
    """Every feature network of a recipe by its field."""
    quality = recipe.quality
    found = {"quality.features": quality.features, **{f"quality.further.{k}": n for k, n in quality.further.items()}}
    return found | ({"quality.clip": quality.clip} if quality.clip else {})


def _imports(recipe: Recipe) -> list[str]:
    """Import paths that lead to no callable."""
    problems = []
    for field, network in _networks(recipe).items():
        if network.kind == "import":
            try:
                imported(network.source)
            except UserError as error:
                problems.append(f"{field}: {error}")
    return problems


def _pinned(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    for name, expected in recipe.pinned.items():
        path = Path(name)
        if not path.is_file():
            problems.append(f"pinned: {path} is no file (relative to the working directory).")
        elif (found := file_sha256(path)) != expected:
            problems.append(
                f"pinned: {path} has hash {found}, the recipe expects {expected}. Restore it, or pin the new."
            )
    return problems


def _order(recipe: Recipe) -> list[str]:
    """Each pass against what the passes before it provide."""
    problems: list[str] = []
    provided = {"trained", "data"}
    for i, step in enumerate(recipe.passes):
        problems += [f"passes[{i}].{step.name}: {why}" for what, why in step.refuses_after.items() if what in provided]
        lacks = sorted(step.requires - provided)
        problems += [f"passes[{i}].{step.name}: needs {what}, which no earlier pass provides." for what in lacks]
        provided |= step.provides
    return problems


def _guidance(recipe: Recipe) -> list[str]:
    if recipe.sampler.guidance.folded is None:
        return []
    return ["sampler.guidance.folded: only a distilled network contains its guidance; give cfg for the source model."]
