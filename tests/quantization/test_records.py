"""A record of quantizers that is none is one error, before modelopt sees it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimize.errors import ArtifactError
from optimize.passes.quantize import Quantize

CODES: dict[str, Any] = {"bits": 8, "axis": 0, "shape": [4, 1]}


def record(**row: Any) -> dict[str, Any]:
    return {
        "quantizers": [{"module": "0", "weight": CODES, "input": CODES | {"axis": None}} | row],
        "kept_dtype": "fp16",
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"quantizers": []}, "kept_dtype is missing"),
        ({"quantizers": {}, "kept_dtype": "fp16"}, "quantizers: .*list"),
        ({"quantizers": [], "kept_dtype": "fp17"}, "kept_dtype: .*fp17"),
        (record(module=3), r"quantizers\.0\.module"),
        (record(weight=None), r"quantizers\.0\.weight"),
        (record(weight=CODES | {"bits": 99}), "bits"),
        (record(weight=CODES | {"shape": [2**40]}), "less than 2147483648"),
        (record(input=[]), r"quantizers\.0\.input"),
    ],
)
def test_a_record_that_is_none_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ArtifactError, match=says) as caught:
        Quantize.restore(torch.nn.Sequential(torch.nn.Linear(4, 4)), given)
    assert str(caught.value).startswith("structure.json: a record of quantizers")
