"""The trunk of conditional U-Nets: which widths are chained, checked against what tracing finds and by cutting."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import networks
import pytest
import torch

from optimize.diffusion import macs
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.network import example_inputs, nested
from optimize.passes.prune import Prune
from optimize.pruning import blocks, dependency, trunk


def unet(**changes: Any) -> Model:
    return networks.model({**networks.TINY["sd"], **changes})


THREE = {
    "block_out_channels": [16, 32, 32],
    "layers_per_block": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}


def test_widths_are_chained_as_the_sums_of_the_forward_chain_them() -> None:
    """Two levels of 32 and 64, a layer each: the way down keeps conv_in's width through block 0 and its downsampling has
    one of its own; block 1 changes width, and the middle keeps that."""
    groups = {g.name: g for g in trunk.trunk_groups(unet().module)}
    assert "conv_in" in groups and "down_blocks.0.resnets.0.conv2" not in groups
    paths = {s.path for s in groups["conv_in"].slices if s.outputs}
    assert {"conv_in", "down_blocks.0.resnets.0.conv2", "down_blocks.0.attentions.0.proj_out"} <= paths
    assert "down_blocks.0.downsamplers.0.conv" in groups
    deep = next(g for g in groups.values() if any(s.path == "mid_block.resnets.1.conv2" for s in g.slices))
    assert any(s.path == "down_blocks.1.resnets.0.conv_shortcut" and s.outputs for s in deep.slices)
    reader = next(s for s in deep.slices if s.path == "up_blocks.0.resnets.0.conv1")
    assert not reader.outputs and reader.own == tuple(range(128)) and reader.channel == tuple(range(64)) * 2


@pytest.mark.parametrize("changes", [{}, THREE, {"use_linear_projection": True}, {"block_out_channels": [32, 32]}])
def test_cutting_any_one_width_leaves_a_network_that_runs_and_costs_what_was_counted(changes: dict[str, Any]) -> None:
    from optimize.passes.prune import layer_terms
    from optimize.pruning import groups

    model = unet(**changes)
    names = [g.name for g in trunk.trunk_groups(model.module)]
    for number in range(0, len(names), 3):
        work = model.clone()
        coupled = trunk.trunk_groups(work.module)
        terms = layer_terms(work.module, coupled, macs.by_module(work))
        group, norms = coupled[number], dependency.norm_sizes(work.module)
        size = group.width // group.norm_groups
        gone = set(range(0, group.width, size)) if size > 1 else set(range(group.width // 2))
        blocks.remove([(group, gone)])
        dependency.repair(work.module, norms, set(), nested(example_inputs(work.inputs, 1)))
        widths = [g.width - (len(gone) if i == number else 0) for i, g in enumerate(coupled)]
        assert round(groups.cost(terms, widths)) == macs.count(work)["macs"], group.name


def test_removing_token_channels_that_are_always_zero_changes_only_the_norms() -> None:
    """With norms of tokens replaced by nothing, channels that nobody writes and nobody reads can go without a trace."""
    work = unet()
    for m in work.module.modules():
        if type(m).__name__ == "BasicTransformerBlock":
            m.norm1 = m.norm2 = m.norm3 = torch.nn.Identity()
    tokens = [g for g in _tokens(work) if not g.norms]
    gone = [set(range(8)) for _ in tokens]
    with torch.no_grad():
        for group in tokens:
            for part in group.slices:
                rows = [o for o, c in zip(part.own, part.channel, strict=True) if c < 8]
                if part.outputs:
                    part.layer.weight[rows] = 0
                    if part.layer.bias is not None:
                        part.layer.bias[rows] = 0
    feed = example_inputs(work.inputs, 2)
    with torch.inference_mode():
        before = work.denoiser.network(**feed)
        blocks.remove(zip(tokens, gone, strict=True))
        dependency.repair(work.module, {}, set(), nested(feed))
        assert tokens and torch.allclose(work.denoiser.network(**feed), before, atol=1e-5)


def _tokens(model: Model) -> list[Any]:
    """Groups of tokens, with the norms that are no more left out."""
    found = [
        g for g in trunk.trunk_groups(model.module) if any(s.path.endswith("proj_in") and s.outputs for s in g.slices)
    ]
    return [replace(g, slices=tuple(s for s in g.slices if hasattr(s.layer, "weight"))) for g in found]


def test_pruning_thins_the_trunk_of_a_conditional_unet() -> None:
    model = unet(**THREE)
    pruned, record = Prune(budget={"macs": 0.5}, importance="magnitude", max_share=0.75).apply(model, Context())
    assert abs(record["macs_removed"] - 0.5) <= 0.03
    kept = {g["name"]: (g["of"], len(g["kept"])) for g in record["groups"]}
    assert any(left < of for name, (of, left) in kept.items() if name.endswith(("conv2", "conv_shortcut", "conv_in")))
    assert pruned.module.conv_in.in_channels == 4 and pruned.module.conv_out.out_channels == 4
    assert torch.isfinite(pruned.sample([1])).all()


def test_with_a_controlnet_the_way_down_and_the_middle_keep_their_widths() -> None:
    model = networks.model(networks.TINY["controlnet"])
    free = {g.name for g in trunk.trunk_groups(model.module)}
    kept = {g.name for g in trunk.trunk_groups(model.module, keep_down=True)}
    assert "conv_in" in free - kept and kept
    pruned, _ = Prune(budget={"macs": 0.5}, importance="magnitude", max_share=1.0).apply(model, Context())
    widths = [s.shape(1)[1] for s in model.inputs if "residual" in s.name]
    assert [pruned.module.conv_in.out_channels, pruned.module.mid_block.resnets[0].conv2.out_channels] == [
        widths[0],
        widths[-1],
    ]
    assert torch.isfinite(pruned.sample([1])).all()


def test_blocks_that_are_not_known_leave_the_trunk_alone() -> None:
    simple = unet(
        down_block_types=["ResnetDownsampleBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"]
    )
    assert not trunk.walkable(simple.module) and trunk.walkable(unet().module)
    pruned, record = Prune(budget={"macs": 0.3}, importance="magnitude").apply(simple, Context())
    assert "conv_in" not in {g["name"] for g in record["groups"]} and torch.isfinite(pruned.sample([1])).all()
