"""As much of JSON schema as the project's own schemas use; an unknown keyword is an error, so nothing passes unread."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}
WORDS = {"$schema", "$defs", "title", "description", "default", "format"}  # that say nothing of what is allowed
CHECKS = {
    "enum": lambda v, limit: v in limit,
    "const": lambda v, limit: v == limit,
    "minimum": lambda v, limit: not _number(v) or v >= limit,
    "maximum": lambda v, limit: not _number(v) or v <= limit,
    "exclusiveMinimum": lambda v, limit: not _number(v) or v > limit,
    "exclusiveMaximum": lambda v, limit: not _number(v) or v < limit,
    "pattern": lambda v, limit: not isinstance(v, str) or re.search(limit, v) is not None,
    "minLength": lambda v, limit: not isinstance(v, str) or len(v) >= limit,
    "minItems": lambda v, limit: not isinstance(v, list) or len(v) >= limit,
    "maxItems": lambda v, limit: not isinstance(v, list) or len(v) <= limit,
    "minProperties": lambda v, limit: not isinstance(v, dict) or len(v) >= limit,
    "maxProperties": lambda v, limit: not isinstance(v, dict) or len(v) <= limit,
    "required": lambda v, limit: not isinstance(v, dict) or all(k in v for k in limit),
    "type": lambda v, limit: any(_is(v, t) for t in (limit if isinstance(limit, list) else [limit])),
}
PARTS = {"$ref", "anyOf", "properties", "additionalProperties", "items", "prefixItems"}


def _is(value: Any, name: str) -> bool:
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def problems(value: Any, schema: Any, whole: dict[str, Any], place: str = "recipe") -> list[str]:
    """What a schema has against a value: `place: keyword`; `whole` holds the definitions."""
    if isinstance(schema, bool):
        return [] if schema else [f"{place}: not allowed"]
    unread = set(schema) - WORDS - PARTS - set(CHECKS)
    assert not unread, f"{place}: this check does not know {unread}"
    found = [f"{place}: {word}" for word, holds in CHECKS.items() if word in schema and not holds(value, schema[word])]
    if "$ref" in schema:
        found += problems(value, whole["$defs"][schema["$ref"].rsplit("/", 1)[1]], whole, place)
    if "anyOf" in schema:
        tried = [problems(value, s, whole, place) for s in schema["anyOf"]]
        found += [] if any(not t for t in tried) else min(tried, key=len)
    return found + [p for part in _parts(value, schema, place) for p in problems(part[0], part[1], whole, part[2])]


def _parts(value: Any, schema: dict[str, Any], place: str) -> Iterator[tuple[Any, Any, str]]:
    """(value, schema, place) of every property and item."""
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from ((v, known.get(k, others), f"{place}.{k}") for k, v in value.items())
    elif isinstance(value, list):
        first = schema.get("prefixItems", [])
        each = [*first, *[schema.get("items", True)] * (len(value) - len(first))]
        yield from ((v, s, f"{place}[{i}]") for i, (v, s) in enumerate(zip(value, each)))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def undescribed(schema: dict[str, Any]) -> list[str]:
    """Fields of a schema, at any depth, that do not say what they mean: `Class.field`."""
    parts = {schema.get("title", "?"): schema, **schema.get("$defs", {})}
    return [f"{title}.{path}" for title, part in parts.items() for path, about in _fields(part) if not about]


def _fields(part: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, description) of every property in a schema, without its definitions."""
    if isinstance(part, list):
        for each in part:
            yield from _fields(each, path)
    elif isinstance(part, dict):
        for name, about in part.get("properties", {}).items():
            yield f"{path}{name}", str(about.get("description", "")).strip()
            yield from _fields(about, f"{path}{name}.")
        yield from (f for k in ("anyOf", "items", "prefixItems") for f in _fields(part.get(k), path))
