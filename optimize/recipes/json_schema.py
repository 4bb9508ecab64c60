"""JSON schemas of a recipe and of everything registered, for `optimize schema` and for editors that check YAML.

A pass, exporter, runner or source is shown by its name, or by `kind/name` where two kinds share one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.json_schema import models_json_schema

from optimize.errors import UserError, did_you_mean
from optimize.hardware.targets import NAMES as TARGETS
from optimize.recipes.schema import Recipe
from optimize.registry import EXPORTERS, PASSES, RUNNERS, SOURCES, Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS = {r.kind: r for r in (PASSES, EXPORTERS, RUNNERS, SOURCES)}  # of several under one name, the first is shown
Schema = dict[str, Any]


def schema(name: str) -> Schema:
    """The schema of `recipe`, or of what is registered under a name; UserError with the nearest name for others."""
    if name == "recipe":
        return recipe_schema()
    if name not in names():
        allowed = ", ".join(n for found in listed().values() for n in found)
        raise UserError(f'schema: "{name}" is not known. Allowed: {allowed}.{did_you_mean(name, names())}')
    kind, _, plugin = name.rpartition("/")
    registry = KINDS[kind] if kind else next(r for r in KINDS.values() if name in r.names())
    return TypeAdapter(registry.get(plugin)).json_schema()


def names() -> list[str]:
    """All that can be shown: `recipe`, every name, and `kind/name` of each."""
    plain = {n for r in KINDS.values() for n in r.names()}
    return ["recipe", *sorted(plain), *(f"{kind}/{n}" for kind, r in KINDS.items() for n in r.names())]


def listed() -> dict[str, list[str]]:
    """What can be shown by kind, each under the shortest name that leads to it."""
    taken: set[str] = set()
    found = {"recipe": ["recipe"]}
    for kind, registry in KINDS.items():
        found[kind] = [f"{kind}/{n}" if n in taken else n for n in registry.names()]
        taken.update(registry.names())
    return found


def recipe_schema() -> Schema:
    """The recipe with the schema of every pass and exporter, and the names that are known here."""
    plugins = {r.kind: {n: r.get(n) for n in r.names()} for r in (PASSES, EXPORTERS)}
    models = [Recipe, *(p for found in plugins.values() for p in found.values())]
    refs, made = models_json_schema([(m, "validation") for m in models])  # nested configs of one name are told apart
    defs = made["$defs"]
    whole = defs.pop(Recipe.__name__)
    for field, registry in (("passes", PASSES), ("exports", EXPORTERS)):
        entries = {n: _entry(p, refs[p, "validation"]) for n, p in plugins[registry.kind].items()}
        whole["properties"][field]["items"] = _one_of(entries, registry)
        whole["properties"][field]["type"] = ["array", "null"]  # a list whose entries are all commented out
    whole["properties"]["target"]["enum"] = list(TARGETS)
    defs["SourceConfig"]["properties"]["kind"]["enum"] = SOURCES.names()
    for field in ("runners", "source_runners"):
        defs["BenchmarkConfig"]["properties"][field]["items"]["pattern"] = runner_pattern()
    return {"$schema": DIALECT, **whole, "$defs": defs}


def _one_of(entries: Schema, registry: Registry) -> Schema:
    """An object with exactly one key, the name of a plugin."""
    about = {"description": f"One {registry.kind} and its settings.", "type": "object"}
    return about | {"properties": entries, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}


def _entry(plugin: Any, ref: Schema) -> Schema:
    """The plugin's own schema, or null where it needs no settings."""
    about = {"description": (plugin.__doc__ or "").strip()}
    return about | ({"anyOf": [ref, {"type": "null"}]} if _takes_nothing(plugin) else ref)


def _takes_nothing(plugin: Any) -> bool:
    try:
        plugin.model_validate({})
    except ValidationError:
        return False
    return True


def runner_pattern() -> str:
    """Regular expression of `name[:precision][@device]` for every runner, with what each takes."""
    return f"^({'|'.join(_spec(n) for n in RUNNERS.names())})$"


def _spec(name: str) -> str:
    options = TypeAdapter(RUNNERS.get(name)).json_schema().get("properties", {})
    parts = ((sign, options[field]) for sign, field in ((":", "precision"), ("@", "device")) if field in options)
    return re.escape(name) + "".join(f"({sign}({'|'.join(_values(about))}))?" for sign, about in parts)


def _values(about: Schema) -> Iterator[str]:
    """The values of an option as regular expressions."""
    known = about.get("enum", [about["const"]] if "const" in about else None)
    yield from (re.escape(str(v)) for v in known) if known is not None else ("[^:@]+",)
