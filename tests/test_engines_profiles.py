"""Profiles planned from the sizes in use."""

from __future__ import annotations

import pytest

from optimize.engines.profiles import defaults, plan_profiles
from optimize.errors import UserError
from optimize.network import TensorSpec

INPUTS = (
    TensorSpec("sample", ("B", 4, "H", "W")),
    TensorSpec("timestep", ("B",)),
    TensorSpec("text", ("B", "L", 768)),
    TensorSpec("fixed", (1, 2)),
)
SIZES = {"B": (1, 8, 2), "H": (64, 96), "W": (64,), "L": (77,)}


def test_an_engine_takes_all_between_and_is_tuned_for_the_largest() -> None:
    (profile,) = plan_profiles(INPUTS, SIZES)
    assert profile["sample"] == [[1, 4, 64, 64], [8, 4, 96, 64], [8, 4, 96, 64]]
    assert profile["text"] == [[1, 77, 768], [8, 77, 768], [8, 77, 768]]
    assert set(profile) == {"sample", "timestep", "text"}


def test_exact_adds_a_profile_for_every_combination() -> None:
    profiles = plan_profiles(INPUTS, SIZES, exact=True)
    assert [p["sample"][0] for p in profiles[1:]] == [[b, 4, h, 64] for b in (1, 2, 8) for h in (64, 96)]
    assert all(p["sample"][0] == p["sample"][2] for p in profiles[1:])


def test_a_network_without_symbols_needs_no_profile() -> None:
    assert plan_profiles((TensorSpec("x", (1, 2)),), {}) == []


@pytest.mark.parametrize(
    ("sizes", "exact", "said"),
    [
        ({"B": (1,)}, False, "no sizes for H, W, L; the network's symbolic dimensions are B, H, W, L"),
        (SIZES | {"K": (1,)}, False, "K is no symbolic dimension of the network. It has: B, H, W, L"),
        (SIZES | {"H": (0, 64)}, False, r"whole numbers from 1 on, given \{'H': \[0, 64\]\}"),
        (SIZES | {"B": tuple(range(1, 9))}, True, "16 combinations of sizes is too many; 7 at most"),
    ],
)
def test_what_cannot_be_planned_says_what_to_give(sizes: dict[str, tuple[int, ...]], exact: bool, said: str) -> None:
    with pytest.raises(UserError, match=said):
        plan_profiles(INPUTS, sizes, exact)


def test_sizes_not_given_are_the_models_own() -> None:
    assert defaults(INPUTS, (1, 4), (4, 64, 64)) == {"B": (1, 4), "H": (64,), "W": (64,)}


def test_a_part_of_a_symbol_follows_it() -> None:
    inputs = (TensorSpec("sample", ("B", 4, "H", "W")), TensorSpec("control", ("B", 8, "H/2", "W/2")))
    (profile,) = plan_profiles(inputs, {"B": (1,), "H": (64, 96), "W": (64,)})
    assert profile["control"] == [[1, 8, 32, 32], [1, 8, 48, 32], [1, 8, 48, 32]]
