"""Strict, frozen configuration base: unknown keys are errors, numbers are finite, values never change after validation.
Torch-free."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from optimize.errors import NAMES, cut, did_you_mean, shown

MOST_AT_ONCE, MOST, LAST = 4096, 100_000_000, 2**63 - 1
DEEPEST = 40  # values inside one another
AtOnce = Annotated[int, Field(ge=1, le=MOST_AT_ONCE)]  # samples in one call, threads, processes
Count = Annotated[int, Field(ge=1, le=MOST)]  # steps, images, rounds
Seed = Annotated[int, Field(ge=0, le=LAST)]
DESCRIBED = ConfigDict(extra="forbid", use_attribute_docstrings=True)  # for dataclasses that `optimize schema` shows


class Config(BaseModel):
    """Frozen pydantic model that refuses unknown keys; its JSON form is canonical and hashable.

    The text under a field says its meaning, unit and range; `optimize schema` and editors show it.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=(), allow_inf_nan=False, **DESCRIBED)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, about: ValidationInfo) -> Any:
        """Nothing odd (see `odd`), and no true or false where a number is meant."""
        field = cls.model_fields[about.field_name or ""]
        given = value if isinstance(value, list | tuple) else (value,)
        if any(isinstance(v, bool) for v in given) and not _takes_bool(field.annotation):
            raise ValueError("true and false are no numbers")
        if not _holds_config(field.annotation) and (wrong := odd(value)):
            raise ValueError(wrong)
        return value

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


def _holds_config(annotation: Any) -> bool:
    """Whether configs are among the values that an annotation means; they check themselves."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(_holds_config(a) for a in get_args(annotation))


def _takes_bool(annotation: Any) -> bool:
    """Whether true and false are among the values that an annotation means."""
    if annotation in (bool, Any, object):
        return True
    return any(isinstance(a, bool) or _takes_bool(a) for a in get_args(annotation))


def odd(value: Any, depth: int = 0) -> str:
    """What no field may hold, at any depth, in words: numbers that are not finite or of more than 64 bits, text with a
    NUL, nesting without end; empty where there is none."""
    if isinstance(value, str):
        return "Text holds no NUL" if "\0" in value else ""
    if isinstance(value, float):
        return "" if math.isfinite(value) else "Input should be a finite number"
    if isinstance(value, int):
        return "" if -LAST - 1 <= value <= 2 * LAST + 1 else "Input should be a number of at most 64 bits"
    if depth > DEEPEST:
        return f"Input should be nested at most {DEEPEST} deep"
    inner: Iterable[Any] = (
        value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    )
    return next((wrong for v in inner if (wrong := odd(v, depth + 1))), "")


def described(error: Any, model: Any = None, within: str = "") -> list[str]:
    """The problems of a pydantic ValidationError, the first of them and how many more there are."""
    errors = error.errors()
    more = [f"and {len(errors) - NAMES} more"] if len(errors) > NAMES else []
    return [*(describe(e, model, within) for e in errors[:NAMES]), *more]


def describe(error: Any, model: Any = None, within: str = "") -> str:
    """One pydantic error in our words: path (below `within`), value given, what is allowed, nearest name for unknown keys."""
    place = cut(".".join(filter(None, [within, *map(str, error["loc"])]))) or "recipe"
    if error["type"] == "extra_forbidden":
        allowed = _fields_at(model, error["loc"][:-1])
        return f"{place}: unknown key. Allowed: {', '.join(allowed)}.{did_you_mean(str(error['loc'][-1]), allowed)}"
    if error["type"] == "missing":
        return f"{place}: missing, and it has no default."
    return f"{place}: given {shown(error['input'])}. {cut(error['msg'].removeprefix('Value error, '), 400)}."


def _fields_at(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """Field names of the config at `loc` inside `model`, as far as annotations lead."""
    for part in loc:
        field = getattr(model, "model_fields", {}).get(part)
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((o for o in options if hasattr(o, "model_fields")), model)
    return sorted(getattr(model, "model_fields", {}))
