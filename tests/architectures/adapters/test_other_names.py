"""Names of the original layouts: each stands for the layer, and the rows, that diffusers' own converters of whole
checkpoints put it to; every layer has one, and none has two meanings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.tiny_pipelines import XL, flux, sd3, unet

from optimize.architectures.adapters.naming import flat
from optimize.architectures.adapters.other_names import originals
from optimize.architectures.adapters.to_layers import Layers, layers_of, named

Tensors = dict[str, torch.Tensor]
DEEP = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
}
ONETRAINER = ("img_in.proj", ".qkv.", ".linear1.", ".kv_linear.")  # of one program: no checkpoint has these


def numbered(layers: Layers) -> Tensors:
    """A weight of one column by each original name, every row of every layer with a number of its own."""
    found, start = {}, 0
    for name, pieces in originals(layers.shapes):
        if "processor." not in name and not any(mark in name for mark in ONETRAINER):
            rows = layers.shape(pieces)[0]
            found[name] = (
                torch.arange(start, start + rows).float().reshape(rows, *(1 for _ in layers.shape(pieces)[1:]))
            )
            start += rows
    return found


def by_layer(layers: Layers, weights: Tensors) -> Tensors:
    """The weights where the original names say they belong."""
    found = {}
    for name, weight in weights.items():
        for piece in layers.dotted[name]:
            found[piece.layer] = torch.cat([weight[a:b] for a, b in piece.rows]) if piece.rows else weight
    return found


def assert_the_same(ours: Tensors, theirs: Tensors, layers: Layers) -> None:
    converted = {k.removesuffix(".weight"): v for k, v in theirs.items() if k.removesuffix(".weight") in layers.shapes}
    assert set(ours) == set(converted) == set(layers.shapes)
    wrong = [layer for layer in ours if not torch.equal(ours[layer].flatten(), converted[layer].flatten())]
    assert not wrong


@pytest.mark.parametrize("changes", [DEEP, {**DEEP, **XL, "transformer_layers_per_block": (1, 2, 1)}], ids=["sd", "xl"])
def test_a_unets_original_names_are_those_that_diffusers_converts(changes: dict[str, Any]) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    network = unet(**changes)
    layers = layers_of(network)
    weights = numbered(layers)
    config = {**network.config, "class_embed_type": None, "addition_embed_type": network.config.addition_embed_type}
    whole = {f"model.diffusion_model.{k}": v for k, v in full(weights, ("out.0.weight", "out.0.bias")).items()}
    theirs = convert_ldm_unet_checkpoint(whole, config)
    assert_the_same(by_layer(layers, weights), theirs, layers)


def test_sd3s_original_names_are_those_that_diffusers_converts() -> None:
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    layers = layers_of(sd3())
    weights = numbered(layers)
    whole = full(weights, ("pos_embed", *ln_norms(2)))
    assert_the_same(by_layer(layers, weights), convert_sd3_transformer_checkpoint_to_diffusers(whole), layers)


def test_fluxs_original_names_are_those_that_diffusers_converts() -> None:
    """At the size that the converter is written for, without its memory: on the meta device."""
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        network = flux(num_attention_heads=24, attention_head_dim=128, in_channels=64, axes_dims_rope=(16, 56, 56))
    layers = layers_of(network)
    weights = numbered(layers)
    scales = [f"double_blocks.0.{s}_attn.norm.{n}_norm.scale" for s in ("img", "txt") for n in ("query", "key")]
    scales += [f"single_blocks.0.norm.{n}_norm.scale" for n in ("query", "key")]
    whole = full(weights, scales)
    assert_the_same(by_layer(layers, weights), convert_flux_transformer_checkpoint_to_diffusers(whole), layers)


def ln_norms(blocks: int) -> list[str]:
    places = [f"joint_blocks.{i}.{b}.attn" for i in range(blocks) for b in ("x_block", "context_block")]
    return [f"{place}.ln_{n}.weight" for place in [*places, "joint_blocks.0.x_block.attn2"] for n in "qk"]


def full(weights: Tensors, others: Any) -> Tensors:
    """A checkpoint of these weights, with the biases and norms that a converter asks for."""
    biases = {f"{k}.bias": v.flatten() for k, v in weights.items()}
    return {f"{k}.weight": v for k, v in weights.items()} | biases | {k: torch.zeros(1) for k in others}


def pixart() -> Any:
    from diffusers import PixArtTransformer2DModel

    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        cross_attention_dim=16, caption_channels=12, norm_num_groups=4, patch_size=2, use_additional_conditions=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "layer", "rows"),
    [
        ("blocks.0.attn.qkv", "transformer_blocks.0.attn1.to_k", ((16, 32),)),
        ("blocks.0.cross_attn.kv_linear", "transformer_blocks.0.attn2.to_v", ((16, 32),)),
        ("blocks.0.cross_attn.q_linear", "transformer_blocks.0.attn2.to_q", ()),
        ("blocks.0.attn.qkv.2", "transformer_blocks.0.attn1.to_v", ()),
        ("t_block.1", "adaln_single.linear", ()),
        ("y_embedder.y_proj.fc1", "caption_projection.linear_1", ()),
        ("csize_embedder.mlp.2", "adaln_single.emb.resolution_embedder.linear_2", ()),
    ],
)
def test_pixarts_original_names(name: str, layer: str, rows: tuple[tuple[int, int], ...]) -> None:
    found = {piece.layer: piece.rows for piece in layers_of(pixart()).find(name)}
    assert found[layer] == rows


@pytest.mark.parametrize("network", [unet, sd3, flux, pixart])
def test_no_name_stands_for_two_layers_dotted_or_flat(network: Any) -> None:
    layers = layers_of(network())
    assert all(layers.dotted.values()) and all(layers.flat.values())
    assert all(layers.flat[flat(name)] == pieces for name, pieces in layers.dotted.items())


def test_a_name_with_two_meanings_stands_for_none() -> None:
    layers = named({"a.b_c": (2, 2), "a.b.c": (2, 2)})
    assert layers.find("a.b_c") and layers.find("a.b.c") and not layers.find("a_b_c")


def test_a_network_has_the_names_of_its_own_original_alone() -> None:
    """A file for Flux never lands in SD3, however its shapes are."""
    assert not layers_of(sd3()).find("double_blocks.0.img_attn.qkv")
    assert not layers_of(flux()).find("joint_blocks.0.x_block.attn.qkv")
    assert not layers_of(flux()).find("blocks.0.attn.qkv") and not layers_of(unet()).find("img_in")
