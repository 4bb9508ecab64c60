"""Plain data out of files that may hold anything: JSON and YAML, read with limits, every key once, every number finite.

A file is an ordinary one and of bounded size; values of bounded depth and number, aliases of YAML counted as what they
unfold to. YAML is read by its core schema of 1.2: `no` and `1:30` are words, 010 is ten, a date is text.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from optimize.errors import ArtifactError, OptimizeError, UserError, cut, shown
from optimize.plain.shapes import SHAPES, Shape, refuse_misshapen

LARGEST = 64 * 2**20  # bytes of a JSON file
LARGEST_YAML = 2**20  # bytes of a YAML file
MOST_NODES = 20_000  # values in a YAML file, with what its aliases unfold to
DEEPEST = 40  # values inside one another
WHOLE = 2**64  # whole numbers lie below it
STRING, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
ANYTHING = ("result.json",)  # a stage's result
INFINITE = {"lambda_min_clipped": -math.inf}  # what diffusers writes into scheduler configs


def read_json(path: Path, kind: type | None = None, shape: type[Shape] | None = None) -> Any:
    """The value in a JSON file, which is of this kind (an object where none is said), and of this shape, or of its file's
    (see `plain/shapes.py`); ArtifactError where the file is missing or anything else."""
    kind = kind or (object if path.name in ANYTHING else dict)
    value = parse_json(read_text(path, LARGEST, ArtifactError, "readable JSON"), f"{path}", kind)
    wanted = shape or SHAPES.get(path.name)
    if wanted is not None:
        refuse_misshapen(value, wanted, f"{path}")
    return value


def parse_json(text: str | bytes, where: str, kind: type = dict, error: type[OptimizeError] = ArtifactError) -> Any:
    """The value of JSON text; `error` where it is none, has a key twice, or holds numbers that are not finite."""
    try:
        value = json.loads(text, object_pairs_hook=once)
    except (ValueError, RecursionError) as wrong:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise error(f"{where}: not readable JSON ({_reason(wrong)}).") from None
    if problem := next(_not_plain(value), None):
        raise error(f"{where}: {problem}")
    if not isinstance(value, kind):
        raise error(f"{where}: {_article(kind)} is expected here, found {_article(type(value))}: {shown(value)}.")
    return value


def read_text(path: Path, most: int, error: type[OptimizeError], what: str) -> str:
    """The text of an ordinary file of at most `most` bytes, UTF-8."""
    try:
        about = path.stat()
        if stat.S_ISDIR(about.st_mode):
            raise error(f"{path}: a folder, not {what}.")
        if not stat.S_ISREG(about.st_mode):
            raise error(f"{path}: not an ordinary file; it is not read.")
        if about.st_size > most:
            raise error(f"{path}: {about.st_size} bytes; at most {most} are read here.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise error(f"{path}: no such file.") from None
    except (OSError, ValueError) as wrong:
        raise error(f"{path}: not {what} ({_reason(wrong)}).") from None


def parse_yaml(text: str, where: str) -> Any:
    """The value of YAML text; UserError where it is none, has a key twice, or is larger than any recipe."""
    if len(text) > LARGEST_YAML:
        raise UserError(f"{where}: {len(text)} characters; at most {LARGEST_YAML} are read.")
    try:
        value = yaml.load(text, Loader=_Core)
    except (yaml.YAMLError, ValueError, RecursionError) as wrong:
        raise UserError(f"{where}: not valid YAML: {_reason(wrong)}") from None
    if problem := next(_not_plain(value), None):
        raise UserError(f"{where}: {problem}")
    return value


def yaml_text(value: Any) -> str:
    """YAML of plain values; text that would be read as anything else is quoted."""
    return yaml.dump(value, Dumper=_Quoting, sort_keys=False, allow_unicode=True)


def _reason(wrong: BaseException) -> str:
    if isinstance(wrong, RecursionError):
        return "nested too deeply"
    if isinstance(wrong, OSError):
        return wrong.strerror or type(wrong).__name__
    return cut(str(wrong), 400)


def _article(kind: type) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(kind, "a number")


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; ValueError where a key is there twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f'"{cut(twice)}" stands there twice')
    return made


def _not_plain(value: Any, place: str = "", depth: int = 0) -> Iterator[str]:
    """Sentences about numbers that are not finite or of more than 64 bits, texts with a NUL, and nesting without end."""
    if depth > DEEPEST:
        yield f"{cut(place)}: nested more than {DEEPEST} deep."
    elif isinstance(value, str) and "\0" in value:
        yield f"{cut(place)}: given {shown(value, 40)}. A text holds no NUL."
    elif isinstance(value, dict):
        for key, inner in value.items():
            if not (isinstance(inner, float) and INFINITE.get(key) == inner):
                yield from _not_plain(inner, f"{place}.{key}" if place else str(key), depth + 1)
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _not_plain(inner, f"{place}[{i}]", depth + 1)
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{cut(place)}: given {value}. A finite number is needed."
    elif isinstance(value, int) and not -WHOLE < value < WHOLE:
        yield f"{cut(place)}: given {shown(value, 40)}. Whole numbers have at most 64 bits."


class _Core(yaml.SafeLoader):
    """Core schema of YAML 1.2, keys once, no tags, aliases counted as what they unfold to."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}  # type: ignore[misc]

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth, self._nodes = 0, 0
        self._sizes: dict[str, int] = {}  # of what an anchor stands for

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, counted; ComposerError where there are too many or they are nested too deeply."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self._count_alias(event)
            return super().compose_node(parent, index)
        if event.tag not in (None, "!", STRING):
            raise _problem(f"the tag {cut(str(event.tag), 60)}; tags are not read", event)
        self._depth, before = self._depth + 1, self._nodes
        self._count(1, event)
        if self._depth > DEEPEST:
            raise _problem(f"nested more than {DEEPEST} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping with text for keys, each once."""
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key that is no text", key)
            if key.tag not in (STRING, MERGE):
                raise _problem(f"the key {cut(key.value)} is no text; write it in quotes", key)
            if key.value in seen:
                raise _problem(f'"{cut(key.value)}" stands there twice', key)
            seen.add(key.value)
        return node

    def construct_whole(self, node: Any) -> int:
        """A whole number, decimal whatever it begins with, or 0x and 0o."""
        text = self.construct_scalar(node)
        try:
            return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
        except ValueError:  # more digits than Python turns into a number
            raise _problem(f"{cut(text, 40)} is too large a number", node) from None

    def _count_alias(self, event: Any) -> None:
        if event.anchor in self.anchors and event.anchor not in self._sizes:
            raise _problem(f"*{cut(event.anchor, 40)} stands inside what it names", event)
        self._count(self._sizes.get(event.anchor, 1), event)

    def _count(self, nodes: int, event: Any) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise _problem(f"more than {MOST_NODES} values, aliases unfolded", event)


class _Quoting(yaml.SafeDumper):
    """Quotes what YAML 1.1 or the core schema of 1.2 would read as something else than text."""


def _problem(said: str, node: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, said, node.start_mark)


for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):  # fmt: skip
    for _class in (_Core, _Quoting):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)
_Core.add_constructor("tag:yaml.org,2002:int", _Core.construct_whole)
