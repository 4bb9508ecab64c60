"""Which labels are classes and which means no class: what the source says, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from optimize.architectures.assembled import assembled
from optimize.architectures.known import architecture
from optimize.diffusion.conditions import checked
from optimize.diffusion.context import Context, Data, conditioned
from optimize.diffusion.denoiser import Conditioning
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.errors import UserError
from optimize.passes.distill import Distill, draw_trajectories
from optimize.serving._loop import Asked, Loop

CONFIG = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "num_class_embeds": 5,
}
TEXT = CONFIG | {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "in_channels": 4,
    "out_channels": 4,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
}
NOISE = {"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}


def model(cfg: float | None = None, name: str = "UNet2DModel", config: Any = CONFIG, **classes: int | None) -> Model:
    torch.manual_seed(0)
    about = architecture(name).conditioning(config)
    told = about.named(classes.get("classes"), classes.get("null_class"))
    return assembled(name, config, NOISE, Sampler(steps=2, guidance=Guidance(cfg=cfg)), conditioning=told)


def drawn(made: Model) -> list[int]:
    labels = made.labels(range(50))
    assert labels is not None
    return sorted({int(i) for i in labels})


@pytest.mark.parametrize(
    ("said", "labels", "words"),
    [
        ({}, [0, 1, 2, 3, 4], "0 to 4"),
        ({"null_class": 4}, [0, 1, 2, 3], "0 to 3"),
        ({"null_class": 0}, [1, 2, 3, 4], "1 to 4"),
        ({"null_class": 2}, [0, 1, 3, 4], "0 to 4 without 2, the null class"),
        ({"classes": 3}, [0, 1, 2], "0 to 2"),
        ({"classes": 3, "null_class": 1}, [0, 2, 3], "0 to 3 without 1, the null class"),
        ({"classes": 3, "null_class": 4}, [0, 1, 2], "0 to 2"),
    ],
)
def test_every_class_but_the_null_one_is_drawn(said: dict[str, int], labels: list[int], words: str) -> None:
    made = model(**said)
    assert drawn(made) == labels and made.denoiser.conditioning.labels == words
    assert Conditioning.from_json(made.denoiser.conditioning.to_json()) == made.denoiser.conditioning


def test_guidance_without_a_known_null_class_is_refused_and_says_the_field() -> None:
    with pytest.raises(
        UserError, match=r"cfg: given 1\. .* source.null_class .* e.g. 4 where the last of its 5 labels"
    ):
        model(cfg=1.0)
    assert model(cfg=0.0).sample([0]).shape == (1, 1, 8, 8)
    with pytest.raises(UserError, match="which label means no class is not known"):
        model().sample([0], sampler=Sampler(steps=1, guidance=Guidance(cfg=2.0)))
    with pytest.raises(UserError, match=r"this network is told nothing. Leave cfg out"):
        model(cfg=1.0, config={k: v for k, v in CONFIG.items() if k != "num_class_embeds"})


def test_guidance_takes_the_null_class_that_was_said() -> None:
    made = model(cfg=1.0, null_class=0)
    condition = made.condition([0, 1])
    assert condition.tolist() == [1, 2] and made.denoiser.unconditional(condition).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"null_class": 5}, r"source.null_class: given 5. This network's labels are 0 to 4"),
        ({"null_class": -1}, "source.null_class: given -1"),
        ({"classes": 6}, "source.classes: given 6. This network has 1 to 5 classes"),
        ({"classes": 5, "null_class": 0}, "This network has 1 to 4 classes"),
        ({"classes": 0}, "source.classes: given 0"),
        ({"null_class": True}, "source.null_class: given True. A whole number is needed"),
    ],
)
def test_labels_that_the_network_does_not_have_are_refused(said: dict[str, int], says: str) -> None:
    with pytest.raises(UserError, match=says):
        model(**said)


def test_a_network_that_is_told_no_class_has_none() -> None:
    with pytest.raises(UserError, match=r"source.null_class: this network is told no class. Leave it out"):
        Conditioning().named(None, 3)
    with pytest.raises(UserError, match=r"source.classes: this network is told no class"):
        Conditioning().named(3, None)


def test_dit_knows_its_null_class_by_its_design() -> None:
    about = architecture("DiTTransformer2DModel").conditioning({"num_embeds_ada_norm": 10})
    assert (about.classes, about.null) == (10, 10) and about.named(None, 10) == about
    about.check_guidance(1.0)
    with pytest.raises(UserError, match="The null class of this network is 10"):
        about.named(None, 3)


def test_a_text_network_with_classes_draws_all_of_them_and_takes_a_null_where_it_is_said() -> None:
    plain = model(name="UNet2DConditionModel", config=TEXT)
    assert plain.condition(range(7))["class_labels"].tolist() == [0, 1, 2, 3, 4, 0, 1]
    told = plain.condition([3])
    null = plain.denoiser.unconditional(told)
    assert null["class_labels"].tolist() == [3] and not null["encoder_hidden_states"].any()
    made = model(1.0, "UNet2DConditionModel", TEXT, null_class=4)
    assert made.condition(range(5))["class_labels"].tolist() == [0, 1, 2, 3, 0]
    assert made.denoiser.unconditional(made.condition([1]))["class_labels"].tolist() == [4]
    assert made.sample([0]).shape == (1, 4, 8, 8)


def test_classes_in_a_file_of_conditions_are_those_of_the_network() -> None:
    about = architecture("UNet2DConditionModel").conditioning(TEXT)
    assert (
        checked({"class_labels": torch.tensor([4, 0], dtype=torch.int32)}, about, "c")["class_labels"].dtype
        == torch.int64
    )
    with pytest.raises(UserError, match=r"c: class_labels holds 0 to 5. The classes of this network are 0 to 4"):
        checked({"class_labels": torch.tensor([0, 5])}, about, "c")
    with pytest.raises(UserError, match=r"c: class_labels holds torch.float32; whole numbers are needed"):
        checked({"class_labels": torch.tensor([0.5])}, about, "c")


@pytest.mark.parametrize("null", [0, 2, 4])
def test_a_server_draws_the_same_classes(null: int) -> None:
    made = model(cfg=0.5, null_class=null)
    from optimize.architectures.artifact import sampler_json

    loop = Loop(sampler_json(made), lambda feed: np.zeros_like(feed["sample"]))
    whole = loop.complete(Asked(np.arange(50)))
    assert whole.labels is not None and whole.labels.tolist() == made.labels(range(50)).tolist()  # type: ignore[union-attr]
    said = loop.refusal(Asked(np.array([0]), labels=np.array([null])))
    assert said is not None and said.startswith(f"label: {null} given, allowed {made.denoiser.conditioning.labels}")
    assert loop.refusal(Asked(np.arange(4), labels=np.array(drawn(made)))) is None


def test_a_teachers_trajectories_are_of_classes_alone() -> None:
    config = Distill(nfe=1, trajectories=12, trajectory_steps=2, batch=12)
    for null, labels in ((0, {1, 2, 3, 4}), (4, {0, 1, 2, 3})):
        drawn = draw_trajectories(model(null_class=null), Sampler(steps=2), config, Context())
        assert set(drawn["labels"].tolist()) <= labels and drawn["labels"].dtype == torch.int64


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (None, r"context.data: no labels, and this network is told a class. Give `labels` \(N,\), 0 to 3"),
        (torch.tensor([0, 4]), "context.data: a label is 4. The classes of this network are 0 to 3"),
        (torch.tensor([0, 9]), "a label is 9"),
        (torch.tensor([0.0, 1.0]), "labels are stored as F32"),
    ],
)
def test_data_whose_labels_the_network_cannot_take_are_refused_before_any_work(labels: Any, says: str) -> None:
    data = Data(torch.linspace(-1, 1, 128).view(2, 1, 8, 8), labels)
    with pytest.raises(UserError, match=says):
        conditioned(data, model(null_class=4))


def test_data_of_another_shape_or_range_are_refused_before_any_work() -> None:
    labels, good = torch.tensor([0, 1]), torch.linspace(-1, 1, 128).view(2, 1, 8, 8)
    made = model(null_class=4)
    assert conditioned(Data(good, labels), made).images is good
    half = conditioned(Data(good.half(), labels.int()), made)
    assert half.images.dtype == torch.float32 and half.labels is not None and half.labels.dtype == torch.int64
    for wrong, says in (
        (good.view(2, 1, 4, 16), "works on images of shape"),
        (good * 100, "scale them"),
        (good / 0, "NaN"),
    ):
        with pytest.raises(UserError, match=f"context.data: .*{says}"):
            conditioned(Data(wrong, labels), made)


def test_conditions_of_data_are_a_row_a_sample_and_known_by_name() -> None:
    made = model(name="UNet2DConditionModel", config=TEXT)
    latents = torch.randn(2, 4, 8, 8) * 5  # latents have no range
    text = torch.randn(2, 7, 8)
    fine = conditioned(Data(latents, conditions={"encoder_hidden_states": text}), made)
    assert torch.equal(fine.condition(torch.tensor([1]))["encoder_hidden_states"], text[1:])
    for conditions, says in (
        ({"encoder_hidden_states": text[:1]}, "encoder_hidden_states has 1 rows; 2 are needed"),
        ({"encoder_hidden_state": text}, 'is not told encoder_hidden_state. .* Did you mean "encoder_hidden_states"'),
        ({"null.class_labels": torch.tensor([0])}, "is not told null.class_labels"),
        ({"null.encoder_hidden_states": text}, "null.encoder_hidden_states has 2 rows; 1 are needed"),
    ):
        with pytest.raises(UserError, match=f"context.data: .*{says}"):
            conditioned(Data(latents, conditions=conditions), made)
