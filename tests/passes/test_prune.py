"""Pruning: exact budgets, networks that stay valid, restore without torch-pruning, importance by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from support.restored import output_of_a_fresh_process, saved

from optimize.architectures.artifact import load_model
from optimize.architectures.known import architecture
from optimize.diffusion import macs
from optimize.diffusion.context import Context, Data
from optimize.diffusion.denoiser import Conditioning, Denoiser
from optimize.diffusion.model import Model, Structure
from optimize.diffusion.network import TorchNetwork, example_inputs, raw_output
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import Sampler
from optimize.diffusion.schedule import from_diffusers
from optimize.errors import ArtifactError, UserError
from optimize.passes.prune import Prune, layer_terms, scoring_batch, timesteps
from optimize.pruning import dependency, groups, importance, reshape
from optimize.pruning.groups import Group, Term


def unet(**changes: Any) -> Model:
    """An untrained UNet2DModel as a Model; widths 32/64/64, 16x16, unless changed."""
    config: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "attention_head_dim": 16,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        **changes,
    }
    torch.manual_seed(0)
    entry = architecture("UNet2DModel")
    network = TorchNetwork(entry.build(config).eval().requires_grad_(False), entry.inputs(config))
    schedule = from_diffusers({"beta_schedule": "squaredcos_cap_v2"})
    denoiser = Denoiser(network, Parameterization("v"), schedule, entry.conditioning(config))
    return Model(denoiser, Sampler(steps=2), Structure("UNet2DModel", config), entry.shape(config))


def prune(budget: float, **options: Any) -> Prune:
    return Prune(budget={"macs": budget}, **{"importance": "magnitude", **options})


def output(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model.denoiser.network(**example_inputs(model.inputs, 4, classes=10))


def assert_valid(model: Model) -> None:
    """Sizes kept as attributes agree with the weights everywhere, and the network runs."""
    for child in model.module.modules():
        kind = type(child).__name__
        if kind == "Conv2d":
            assert child.weight.shape[:2] == (child.out_channels, child.in_channels // child.groups)
        elif kind == "Linear":
            assert child.weight.shape == (child.out_features, child.in_features)
        elif kind == "GroupNorm":
            assert child.weight.shape == (child.num_channels,) and child.num_channels % child.num_groups == 0
        elif kind == "ResnetBlock2D":
            assert (child.in_channels, child.out_channels) == (
                child.conv1.in_channels,
                child.conv2.out_channels,
            )
        elif kind == "Attention":
            assert child.inner_dim == child.to_q.out_features == child.to_v.out_features == child.to_out[0].in_features
            assert child.query_dim == child.to_q.in_features and child.inner_dim % child.heads == 0
        elif kind in ("Downsample2D", "Upsample2D") and child.use_conv:
            assert (child.channels, child.out_channels) == (child.conv.in_channels, child.conv.out_channels)
    assert torch.isfinite(output(model)).all()


@pytest.mark.parametrize("budget", [0.2, 0.4, 0.6])
def test_the_budget_is_met_within_three_points_on_the_tiny_model(
    tiny_model: Model, tiny_data: Data, budget: float
) -> None:
    config = prune(budget, importance="diffusion_taylor", batch=8, stride=250)
    pruned, record = config.apply(tiny_model, Context(data=tiny_data))
    assert abs(1 - macs.count(pruned)["macs"] / macs.count(tiny_model)["macs"] - budget) <= 0.03
    assert record["macs_removed"] == 1 - record["after"]["macs"] / record["before"]["macs"]
    assert record["timesteps_used"] == 4 and len(record["losses"]) == 4
    assert all(len(g["kept"]) % 8 == 0 for g in record["groups"])
    assert_valid(pruned)


@pytest.mark.parametrize("kind", ["magnitude", "random"])
@pytest.mark.parametrize("budget", [0.2, 0.4, 0.6])
def test_the_budget_is_met_by_every_importance_on_widths_32_64_64(budget: float, kind: str) -> None:
    model = unet()
    pruned, record = prune(budget, importance=kind).apply(model, Context())
    assert abs(record["macs_removed"] - budget) <= 0.03
    assert record["importance"] == kind
    assert_valid(pruned)


def test_the_original_is_untouched_and_the_same_seed_gives_the_same_network(tiny_model: Model, tiny_data: Data) -> None:
    before = output(tiny_model)
    config = prune(0.4, importance="diffusion_taylor", batch=8, stride=500)
    (first, a), (second, b) = (config.apply(tiny_model, Context(data=tiny_data, seed=3)) for _ in range(2))
    assert a == b and first.structure == second.structure
    assert torch.equal(output(first), output(second))
    assert torch.equal(output(tiny_model), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"resnet_time_scale_shift": "scale_shift"},
        {"downsample_type": "resnet", "upsample_type": "resnet"},
        {"norm_num_groups": 32},
        {"in_channels": 3, "out_channels": 3, "attention_head_dim": None},
        {"layers_per_block": 2, "num_class_embeds": 11},
        {
            "add_attention": False,
            "down_block_types": ("DownBlock2D",) * 3,
            "up_block_types": ("UpBlock2D",) * 3,
        },
    ],
)
def test_every_kind_of_unet_is_pruned_and_restored(changes: dict[str, Any], tmp_path: Path) -> None:
    model = unet(**changes)
    pruned, record = prune(0.4).apply(model, Context())
    assert abs(record["macs_removed"] - 0.4) <= 0.03
    assert pruned.module.conv_in.in_channels == model.module.conv_in.in_channels
    assert pruned.module.conv_out.out_channels == model.module.conv_out.out_channels
    assert_valid(pruned)
    assert torch.equal(output(load_model(saved(pruned, tmp_path / "a"))), output(pruned))


def test_steps_finer_than_round_to_are_used_where_the_budget_needs_them() -> None:
    model = unet(block_out_channels=(16, 16, 16), attention_head_dim=8)
    pruned, record = prune(0.3, round_to=16).apply(model, Context())
    assert record["round_to"] == 4 and abs(record["macs_removed"] - 0.3) <= 0.03
    assert record["norm_groups"]
    assert_valid(pruned)


def test_a_pruned_model_can_be_pruned_again_saved_and_trained(tiny_model: Model, tmp_path: Path) -> None:
    once, _ = prune(0.3).apply(tiny_model, Context())
    twice, _ = prune(0.3, importance="random").apply(once, Context())
    assert abs(macs.count(twice)["macs"] / macs.count(tiny_model)["macs"] - 0.49) <= 0.05
    assert [e["pass"] for e in twice.structure.edits] == ["prune", "prune"]
    loaded = load_model(saved(twice, tmp_path / "twice"))
    assert torch.equal(output(loaded), output(twice))
    loaded.module.train().requires_grad_(True)
    loaded.denoiser.network(**example_inputs(loaded.inputs, 2)).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in loaded.module.parameters())


def test_a_fresh_process_without_torch_pruning_restores_the_identical_network(
    tiny_model: Model, tmp_path: Path
) -> None:
    pruned, _ = prune(0.4).apply(tiny_model, Context())
    folder = saved(pruned, tmp_path / "pruned")
    assert torch.equal(output_of_a_fresh_process(folder, 4, tmp_path / "y.safetensors"), output(pruned))


def test_records_are_plain_json(tiny_model: Model, tiny_data: Data) -> None:
    pruned, record = prune(0.2, importance="diffusion_taylor", batch=4, stride=500).apply(
        tiny_model, Context(data=tiny_data)
    )
    for value in (record, pruned.structure.to_json()):
        assert json.loads(json.dumps(value, allow_nan=False)) == json.loads(json.dumps(value))
    kept = {g["name"]: g for g in record["groups"]}
    assert kept["conv_in"]["of"] == 16 and set(kept["conv_in"]["kept"]) <= set(range(16))


def test_what_a_group_costs_is_counted_exactly_before_anything_is_removed(tiny_model: Model) -> None:
    work = tiny_model.clone()
    work.module.requires_grad_(True)
    graph = dependency.trace(work.module, example_inputs(work.inputs, 1), raw_output)
    coupled = dependency.coupled_groups(graph, work.module)
    terms = layer_terms(work.module, coupled, macs.by_module(work))
    assert "conv_out" not in {c.name for c in coupled}
    widths = [c.width for c in coupled]
    assert round(groups.cost(terms, widths)) == macs.count(tiny_model)["macs"]
    norms = dependency.norm_sizes(work.module)
    dependency.remove(graph, [(group, range(8)) for group in coupled])
    widths = [width - 8 for width in widths]
    dependency.repair(work.module, norms, set(), example_inputs(work.inputs, 1))
    assert round(groups.cost(terms, widths)) == macs.count(work)["macs"]


def test_taylor_importance_of_a_linear_chain_is_what_the_hand_computes() -> None:
    """y = b a x with a (2,1), b (1,2): channel i has |a_i dL/da_i| + |b_i dL/db_i| = 2 |a_i b_i x g| with g = dL/dy."""
    a, b = torch.tensor([[2.0], [-3.0]], requires_grad=True), torch.tensor([[5.0, 0.5]], requires_grad=True)
    x = torch.tensor([[1.5]])
    y = x @ a.T @ b.T
    (y**2).sum().backward()
    g = 2 * float(y.detach())
    total = torch.zeros(2, dtype=torch.float64)
    importance.add_coupled(total, importance.taylor(a, a.grad, 0), (0, 1), (0, 1))
    importance.add_coupled(total, importance.taylor(b, b.grad, 1), (0, 1), (0, 1))
    assert torch.allclose(total, torch.tensor([2 * 2.0 * 5.0 * 1.5 * abs(g), 2 * 3.0 * 0.5 * 1.5 * abs(g)]).double())


def test_magnitude_sums_over_everything_but_the_channel() -> None:
    weight = torch.arange(-6.0, 6.0).reshape(2, 3, 2, 1)
    assert importance.magnitude(weight, 0).tolist() == [21.0, 15.0]
    assert importance.magnitude(weight, 1).tolist() == [6 + 5 + 0 + 1, 4 + 3 + 2 + 3, 2 + 1 + 4 + 5]


def test_a_channel_seen_twice_behind_a_concatenation_counts_twice() -> None:
    total = torch.zeros(2, dtype=torch.float64)
    importance.add_coupled(total, torch.tensor([1.0, 2.0, 4.0, 8.0]).double(), (0, 1, 2, 3), (0, 1, 0, 1))
    assert total.tolist() == [5.0, 10.0]


def test_taylor_stops_before_the_first_loss_below_the_threshold() -> None:
    cutoff = importance.Cutoff(0.1)
    assert [cutoff.reached(loss) for loss in (0.5, 1.0, 0.2, 0.11, 0.09)] == [
        False,
        False,
        False,
        False,
        True,
    ]
    with pytest.raises(ValueError, match="nan"):
        cutoff.reached(float("nan"))


def test_a_high_threshold_stops_taylor_early_and_says_where(tiny_model: Model, tiny_data: Data) -> None:
    config = prune(0.4, importance="diffusion_taylor", batch=8, stride=200, threshold=0.99)
    _, record = config.apply(tiny_model, Context(data=tiny_data))
    assert record["stopped_at"] == 200.0 * record["timesteps_used"]
    assert record["timesteps_used"] == len(record["losses"]) < len(timesteps(tiny_model, 200))


def test_the_scoring_batch_is_seeded_and_holds_the_null_class(tiny_model: Model, tiny_data: Data) -> None:
    x, e, labels = scoring_batch(tiny_model, Context(data=tiny_data, seed=1), 20)
    again = scoring_batch(tiny_model, Context(data=tiny_data, seed=1), 20)
    assert torch.equal(x, again[0]) and torch.equal(e, again[1]) and labels is not None
    assert int((labels == 10).sum()) == 2


def test_units_take_as_many_channels_from_every_norm_group_lowest_first() -> None:
    scores = np.array([4.0, 1.0, 3.0, 2.0, 10.0, 40.0, 30.0, 20.0])
    units = groups.even_units(scores, blocks=2, step=2)
    assert [u.tolist() for u in units] == [[1, 4], [3, 7], [2, 6]]
    assert [u.tolist() for u in groups.chunk_units(scores, size=2, step=2)] == [[0, 1], [2, 3], [4, 5]]


def test_widths_after_the_first_unit_are_multiples_of_the_step() -> None:
    group = Group("g", np.arange(20.0), groups.even_units(np.arange(20.0), 4, 8))
    assert [group.width_after(n) for n in range(len(group.units) + 1)] == [20, 16, 8]


def test_no_more_than_its_share_of_a_group_goes() -> None:
    group = Group("g", np.ones(64), groups.even_units(np.ones(64), 8, 8))
    assert [groups.up_to(group, share).width_after(9) for share in (0.01, 0.5, 0.75, 1.0)] == [56, 32, 16, 8]


def test_selection_removes_the_least_important_channels_per_mac() -> None:
    cheap = Group("cheap", np.ones(4), tuple(np.array([i]) for i in range(3)))
    dear = Group("dear", np.full(4, 2.0), tuple(np.array([i]) for i in range(3)))
    terms = [Term(1.0, {}, {0: 1}, fixed_inputs=10), Term(1.0, {}, {1: 1}, fixed_inputs=100)]
    assert groups.select([cheap, dear], terms, target=240) == (0, 2)
    assert groups.select([cheap, dear], terms, target=430) == (1, 0)
    assert groups.smallest([cheap, dear], terms) == 110


def test_norms_keep_their_groups_or_the_size_of_a_group() -> None:
    assert dependency.regrouped(24, 8, 32, whole=False) == 8
    assert dependency.regrouped(24, 8, 32, whole=True) == 6
    assert dependency.regrouped(12, 8, 16, whole=False) == 6
    assert dependency.regrouped(9, 8, 16, whole=False) == 3


@pytest.mark.parametrize("budget", [0.0, 0.9, -0.1, 1.5])
def test_a_budget_out_of_range_is_refused_by_the_config(budget: float) -> None:
    with pytest.raises(ValidationError, match=r"(greater|less) than 0"):
        prune(budget)


def test_a_budget_that_no_choice_of_channels_meets_names_the_largest() -> None:
    with pytest.raises(UserError, match=r"prune\.budget\.macs: 0\.8 cannot be met .* remove at most 0\.[67]\d of this"):
        prune(0.8, round_to=8).apply(unet(block_out_channels=(8, 8, 8), attention_head_dim=8), Context())


def test_a_quantized_model_is_refused(tiny_model: Model) -> None:
    quantized = tiny_model.with_module(tiny_model.module, {"pass": "quantize", "record": {}})
    with pytest.raises(UserError, match="already quantized"):
        prune(0.4).apply(quantized, Context())
    assert "quantized" in Prune.refuses_after and "pruned" in Prune.provides


def test_taylor_without_data_is_refused(tiny_model: Model) -> None:
    with pytest.raises(UserError, match="needs training data"):
        prune(0.4, importance="diffusion_taylor").apply(tiny_model, Context())


def test_a_network_that_gives_nan_is_refused(tiny_model: Model, tiny_data: Data) -> None:
    broken = tiny_model.clone()
    torch.nn.init.constant_(broken.module.conv_out.bias, float("nan"))
    with pytest.raises(UserError, match="the loss is nan at timestep 0"):
        prune(0.4, importance="diffusion_taylor", batch=2).apply(broken, Context(data=tiny_data))


@pytest.mark.parametrize(
    "record",
    [
        {"shapes": {"conv_in.nothing": [1]}, "attributes": {}},
        {"shapes": {"conv_in.bias": [1, 2]}, "attributes": {}},
        {"shapes": {}, "attributes": {"nowhere": {"channels": 4}}},
        {"shapes": {}, "attributes": {"conv_in": {"forward": 4}}},
        {"shapes": {}, "attributes": {"conv_in": {"in_channels": "4"}}},
    ],
)
def test_a_record_that_does_not_fit_the_network_is_refused(tiny_model: Model, record: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"structure\.json"):
        Prune.restore(tiny_model.module, record)


def test_a_difference_applied_to_the_first_network_gives_the_second(tiny_model: Model) -> None:
    pruned, _ = prune(0.4).apply(tiny_model, Context())
    change = reshape.difference(reshape.snapshot(tiny_model.module), reshape.snapshot(pruned.module))
    again = Prune.restore(tiny_model.clone().module, change)
    assert reshape.snapshot(again) == reshape.snapshot(pruned.module)
    assert pruned.structure.edits[-1]["record"] == change
    assert isinstance(pruned.denoiser.conditioning, Conditioning)
