"""JSON and YAML spoiled value by value: every way that a text may be wrong, at a place of a valid one.

`spoiled` gives them in a seeded order. A spoiled value is written as raw text, so that it may be what no JSON writer
gives: a number of 400 digits, a key twice, 3,000 lists inside one another.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

Place = tuple[str | int, ...]
FEW = 2  # items of a list that are spoiled


class Raw(str):
    """Text that stands in a document as it is."""


class Twice(Raw):
    """Text of a second value under the same key, behind the first."""


class Gone:
    """A value that is left out."""


@dataclass(frozen=True)
class Document:
    """A valid value. `typed` says whether a value of another type must be refused at a place; elsewhere it may be."""

    value: Any
    yaml: bool = False
    typed: Callable[[Place], bool] = field(default=lambda place: True)


@dataclass(frozen=True)
class Spoiled:
    """A text, what was done to it, and whether nothing may accept it."""

    name: str
    text: str
    refused: bool


def number_in_its_place(old: Any) -> str | None:
    """A number for a text or a container."""
    return "7" if isinstance(old, str | dict | list) else None


def text_in_its_place(old: Any) -> str | None:
    """A text for anything else."""
    return None if isinstance(old, str) or old is None else '"seven"'


def object_in_its_place(old: Any) -> str | None:
    """An object for anything else."""
    return None if isinstance(old, dict) or old is None else '{"a": 1}'


def list_in_its_place(old: Any) -> str | None:
    """A list of what no field is a list of, for anything."""
    return None if old is None else '[{"a": [1]}]'


NEVER: dict[str, str] = {  # no document may hold these
    "not a number": "NaN",
    "infinite": "Infinity",
    "overflow": "-1e999",
    "400 digits": "9" * 400,
    "5000 digits": "-" + "8" * 5000,
    "nested": "[" * 3000 + "]" * 3000,
    "nested objects": '{"a":' * 3000 + "1" + "}" * 3000,
    "NUL": '"a\\u0000b"',
}
TYPED: dict[str, Callable[[Any], str | None]] = {  # refused where the type of a value matters
    "number": number_in_its_place,
    "text": text_in_its_place,
    "object": object_in_its_place,
    "list": list_in_its_place,
}
PERHAPS: dict[str, str] = {  # right at some places; what takes them must do without a traceback
    "null": "null",
    "true": "true",
    "negative": "-1",
    "zero": "0",
    "fraction": "0.37",
    "63 bits": str(2**63),
    "tiny": "1e-320",
    "empty": '""',
    "empty list": "[]",
    "empty object": "{}",
    "long": '"' + "y" * 300_000 + '"',
    "surrogate": '"\\ud800"',
    "upwards": '"../../../../etc/passwd"',
    "markup": '"[red]{0} %s [/nonsense]\\u001b[31m"',
}
DATES = {"date": "2025-01-01", "time": "2025-01-01 12:30:00", "clock": "12:30:45"}  # YAML 1.1 makes objects of them
YAML = {"NaN": ".nan", "Infinity": ".inf", "-1e999": "-.inf"}


def spoiled(document: Document, seed: str) -> Iterator[Spoiled]:
    """Every way to spoil a document, each kind in its turn, places in a seeded order."""
    shuffled = random.Random(seed)
    kinds = [*NEVER, *TYPED, *PERHAPS, "gone", "twice", *(DATES if document.yaml else ())]
    ways = [_at_places(document, kind, shuffled) for kind in kinds]
    yield from (found for found in chain.from_iterable(zip_longest(*ways)) if found is not None)


def _at_places(document: Document, kind: str, shuffled: random.Random) -> list[Spoiled]:
    found = [(place, old) for place, old in places(document.value) if place]
    shuffled.shuffle(found)
    made = ((place, _put(document, kind, place, old)) for place, old in found)
    return [
        Spoiled(f"{dotted(place)}: {kind}", written(replaced(document.value, place, new)), refused)
        for place, (new, refused) in made
        if new is not None
    ]


def _put(document: Document, kind: str, place: Place, old: Any) -> tuple[Any, bool]:
    """What stands in a value's place, None where the kind does not fit it; whether nothing may take it."""
    if kind == "gone":
        return Gone(), False
    if kind == "twice":
        return (Twice("null"), True) if isinstance(place[-1], str) else (None, False)
    if kind in TYPED:
        text = TYPED[kind](old)
        return (None if text is None else Raw(text)), document.typed(place)
    text = (NEVER | PERHAPS | DATES)[kind]
    if kind in PERHAPS and json.dumps(old) == text:
        return None, False
    return Raw(YAML.get(text, text) if document.yaml else text), kind in NEVER


def places(value: Any, above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every place in a value with what stands there; of a list the first items alone."""
    yield above, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*above, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:FEW]):
            yield from places(inner, (*above, i))


def replaced(value: Any, place: Place, new: Any) -> Any:
    """The same value with another at a place."""
    if not place:
        return new
    head, *rest = place
    inner = replaced(value[head], tuple(rest), new)
    if isinstance(inner, Twice) and not rest:
        inner = Raw(f"{written(value[head])}, {json.dumps(head)}: {inner}")
    if isinstance(value, dict):
        return {k: inner if k == head else v for k, v in value.items() if k != head or not isinstance(inner, Gone)}
    return [inner if i == head else v for i, v in enumerate(value) if i != head or not isinstance(inner, Gone)]


def written(value: Any) -> str:
    """JSON text, raw parts as they are; YAML's flow style is the same."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(written, value)) + "]"
    return json.dumps(value)


def dotted(place: Place) -> str:
    """A place in words."""
    return ".".join(map(str, place))


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
)
TEXTS = {  # whole YAML texts that are nothing
    "anchors that unfold": BOMB + "name: *a8\n",
    "merge keys that unfold": BOMB.replace("[x, x", "[{y: 1}, x") + "<<: *a8\n",
    "an anchor inside itself": "name: &a [*a]\n",
    "a tag of Python": 'name: !!python/object/apply:os.system ["true"]\n',
    "a tag": "name: !include /etc/passwd\n",
    "a tab": "name: x\n\tsource: {}\n",
    "two documents": "name: a\n---\nname: b\n",
    "a list": "- name: a\n",
    "a word": "recipe\n",
    "nested without end": "a: " + "{a: " * 5000 + "1" + "}" * 5000 + "\n",
    "lists without end": "[" * 20000,
    "dashes without end": "- " * 20000 + "1\n",
    "a key that is no text": "? [a, b]\n: 1\n",
    "a key that is a date": "2025-01-01: 1\n",
    "an anchor that is not there": "name: *gone\n",
    "binary": "name: !!binary aGVsbG8=\n",
    "a key of 300,000 letters": "k" * 300_000 + ": 1\n",
    "many keys": "".join(f"key{i}: 1\n" for i in range(30_000)),
    "control characters": "name: a\x01b\n",
    "nothing": "",
    "a comment": "# recipe\n",
}
