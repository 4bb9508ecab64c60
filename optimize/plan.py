"""The check before any work: what cannot work is refused here, by name, with the nearest thing that works."""

from __future__ import annotations

from pathlib import Path

from optimize.errors import UserError
from optimize.recipe import Recipe
from optimize.weights import file_sha256


def check(recipe: Recipe) -> None:
    """UserError naming every problem of paths and of the order of passes."""
    problems = [*_paths(recipe), *_pinned(recipe), *_order(recipe), *_guidance(recipe)]
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
    """Paths of what judges, as far as they must be local."""
    quality, found = recipe.quality, {}
    if quality.features.kind == "classifier":
        found["quality.features"] = Path(quality.features.source)
    return found | ({"quality.classifier": quality.classifier} if quality.classifier else {})


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
