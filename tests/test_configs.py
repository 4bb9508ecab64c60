"""What no field of any config may hold, in Python as in YAML."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field, ValidationError

from optimize.configs import MOST_AT_ONCE, Config, described
from optimize.diffusion.sampling import Guidance
from optimize.errors import LONGEST
from optimize.recipes.schema import BenchmarkConfig, Recipe, SourceConfig, Targets


class Small(Config):
    """A config."""

    number: float = 1.0
    whole: int = 1
    several: tuple[int, ...] = ()
    switch: bool = False
    either: bool | int = 1
    text: str = ""
    anything: dict[str, Any] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("number", float("inf"), "finite"),
        ("number", float("nan"), "finite"),
        ("number", "inf", "finite"),
        ("number", True, "true and false are no numbers"),
        ("whole", True, "true and false are no numbers"),
        ("whole", 10**400, "64 bits"),
        ("several", [1, True], "true and false are no numbers"),
        ("anything", {"a": [{"b": float("inf")}]}, "finite"),
        ("anything", {"a": 10**30}, "64 bits"),
        ("text", "a\0b", "NUL"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_odd_values_are_refused_in_every_field(field: str, value: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Small(**{field: value})


def test_true_and_false_stay_where_they_are_meant() -> None:
    made = Small(switch=True, either=False, anything={"a": True})
    assert made.switch is True and made.either is False and made.anything == {"a": True}


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (BenchmarkConfig, {"batch": [MOST_AT_ONCE + 1]}),
        (BenchmarkConfig, {"batch": [0]}),
        (BenchmarkConfig, {"batch": [4, 4]}),
        (BenchmarkConfig, {"seconds": 1e9}),
        (BenchmarkConfig, {"threads": 0}),
        (Guidance, {"cfg": float("inf")}),
        (Targets, {"size_ratio": -1}),
        (Targets, {"speedup_vs_fair": 0}),
        (SourceConfig, {"path": "m", "null_class": -1}),
        (SourceConfig, {"path": "m", "classes": 0}),
    ],
)
def test_absurd_settings_are_refused(config: type[Config], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(**fields)


def test_of_many_problems_ten_are_told() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({f"x{i}" * 100: i for i in range(1000)})
    told = described(caught.value, Recipe)
    assert len(told) == 11 and told[-1].startswith("and ")
    assert all(len(line) < LONGEST for line in told)
