"""YAML into a `Recipe`, with everything wrong in it reported at once, before anything loads.

`load("digits")` reads a recipe that ships with the package; `load("my.yaml")` reads a file, whose paths are relative to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from optimize.configs import describe
from optimize.diffusion.backend import spec_parts
from optimize.errors import UserError, did_you_mean
from optimize.hardware.targets import NAMES as TARGETS
from optimize.recipes.paths import builtin, builtin_text, required_examples
from optimize.recipes.schema import Recipe
from optimize.registry import EXPORTERS, PASSES, RUNNERS, SOURCES, Registry


def load(name: str) -> Recipe:
    """The recipe of a file, or the built-in one of this name. UserError with every problem found, EnvironmentLacks where a
    built-in one has no examples to work on."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise UserError(f"recipe: no such file: {name}")
        return parse(path.read_text(errors="replace"), name, path.parent)
    if name not in builtin():
        raise UserError(
            f'recipe: "{name}" is neither a file nor a built-in recipe ({", ".join(builtin())}).{did_you_mean(name, builtin())}'
        )
    return parse(builtin_text(name), f"{name}.yaml", required_examples(name))


def parse(text: str, where: str = "recipe", folder: Path = Path()) -> Recipe:
    """Recipe from YAML text whose paths are relative to `folder`."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{where}: a recipe is a mapping with name, source, passes, …; found {type(raw).__name__}.")
    problems: list[str] = []
    plugins = {
        "passes": _plugins(PASSES, raw.get("passes"), "passes", problems),
        "exports": _plugins(EXPORTERS, raw.get("exports"), "exports", problems),
    }
    problems += _names(raw)
    recipe = _skeleton(raw | {k: tuple(v) for k, v in plugins.items()}, problems)
    if problems or recipe is None:
        raise UserError(
            "\n".join(
                [f"{where}: {len(problems)} problem{'s' if len(problems) > 1 else ''}", *(f"  {p}" for p in problems)]
            )
        )
    return recipe.moved(lambda path: folder / path.expanduser())


def _skeleton(raw: dict[str, Any], problems: list[str]) -> Recipe | None:
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        problems += [describe(e, Recipe) for e in error.errors()]
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
        problems.append(f"{where}: one `name: {{…}}` is expected, given {entry!r}.")
        return None
    (name, config), *_ = entry.items()
    if name not in registry.names():
        problems.append(
            f'{where}: "{name}" is no {registry.kind}. Allowed: {", ".join(registry.names())}.{did_you_mean(str(name), registry.names())}'
        )
        return None
    plugin = registry.get(name)
    try:
        return plugin.model_validate(config or {})
    except ValidationError as error:
        problems += [describe(e, plugin, f"{where}.{name}") for e in error.errors()]
    return None


def _names(raw: dict[str, Any]) -> list[str]:
    """Problems with names that live in registries: target, source kind, runners."""
    problems = []
    target = raw.get("target", "here")
    if target not in TARGETS:
        problems.append(
            f'target: "{target}" is not known. Allowed: {", ".join(TARGETS)}.{did_you_mean(str(target), TARGETS)}'
        )
    source, bench = raw.get("source"), raw.get("benchmark")
    kind = source.get("kind", "diffusers") if isinstance(source, dict) else "diffusers"
    if kind not in SOURCES.names():
        problems.append(f'source.kind: "{kind}" is not known. Allowed: {", ".join(SOURCES.names())}.')
    lists = [(f, bench.get(f)) for f in ("runners", "source_runners")] if isinstance(bench, dict) else []
    for field, values in lists:
        for i, value in enumerate(values if isinstance(values, list) else ()):
            name = spec_parts(str(value))[0]
            if name not in RUNNERS.names():
                problems.append(
                    f'benchmark.{field}[{i}]: "{value}" is not known. Allowed: {", ".join(RUNNERS.names())}.{did_you_mean(name, RUNNERS.names())}'
                )
    return problems
