"""Feeds and unconditional branches of denoisers that are told tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from optimize.diffusion.denoiser import Conditioning, Denoiser, moved
from optimize.diffusion.network import TensorSpec
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import Guidance, Sampler, predict
from optimize.diffusion.schedule import Schedule, from_diffusers

TEXT, SIZES, IDS = (
    TensorSpec("text", ("B", "L", 2), sizes=(("L", 3),)),
    TensorSpec("sizes", ("B", 1), fill=(5.0,)),
    TensorSpec("ids", ("L", 1), sizes=(("L", 3),)),
)
ABOUT = Conditioning("tensors", tensors=(TEXT, SIZES, IDS), nulled=("text",))


class Echo:
    """raw = mean of the text, plus the sizes."""

    inputs = (TensorSpec("hidden", ("B", 1, 2, 2)), TensorSpec("time", ("B",)), TEXT, SIZES, IDS)

    def __init__(self) -> None:
        self.fed: list[dict[str, Tensor]] = []

    def __call__(self, **tensors: Tensor) -> Tensor:
        self.fed.append(tensors)
        level = tensors["text"].mean((1, 2)) + tensors["sizes"][:, 0]
        return level.view(-1, 1, 1, 1).expand(-1, 1, 2, 2)


@pytest.fixture
def denoiser() -> Denoiser:
    return Denoiser(Echo(), Parameterization("sample"), from_diffusers({}), ABOUT)


def condition(text: float = 1.0) -> dict[str, Tensor]:
    return {"text": torch.full((2, 3, 2), text), "sizes": torch.tensor([[5.0], [7.0]]), "ids": torch.zeros(3, 1)}


def test_the_first_two_inputs_are_the_latents_and_the_time(denoiser: Denoiser) -> None:
    feed = denoiser.feed(torch.zeros(2, 1, 2, 2), 7.0, condition())
    assert set(feed) == {"hidden", "time", "text", "sizes", "ids"}
    assert feed["time"].tolist() == [7.0, 7.0] and feed["hidden"].shape == (2, 1, 2, 2)


def test_a_missing_tensor_is_named(denoiser: Denoiser) -> None:
    with pytest.raises(ValueError, match="this denoiser is conditional: text, ids missing"):
        denoiser.feed(torch.zeros(2, 1, 2, 2), 0.0, {"sizes": torch.zeros(2, 1)})


def test_a_flow_time_is_scaled_to_what_the_network_was_trained_with(denoiser: Denoiser) -> None:
    scaled = replace(denoiser, parameterization=Parameterization("flow", "flow", 1000.0), schedule=Schedule("flow"))
    assert scaled.feed(torch.zeros(2, 1, 2, 2), 0.25, condition())["time"].tolist() == [250.0, 250.0]


def test_channels_behind_the_latents_are_a_condition_under_their_name(denoiser: Denoiser) -> None:
    behind = TensorSpec("hidden", ("B", 2, 2, 2))
    inpainting = replace(denoiser, conditioning=Conditioning("tensors", tensors=(behind,)))
    given = torch.arange(16.0).view(2, 2, 2, 2)
    feed = inpainting.feed(torch.full((2, 1, 2, 2), -1.0).double(), 0.0, {"hidden": given})
    assert torch.equal(feed["hidden"], torch.cat([torch.full((2, 1, 2, 2), -1.0), given], 1))


def test_the_unconditional_branch_has_zeros_or_the_given_null_in_place_of_the_text(denoiser: Denoiser) -> None:
    zeros = denoiser.unconditional(condition())
    assert not zeros["text"].any() and torch.equal(zeros["sizes"], condition()["sizes"])
    given = denoiser.unconditional({**condition(), "null.text": torch.full((1, 3, 2), 4.0)})
    assert torch.equal(given["text"], torch.full((2, 3, 2), 4.0))
    assert replace(denoiser, conditioning=replace(ABOUT, nulled=())).unconditional(condition()) is None


def test_guidance_of_both_branches_at_once_equals_two_calls_and_the_formula(denoiser: Denoiser) -> None:
    z, given = torch.zeros(2, 1, 2, 2).double(), {**condition(3.0), "null.text": torch.full((1, 3, 2), 1.0)}
    x, _ = predict(Sampler(guidance=Guidance(cfg=2.0)), denoiser, z, 10.0, given)
    apart, _ = predict(Sampler(guidance=Guidance(cfg=2.0, batched=False)), denoiser, z, 10.0, given)
    assert torch.equal(x, apart)
    assert x[:, 0, 0, 0].tolist() == [3 * (3 + 5) - 2 * (1 + 5), 3 * (3 + 7) - 2 * (1 + 7)]
    fed = denoiser.network.fed[0]  # type: ignore[attr-defined]
    assert fed["text"].shape == (4, 3, 2) and fed["ids"].shape == (3, 1) and "null.text" not in fed


def test_guidance_without_an_unconditional_branch_is_refused(denoiser: Denoiser) -> None:
    bare = replace(denoiser, conditioning=replace(ABOUT, nulled=()))
    with pytest.raises(ValueError, match="an unconditional branch"):
        predict(Sampler(guidance=Guidance(cfg=2.0)), bare, torch.zeros(2, 1, 2, 2).double(), 10.0, condition())


def test_dropped_rows_are_unconditional_and_the_others_untouched(denoiser: Denoiser) -> None:
    found = denoiser.dropped(condition(), torch.tensor([True, False]))
    assert not found["text"][0].any() and torch.equal(found["text"][1], condition()["text"][1])
    assert torch.equal(found["sizes"], condition()["sizes"])
    classes = replace(denoiser, conditioning=Conditioning("class", 10, 10))
    assert classes.dropped(torch.tensor([3, 4]), torch.tensor([False, True])).tolist() == [3, 10]
    assert classes.dropped(None, torch.tensor([True])) is None


def test_a_learned_variance_is_split_off_before_the_mean_is_read() -> None:
    about = Parameterization("epsilon", learned_variance=True)
    raw = torch.cat([torch.ones(2, 3, 2, 2), torch.full((2, 3, 2, 2), 9.0)], 1)
    assert torch.equal(about.mean(raw), torch.ones(2, 3, 2, 2))
    assert Parameterization("epsilon").mean(raw) is raw


def test_conditioning_survives_json() -> None:
    for about in (ABOUT, Conditioning(), Conditioning("class", 10, 10)):
        assert Conditioning.from_json(about.to_json()) == about
    assert Conditioning("class", 10, 10).to_json() == {"kind": "class", "classes": 10, "null": 10}


def test_conditions_move_whole() -> None:
    found = moved(condition(), "meta")
    assert all(v.device.type == "meta" for v in found.values()) and moved(None, "meta") is None
    assert moved(torch.zeros(2), "meta").device.type == "meta"
