"""Strict, frozen configuration base: unknown keys are errors, values never change after validation. Torch-free."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from optimize.errors import did_you_mean

DESCRIBED = ConfigDict(extra="forbid", use_attribute_docstrings=True)  # for dataclasses that `optimize schema` shows


class Config(BaseModel):
    """Frozen pydantic model that refuses unknown keys; its JSON form is canonical and hashable.

    The text under a field says its meaning, unit and range; `optimize schema` and editors show it.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=(), **DESCRIBED)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the form written to disk and hashed."""
        return self.model_dump(mode="json")

    def moved(self, move: Callable[[Path], Path]) -> Self:
        """The same with every path in it, at any depth, put through `move`."""
        fields = {f: getattr(self, f) for f in type(self).model_fields}
        changed = {f: after for f, before in fields.items() if (after := _moved(before, move)) != before}
        return self.model_copy(update=changed) if changed else self


def _moved(value: Any, move: Callable[[Path], Path]) -> Any:
    if isinstance(value, Path):
        return move(value)
    if isinstance(value, Config):
        return value.moved(move)
    if isinstance(value, dict):
        return {k: _moved(v, move) for k, v in value.items()}
    return type(value)(_moved(v, move) for v in value) if isinstance(value, tuple | list) else value


def canonical(value: Any) -> str:
    """JSON text with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def describe(error: Any, model: Any = None, within: str = "") -> str:
    """One pydantic error in our words: path (below `within`), value given, what is allowed, nearest name for unknown keys."""
    place = ".".join(filter(None, [within, *map(str, error["loc"])])) or "recipe"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, error["loc"][:-1])
        return f"{place}: unknown key. Allowed: {', '.join(allowed)}.{did_you_mean(str(error['loc'][-1]), allowed)}"
    if error["type"] == "missing":
        return f"{place}: missing, and it has no default."
    return f"{place}: given {error['input']!r}. {error['msg'].removeprefix('Value error, ')}."


def _fields_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """Field names of the config at `loc` inside `model`, as far as annotations lead."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((o for o in options if hasattr(o, "model_fields")), model)
    return sorted(getattr(model, "model_fields", {}))
