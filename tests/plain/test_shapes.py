"""The shapes of this project's JSON files: what is of another kind is named, what is unknown is let through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from optimize.errors import ArtifactError
from optimize.plain.shapes import Manifest, Measured, Sampling, Summary, as_shaped, misshapen

SAMPLING: dict[str, Any] = {
    "sampler": {"solver": "ddim", "steps": 2, "guidance": {"cfg": None}},
    "schedule": {},
    "parameterization": {"prediction": "epsilon"},
    "conditioning": {"kind": "class", "classes": 3, "null": None},
    "shape": [1, 8, 8],
    "limit": 1,
    "nfe": 2,
    "steps": [{"t": 1, "alpha": 0.5, "sigma": 0.5}],
    "more": "of a later version",
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, ""),
        ({"shape": [1, 0, 8]}, "shape.1"),
        ({"shape": "x"}, "shape"),
        ({"sampler": []}, "sampler"),
        ({"conditioning": {"kind": 3}}, "conditioning.kind"),
        ({"conditioning": {"kind": "class", "classes": -1}}, "conditioning.classes"),
        ({"steps": [{"t": 1}]}, "steps.0.alpha is missing"),
        ({"limit": "x"}, "limit"),
        ({"nfe": True}, "nfe"),
    ],
)
def test_a_sampler_of_another_shape_is_named(change: dict[str, Any], says: str) -> None:
    found = misshapen(SAMPLING | change, Sampling)
    assert found.startswith(says) and bool(found) == bool(says)


@pytest.mark.parametrize(
    ("shape", "value", "says"),
    [
        (Manifest, {"passes": [{"config": {}}]}, "passes.0.name is missing"),
        (Manifest, {"parity": {"torch": 3}}, "parity.torch"),
        (Summary, {}, "rows is missing"),
        (Summary, {"rows": [{"batch": "x"}]}, "rows.0.batch"),
        (Summary, {"rows": [], "gates": []}, "gates"),
        (Measured, {"variant": {}, "call_s": [[0.1, -1.0]]}, "call_s.0.1"),
        (Measured, {"variant": {}}, "the file: Value error, it is done, and nothing was timed"),
        (Measured, {"variant": {}, "status": "odd"}, "status"),
    ],
)
def test_other_files_of_another_shape_are_named(shape: Any, value: Any, says: str) -> None:
    assert misshapen(value, shape).startswith(says)


def test_what_a_reader_meets_after_all_is_one_error(tmp_path: Path) -> None:
    said = r"summary.json: a value in it is not of the kind .* \(KeyError: 'rows'\)"
    with pytest.raises(ArtifactError, match=said), as_shaped(tmp_path / "summary.json"):
        {}["rows"]
