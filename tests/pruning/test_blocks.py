"""Pruning inside the blocks of conditional U-Nets and transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from support.restored import output_of_a_fresh_process, saved
from torch import nn

from optimize.architectures.artifact import load_model
from optimize.architectures.known import architecture, with_sizes
from optimize.diffusion import macs
from optimize.diffusion.context import Context, Data
from optimize.diffusion.model import Model
from optimize.diffusion.network import TorchNetwork, example_inputs
from optimize.errors import UserError
from optimize.passes.prune import Plan, Prune, layer_terms
from optimize.pruning import blocks, dependency, groups

NAMES = ["sd", "sdxl", "inpainting", "controlnet", "unet1d", "dit", "pixart", "sd3", "flux"]


def prune(budget: float, **options: Any) -> Prune:
    return Prune(budget={"macs": budget}, **{"importance": "magnitude", **options})


def output(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model.denoiser.network(**example_inputs(model.inputs, 2, classes=10))


@pytest.fixture(scope="module")
def tiny() -> dict[str, Model]:
    return {name: networks.model(networks.TINY[name]) for name in NAMES}


@pytest.mark.parametrize("budget", [0.2, 0.4])
@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_met_within_three_points_and_the_network_reloads_bit_equal(
    tiny: dict[str, Model], name: str, budget: float, tmp_path: Path
) -> None:
    pruned, record = prune(budget).apply(tiny[name], Context())
    found = 1 - macs.count(pruned)["macs"] / macs.count(tiny[name])["macs"]
    assert abs(found - budget) <= 0.03 and found == pytest.approx(record["macs_removed"])
    assert output(pruned).shape == output(tiny[name]).shape and torch.isfinite(output(pruned)).all()
    assert pruned.inputs == tiny[name].inputs
    again = load_model(saved(pruned, tmp_path / "pruned"))
    assert torch.equal(output(again), output(pruned))
    assert torch.isfinite(again.sample([1])).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_every_width_costs_is_counted_exactly(tiny: dict[str, Model], name: str) -> None:
    work = tiny[name].clone()
    coupled = blocks.known_groups(work.module, [spec.name for spec in work.inputs])
    terms = layer_terms(work.module, coupled, macs.by_module(work))
    assert round(groups.cost(terms, [g.width for g in coupled])) == macs.count(tiny[name])["macs"]
    taken = [g.head_width or g.norm_groups for g in coupled]
    norms = dependency.norm_sizes(work.module)
    sizes = [g.width // g.norm_groups for g in coupled]
    gone = [set(range(0, g.width, size)) if not g.head_width and n > 1 else set(range(n)) for g, n, size in zip(coupled, taken, sizes, strict=True)]  # fmt: skip
    blocks.remove(zip(coupled, gone, strict=True))
    from optimize.diffusion.network import nested

    dependency.repair(work.module, norms, set(), nested(example_inputs(work.inputs, 1)))
    widths = [g.width - len(cut) for g, cut in zip(coupled, gone, strict=True)]
    assert round(groups.cost(terms, widths)) == macs.count(work)["macs"]


@pytest.mark.parametrize("name", ["sd", "dit", "sd3", "flux"])
def test_removing_channels_that_contribute_nothing_changes_nothing(tiny: dict[str, Model], name: str) -> None:
    """The last head of every attention and the last hidden unit of every feed-forward get outgoing weights of zero.

    Then the network without them is the same function: an independent check that the right slices were cut.
    """
    from optimize.diffusion.network import nested

    work = tiny[name].clone()
    coupled = [g for g in blocks.inner_groups(work.module) if not g.norms]
    gone = [set(range(g.width - (g.head_width or 1), g.width)) for g in coupled]
    with torch.no_grad():
        for group, cut in zip(coupled, gone, strict=True):
            for part in group.slices:
                if not part.outputs:
                    part.layer.weight[:, [o for o, c in zip(part.own, part.channel, strict=True) if c in cut]] = 0
    before = output(work)
    blocks.remove(zip(coupled, gone, strict=True))
    dependency.repair(work.module, {}, set(), nested(example_inputs(work.inputs, 1)))
    assert coupled and torch.allclose(output(work), before, atol=1e-5)


def test_a_controlnets_residuals_still_fit_and_count_after_pruning(tiny: dict[str, Model]) -> None:
    pruned, _ = prune(0.4).apply(tiny["controlnet"], Context())
    names = [s.name for s in pruned.inputs if "residual" in s.name]
    feed = example_inputs(pruned.inputs, 2)
    with torch.inference_mode():
        told = pruned.denoiser.network(**feed)
        for name in names:
            other = pruned.denoiser.network(**{**feed, name: torch.zeros_like(feed[name])})
            assert not torch.allclose(told, other), name
    assert len(names) == 5


def test_inpainting_channels_still_count_after_pruning(tiny: dict[str, Model]) -> None:
    pruned, _ = prune(0.4).apply(tiny["inpainting"], Context())
    assert pruned.module.conv_in.in_channels == 9
    feed = example_inputs(pruned.inputs, 1)
    changed = {**feed, "sample": feed["sample"].clone()}
    changed["sample"][:, 4:] = 0
    with torch.inference_mode():
        assert not torch.allclose(pruned.denoiser.network(**feed), pruned.denoiser.network(**changed))


@pytest.mark.parametrize("name", ["sd", "dit", "sd3", "flux", "unet1d"])
def test_taylor_importance_is_accumulated_with_conditions(tiny: dict[str, Model], name: str) -> None:
    model = tiny[name]
    data = Data(torch.randn(8, *model.shape).clamp(-1, 1), torch.arange(8) if name == "dit" else None)
    config = prune(0.3, importance="diffusion_taylor", batch=4, stride=500)
    pruned, record = config.apply(model, Context(data=data))
    assert record["timesteps_used"] == 2 and abs(record["macs_removed"] - 0.3) <= 0.03
    assert torch.isfinite(output(pruned)).all()
    again, _ = config.apply(model, Context(data=data))
    assert again.structure == pruned.structure


def test_heads_go_whole_and_one_stays(tiny: dict[str, Model]) -> None:
    pruned, record = prune(0.5, max_share=1.0).apply(tiny["dit"], Context())
    for block in pruned.module.transformer_blocks:
        assert block.attn1.to_q.out_features == 16 * block.attn1.heads >= 16
    heads = [g for g in record["groups"] if g["name"].endswith("attn1.to_k")]
    assert len(heads) == 2
    for g in heads:
        kept = torch.tensor(g["kept"]).view(-1, 16)
        assert torch.equal(kept, kept[:, :1] + torch.arange(16)) and bool((kept[:, 0] % 16 == 0).all())


def test_gated_units_lose_both_halves_of_a_channel(tiny: dict[str, Model]) -> None:
    group = next(g for g in blocks.inner_groups(tiny["sd"].module) if "ff.net.0.proj" in g.name)
    first = next(s for s in group.slices if s.outputs)
    assert len(first.own) == 2 * group.width and first.channel == tuple(range(group.width)) * 2


def test_attention_with_one_head_or_norms_across_heads_is_left_alone() -> None:
    from diffusers.models.attention_processor import Attention

    alone = nn.ModuleDict({"a": Attention(32, heads=1, dim_head=32), "b": Attention(32, heads=4, dim_head=8)})
    assert [g.name for g in blocks.inner_groups(alone)] == ["b.to_k"]
    across = Attention(32, heads=4, dim_head=8, kv_heads=4, qk_norm="rms_norm_across_heads")
    assert blocks.inner_groups(nn.ModuleDict({"a": across})) == []


def test_a_budget_beyond_the_blocks_names_the_largest(tiny: dict[str, Model]) -> None:
    with pytest.raises(UserError, match=r"prune\.budget\.macs: 0\.89 cannot be met .* remove at most 0\.\d\d of this"):
        prune(0.89).apply(tiny["dit"], Context())


def test_a_plain_unet_is_still_pruned_in_its_trunk() -> None:
    model = networks.model(networks.TINY["unet2d"])
    assert not blocks.opaque(model.module) and blocks.opaque(networks.model(networks.TINY["unet1d"]).module)
    pruned, record = prune(0.4).apply(model, Context())
    assert "conv_in" in {g["name"] for g in record["groups"]} and torch.isfinite(output(pruned)).all()


@pytest.mark.parametrize(
    "name", ["sd15", *(pytest.param(n, marks=pytest.mark.slow) for n in ("dit_xl_2", "flux_shaped"))]
)
def test_full_size_networks_meet_a_budget_by_their_widths(name: str) -> None:
    """On the meta device: shapes and costs without memory for weights."""
    config = networks.FULL[name]
    if name == "flux_shaped":
        config = with_sizes(config, S=256, L=64)
    with torch.device("meta"):
        module = architecture(config["_class_name"]).build(config)
    model = networks.model(networks.TINY["sd"])
    inputs = architecture(config["_class_name"]).inputs(config)
    model = replace(model, denoiser=model.denoiser.with_network(TorchNetwork(module, inputs)))
    before, plan = macs.count(model), Plan(model, prune(0.4, importance="random", round_to=32), 0)
    plan.remove(plan.choose(0.4))
    after = macs.count(model)
    assert abs(1 - after["macs"] / before["macs"] - 0.4) <= 0.03 and after["params"] < before["params"]


def test_a_fresh_process_without_torch_pruning_restores_the_identical_transformer(
    tiny: dict[str, Model], tmp_path: Path
) -> None:
    pruned, _ = prune(0.4).apply(tiny["sd3"], Context())
    folder = saved(pruned, tmp_path / "pruned")
    assert torch.equal(output_of_a_fresh_process(folder, 2, tmp_path / "y.safetensors"), output(pruned))
