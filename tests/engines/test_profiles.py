"""Profiles planned from the sizes in use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.sampling import write_sampling

from optimize.diffusion.network import TensorSpec
from optimize.engines.graph import GraphFacts
from optimize.engines.place import profiles_for, told_sizes
from optimize.engines.profiles import defaults, plan_profiles
from optimize.engines.settings import EngineSettings
from optimize.errors import UserError

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


def test_sizes_not_given_are_the_models_own_and_those_of_what_it_is_told() -> None:
    told = {"L": (77,), "K": (3,), "H": (7,)}
    assert defaults(INPUTS, (1, 4), (4, 64, 64), {}) == {"B": (1, 4), "H": (64,), "W": (64,)}
    assert defaults(INPUTS, (1, 4), (4, 64, 64), told) == {"B": (1, 4), "H": (64,), "W": (64,), "L": (77,)}


def test_the_first_input_has_the_models_own_size_whatever_its_name() -> None:
    flux = (
        TensorSpec("hidden_states", ("B", "S", 64)),
        TensorSpec("timestep", ("B",)),
        TensorSpec("img_ids", ("S", 3)),
    )
    assert defaults(flux, (1,), (4096, 64), {}) == {"B": (1,), "S": (4096,)}


def test_what_is_told_has_the_size_of_the_artifacts_conditions_else_of_their_stand_ins(tmp_path: Path) -> None:
    assert told_sizes(tmp_path) == {}
    text = TensorSpec("text", ("B", "L", 8), sizes=(("L", 77),))
    control = TensorSpec("control", ("B", 4, "H/2", "K"), sizes=(("K", 5),))
    tensors = [text.to_json(), control.to_json()]
    write_sampling(tmp_path, conditioning={"kind": "tensors", "tensors": tensors})
    assert told_sizes(tmp_path) == {"L": (77,), "K": (5,)}
    save_file({"text": torch.zeros(3, 120, 8), "control": torch.zeros(3, 4, 2, 2)}, tmp_path / "conditions.safetensors")
    assert told_sizes(tmp_path) == {"L": (120,), "K": (2,)}
    facts = GraphFacts((TensorSpec("sample", ("B", 4, "H", "W")), text), 0, {}, 0, {})
    (profile,) = profiles_for(EngineSettings(batch=(1, 2)), facts, (4, 64, 64), tmp_path)
    assert profile["text"] == [[1, 120, 8], [2, 120, 8], [2, 120, 8]]
    (given,) = profiles_for(EngineSettings(batch=(1, 2), sizes={"L": (77, 231)}), facts, (4, 64, 64), tmp_path)
    assert given["text"] == [[1, 77, 8], [2, 231, 8], [2, 231, 8]]


def test_an_engine_can_be_tuned_for_less_than_the_largest() -> None:
    (profile,) = plan_profiles(INPUTS, SIZES, best={"B": 2})
    assert profile["sample"] == [[1, 4, 64, 64], [2, 4, 96, 64], [8, 4, 96, 64]]
    with pytest.raises(UserError, match=r"the best B is 9, outside 1 to 8\. Give one of the sizes in use"):
        plan_profiles(INPUTS, SIZES, best={"B": 9})
    facts = GraphFacts((TensorSpec("x", ("B", 3)), TensorSpec("fixed", (1, 2))), 0, {}, 0, {})
    (planned,) = profiles_for(EngineSettings(batch=(1, 50), best_batch=16), facts, ())
    assert planned == {"x": [[1, 3], [16, 3], [50, 3]]}
    fixed = GraphFacts((TensorSpec("x", (1, 3)),), 0, {}, 0, {})
    assert profiles_for(EngineSettings(batch=(1, 50), best_batch=16), fixed, ()) == []


def test_a_part_of_a_symbol_follows_it() -> None:
    inputs = (TensorSpec("sample", ("B", 4, "H", "W")), TensorSpec("control", ("B", 8, "H/2", "W/2")))
    (profile,) = plan_profiles(inputs, {"B": (1,), "H": (64, 96), "W": (64,)})
    assert profile["control"] == [[1, 8, 32, 32], [1, 8, 48, 32], [1, 8, 48, 32]]


def test_a_part_is_rounded_up_as_the_networks_own_inputs_are() -> None:
    spec = TensorSpec("control", ("B", 8, "H/2"))
    (profile,) = plan_profiles((TensorSpec("sample", ("B", "H")), spec), {"B": (1,), "H": (65,)})
    assert profile["control"][0] == list(spec.shape(1, H=65)) == [1, 8, 33]
