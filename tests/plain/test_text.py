"""JSON and YAML out of files that may hold anything."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from optimize.errors import LONGEST, ArtifactError, UserError
from optimize.plain.text import LARGEST_YAML, MOST_NODES, parse_json, parse_yaml, read_json, read_text, yaml_text

LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: no", "no"),
        ("a: 1:30", "1:30"),
        ("a: 2025-06-30", "2025-06-30"),
        ("a: 010", 10),
        ("a: 0x1F", 31),
        ("a: 1e-4", 1e-4),
        ("a: +.5", 0.5),
        ("a: -3", -3),
        ("a: true", True),
        ("a: ~", None),
        ("a:", None),
        ("a: !!str 5", "5"),
        ("a: '5'", "5"),
        ("b: &b {c: 1}\na: {<<: *b, d: 2}", {"c": 1, "d": 2}),
        ("o: {b: &b {<<: &c {x: 1, y: 2}, x: 3}}\na: {<<: *b}", {"x": 3, "y": 2}),
    ],
)
def test_yaml_means_what_its_core_schema_says(text: str, value: object) -> None:
    found = parse_yaml(text, "recipe")["a"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", '"a" stands there twice'),
        ("b: {c: 1, c: 2}", '"c" stands there twice'),
        ("a: {<<: {b: 1}, <<: {c: 1}}", '"<<" stands there twice'),
        ("a: [1, {b: .inf}]", r"a\[1\].b: given inf. A finite number is needed"),
        ("a: -.inf", "given -inf"),
        ("a: .nan", "given nan"),
        ("a: 1e400", "given inf"),
        ("a: " + "9" * 400, "at most 64 bits"),
        ("a: " + "9" * 5000, "too large a number"),
        ("a: " + "[" * 5000, "nested more than 40 deep"),
        ("- " * 5000, "nested more than 40 deep"),
        ("a: &a [*a]", "stands inside what it names"),
        (LAUGHS, f"more than {MOST_NODES} values, aliases unfolded"),
        ("a: !!python/name:os.system x", "tags are not read"),
        ("a: !!timestamp 2020-01-01", "tags are not read"),
        ("1: x", "the key 1 is no text; write it in quotes"),
        ("? [a]\n: b", "a key that is no text"),
        ("a\x00: 1", "special characters are not allowed"),
        ("--- 1\n--- 2", "expected a single document"),
        ("a: [", "not valid YAML"),
        ("a" * (LARGEST_YAML + 1), f"at most {LARGEST_YAML} are read"),
    ],
    ids=lambda value: value[:30],
)
def test_what_yaml_may_not_hold_is_one_short_message(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        parse_yaml(text, "recipe")
    assert len(str(caught.value).encode()) <= LONGEST


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', '"a" stands there twice'),
        ('{"a": [NaN]}', r"a\[0\]: given nan. A finite number is needed"),
        ('{"a": Infinity}', "given inf"),
        ('{"lambda_min_clipped": NaN}', "given nan"),
        ('{"a": 1e999}', "given inf"),
        ('{"a": ' + "9" * 400 + "}", "at most 64 bits"),
        ('{"a": ' + "9" * 5000 + "}", "not readable JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested more than 40 deep"),
        ("[1]", r"an object is expected here, found a list: \[1\]"),
        ("null", "an object is expected here, found null"),
        ('{"a": ["x\\u0000y"]}', r"a\[0\]: given .*A text holds no NUL"),
        ("", "not readable JSON"),
        (b"\xff\xfe", "not readable JSON"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_json_may_not_hold_is_one_short_message(text: str | bytes, says: str) -> None:
    with pytest.raises(ArtifactError, match=says) as caught:
        parse_json(text, "x.json")
    assert len(str(caught.value).encode()) <= LONGEST


def test_the_infinity_that_diffusers_writes_is_read() -> None:
    found = parse_json('{"lambda_min_clipped": -Infinity, "b": 1}', "scheduler_config.json")
    assert found["lambda_min_clipped"] == -math.inf


def test_only_an_ordinary_file_of_bounded_size_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "large.txt").write_text("x" * 11)
    for place, says in (("pipe.json", "not an ordinary file"), (".", "a folder"), ("none.json", "no such file")):
        with pytest.raises(ArtifactError, match=says):
            read_json(tmp_path / place)
    with pytest.raises(UserError, match="11 bytes; at most 10 are read"):
        read_text(tmp_path / "large.txt", 10, UserError, "text")
    with pytest.raises(ArtifactError, match="not readable JSON"):
        read_json(tmp_path / ("9" * 300))


def test_a_file_of_ours_has_the_shape_its_readers_count_on(tmp_path: Path) -> None:
    (tmp_path / "structure.json").write_text(json.dumps({"architecture": "A", "config": [], "edits": []}))
    with pytest.raises(ArtifactError, match=r"structure.json: config: .*dictionary.*, found \[\]"):
        read_json(tmp_path / "structure.json")
    (tmp_path / "structure.json").write_text('{"architecture": "A", "config": {}}')
    with pytest.raises(ArtifactError, match="edits is missing"):
        read_json(tmp_path / "structure.json")


def test_text_that_yaml_would_read_as_a_number_comes_back_as_text() -> None:
    value = {
        "a": "1e-4",
        "b": "no",
        "c": "010",
        "d": ["0o7", "2020-01-01", "~", ".inf"],
        "e": 1e-4,
        "f": True,
        "g": None,
    }
    assert parse_yaml(yaml_text(value), "again") == value
