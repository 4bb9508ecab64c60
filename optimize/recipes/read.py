"""YAML into a `Recipe`, with everything wrong in it reported at once, before anything loads.

`load("digits")` reads a recipe that ships with the package; `load("my.yaml")` reads a file, whose paths are relative to it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from optimize.configs import described
from optimize.diffusion.backend import runner_config, spec_parts
from optimize.errors import NAMES, UserError, cut, did_you_mean, shown
from optimize.hardware.targets import NAMES as TARGETS
from optimize.plain.text import LARGEST_YAML, parse_yaml, read_text
from optimize.recipes.paths import builtin, builtin_text, required_examples
from optimize.recipes.schema import Recipe
from optimize.registry import EXPORTERS, PASSES, RUNNERS, SOURCES, Registry


def load(name: str) -> Recipe:
    """The recipe of a file, or the built-in one of this name. UserError with every problem found, EnvironmentLacks where a
    built-in one has no examples to work on."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or os.path.isfile(name):
        if not os.path.exists(name):
            raise UserError(f"recipe: no such file: {cut(name)}")
        return parse(read_text(path, LARGEST_YAML, UserError, "a recipe"), name, path.parent)
    if name not in builtin():
        given = cut(name)
        raise UserError(
            f'recipe: "{given}" is neither a file nor a built-in recipe ({", ".join(builtin())}).{did_you_mean(given, builtin())}'
        )
    return parse(builtin_text(name), f"{name}.yaml", required_examples(name))


def parse(text: str, where: str = "recipe", folder: Path = Path()) -> Recipe:
    """Recipe from YAML text whose paths are relative to `folder`."""
    raw = parse_yaml(text, where)
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a recipe is a mapping with name, source, passes, …; found {type(raw).__name__}.")
    problems: list[str] = []
    plugins = {
        "passes": _plugins(PASSES, raw.get("passes"), "passes", problems),
        "exports": _plugins(EXPORTERS, raw.get("exports"), "exports", problems),
    }
    problems += _names(raw)
    recipe = _skeleton(raw | {k: tuple(v) for k, v in plugins.items()}, problems)
    problems += _taken_twice(recipe, folder) if recipe is not None else []
    if problems or recipe is None:
        raise UserError(
            "\n".join([f"{where}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *_listed(problems)])
        )
    return recipe.moved(lambda path: folder / path.expanduser())


def _listed(problems: list[str]) -> Iterator[str]:
    """The first problems, a line each, and how many more there are."""
    yield from (f"  {p}" for p in problems[:NAMES])
    if len(problems) > NAMES:
        yield f"  and {len(problems) - NAMES} more"


def _taken_twice(recipe: Recipe, folder: Path) -> list[str]:
    """Problems with judges whose source is a hub id, and a folder of that name lies beside the recipe."""
    named = recipe.quality.networks()
    return [f"{field}: {said}" for field, network in named.items() if (said := network.ambiguous(folder))]


def _skeleton(raw: dict[str, Any], problems: list[str]) -> Recipe | None:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        problems += described(error, Recipe)
    return None


def _plugins(registry: Registry, entries: Any, field: str, problems: list[str]) -> list[Any]:
    """Validated plugin configs of a list of `{name: {…}}`; what is wrong is appended to `problems`."""
    if entries is None:
        return []
    if not isinstance(entries, list):
        problems.append(f"{field}: a list of `- name: {{…}}` is expected, found {type(entries).__name__}.")
        return []
    found = (_plugin(registry, entry, f"{field}[{i}]", problems) for i, entry in enumerate(entries))
    return [p for p in found if p is not None]


def _plugin(registry: Registry, entry: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(entry, dict) or len(entry) != 1:
        problems.append(f"{where}: one `name: {{…}}` is expected, given {shown(entry)}.")
        return None
    (name, config), *_ = entry.items()
    if name not in registry.names():
        problems.append(
            f'{where}: "{cut(str(name))}" is no {registry.kind}. Allowed: {", ".join(registry.names())}.{did_you_mean(str(name), registry.names())}'
        )
        return None
    plugin = registry.get(name)
    if not isinstance(config, dict | None):
        problems.append(
            f"{where}.{name}: given {shown(config)}. Its settings are a mapping, {{}} where there are none."
        )
        return None
    try:
        return plugin.model_validate(config or {})
    except ValidationError as error:
        problems += described(error, plugin, f"{where}.{name}")
    return None


def _names(raw: dict[str, Any]) -> list[str]:
    """Problems with names that live in registries: target, source kind, runners."""
    problems = []
    target = raw.get("target", "here")
    if not isinstance(target, str) or target not in TARGETS:
        problems.append(
            f'target: "{cut(str(target))}" is not known. Allowed: {", ".join(TARGETS)}.{did_you_mean(str(target), TARGETS)}'
        )
    source, bench = raw.get("source"), raw.get("benchmark")
    kind = source.get("kind", "diffusers") if isinstance(source, dict) else "diffusers"
    if not isinstance(kind, str) or kind not in SOURCES.names():
        problems.append(f'source.kind: "{cut(str(kind))}" is not known. Allowed: {", ".join(SOURCES.names())}.')
    lists = [(f, bench.get(f)) for f in ("runners", "source_runners")] if isinstance(bench, dict) else []
    for field, values in lists:
        given = [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
        problems += [f"benchmark.{field}[{i}]: {said}" for i, v in enumerate(given) if (said := _runner(v))]
        problems += [
            f'benchmark.{field}: "{cut(v)}" stands there twice.' for v in dict.fromkeys(given) if given.count(v) > 1
        ]
    return problems


def _runner(spec: str) -> str:
    """What is wrong with a runner's spec, as far as it can be known before the runner is opened."""
    name, options = spec_parts(spec)
    if name not in RUNNERS.names():
        return (
            f'"{cut(spec)}" is not known. Allowed: {", ".join(RUNNERS.names())}.{did_you_mean(name, RUNNERS.names())}'
        )
    if spec != name + "".join(
        f"{sign}{options[k]}" for sign, k in ((":", "precision"), ("@", "device")) if k in options
    ):
        return f'"{cut(spec)}" is no runner. Write name, name:precision, name@device or name:precision@device.'
    try:
        runner_config(name, **options)
    except UserError as error:
        return f'"{cut(spec)}": {error}'
    return ""
