"""A record of shapes that is none, or of another network, is one error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimize.errors import ArtifactError
from optimize.pruning.reshape import apply


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shapes": {}}, "attributes is missing"),
        ({"shapes": {"weight": 3}, "attributes": {}}, r"shapes\.weight: .*found 3"),
        ({"shapes": {"weight": [3, None]}, "attributes": {}}, r"shapes\.weight\.1: .*found None"),
        ({"shapes": {"weight": [2**63, 1]}, "attributes": {}}, "less than 2147483648"),
        ({"shapes": {"weight": [0, 1]}, "attributes": {}}, "greater than or equal to 1"),
        ({"shapes": {}, "attributes": {"": True}}, "attributes"),
        ({"shapes": {}, "attributes": {"": {"in_features": "4"}}}, "in_features"),
        ({"shapes": {"other": [1]}, "attributes": {}}, "other with shape .* does not belong to this network"),
        ({"shapes": {}, "attributes": {"": {"bias": 1}}}, "is no size of this network"),
    ],
)
def test_a_record_that_is_none_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ArtifactError, match=says) as caught:
        apply(torch.nn.Linear(4, 4), change)
    assert str(caught.value).startswith("structure.json: ")


def test_a_record_gives_shapes_and_sizes() -> None:
    made = apply(torch.nn.Linear(4, 4), {"shapes": {"weight": [2, 4]}, "attributes": {"": {"out_features": 2}}})
    assert (tuple(made.weight.shape), made.out_features) == ((2, 4), 2)
