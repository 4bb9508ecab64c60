"""Names of layers in the original layouts of U-Nets, Flux, SD3, PixArt and text models, told from diffusers' names.

Each function gives (name in the original, pieces) for the layers that a network has; a piece is a layer of the network and
the rows of the original's output that are its own, in its order. A layer that the original keeps in one with others (q, k
and v) has a part of the rows; one whose halves it keeps the other way round (shift and scale) has both, turned.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, count

Shapes = Mapping[str, tuple[int, ...]]  # of the weights, by layer


@dataclass(frozen=True)
class Piece:
    """A layer, and the ranges of rows that are its own; none are all."""

    layer: str
    rows: tuple[tuple[int, int], ...] = ()


Named = tuple[str, tuple[Piece, ...]]


def originals(shapes: Shapes) -> Iterator[Named]:
    """All names, in the layouts that a network of these layers has."""
    joint = "transformer_blocks.0.attn.add_q_proj" in shapes
    if any(layer.startswith("down_blocks.") for layer in shapes):
        yield from _unet(shapes)
    if joint and "x_embedder" in shapes and "single_transformer_blocks.0.proj_mlp" in shapes:
        yield from _flux(shapes)
    if joint and "pos_embed.proj" in shapes:
        yield from _sd3(shapes)
    if "adaln_single.linear" in shapes and "caption_projection.linear_1" in shapes:
        yield from _pixart(shapes)
    yield from _text(shapes)


def _renamed(shapes: Shapes, table: Mapping[str, str], here: str = "", there: str = "") -> Iterator[Named]:
    """Whole layers by a table of their names here and in the original."""
    for layer, original in table.items():
        if f"{here}{layer}" in shapes:
            yield f"{there}{original}", (Piece(f"{here}{layer}"),)


def _fused(shapes: Shapes, original: str, layers: list[str]) -> Iterator[Named]:
    """Layers whose outputs follow each other in one of the original's."""
    if all(layer in shapes for layer in layers):
        ends = list(accumulate(shapes[layer][0] for layer in layers))
        ranges = zip(layers, [0, *ends], ends, strict=False)
        yield original, tuple(Piece(layer, ((start, stop),)) for layer, start, stop in ranges)


def _numbered(shapes: Shapes, original: str, layers: list[str]) -> Iterator[Named]:
    """The same, and OneTrainer's names of such layers, which it keeps apart."""
    yield from _fused(shapes, original, layers)
    yield from ((f"{original}.{i}", (Piece(layer),)) for i, layer in enumerate(layers) if layer in shapes)


def _turned(shapes: Shapes, layer: str, original: str) -> Iterator[Named]:
    """A layer whose two halves are the other way round in the original: shift and scale."""
    if layer in shapes:
        rows = shapes[layer][0]
        yield original, (Piece(layer, ((rows // 2, rows), (0, rows // 2))),)


def _blocks(shapes: Shapes, name: str) -> Iterator[int]:
    """The numbers of the blocks called `name`."""
    for i in count():
        if not any(layer.startswith(f"{name}.{i}.") for layer in shapes):
            return
        yield i


# U-Nets: the layout of CompVis' latent diffusion, which SDXL has as well

RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_out": "out.2",
}


def _unet(shapes: Shapes) -> Iterator[Named]:
    yield from _renamed(shapes, UNET)
    for here, there in _unet_places(shapes):
        if ".resnets." in here:
            yield from _renamed(shapes, RESNET, f"{here}.", f"{there}.")
        else:
            inner = (layer for layer in shapes if layer == here or layer.startswith(f"{here}."))
            yield from ((there + layer.removeprefix(here), (Piece(layer),)) for layer in inner)


def _unet_places(shapes: Shapes) -> Iterator[tuple[str, str]]:
    """(module here, module in the original) of resnets, attentions and the convolutions between sizes."""
    place = 1
    for i in _blocks(shapes, "down_blocks"):
        block = f"down_blocks.{i}"
        for j in _blocks(shapes, f"{block}.resnets"):
            yield f"{block}.resnets.{j}", f"input_blocks.{place}.0"
            yield f"{block}.attentions.{j}", f"input_blocks.{place}.1"
            place += 1
        if f"{block}.downsamplers.0.conv" in shapes:
            yield f"{block}.downsamplers.0.conv", f"input_blocks.{place}.0.op"
            place += 1
    yield from ((f"mid_block.{here}", f"middle_block.{i}") for i, here in enumerate(("resnets.0", "attentions.0", "resnets.1")))  # fmt: skip
    place = 0
    for i in _blocks(shapes, "up_blocks"):
        block = f"up_blocks.{i}"
        for j in _blocks(shapes, f"{block}.resnets"):
            yield f"{block}.resnets.{j}", f"output_blocks.{place}.0"
            yield f"{block}.attentions.{j}", f"output_blocks.{place}.1"
            place += 1
        inner = 2 if any(layer.startswith(f"{block}.attentions.") for layer in shapes) else 1
        yield f"{block}.upsamplers.0.conv", f"output_blocks.{place - 1}.{inner}.conv"


# Flux: Black Forest Labs' layout, and XLabs' names of its attention

FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "proj_out": "final_layer.linear",
}
FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
FLUX_SINGLE = {"proj_out": "linear2", "norm.linear": "modulation.lin"}
OWN, ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")


def _flux(shapes: Shapes) -> Iterator[Named]:
    yield from _renamed(shapes, FLUX)
    yield from _renamed(shapes, {"x_embedder": "img_in.proj"})  # OneTrainer's name of it
    yield from _turned(shapes, "norm_out.linear", "final_layer.adaLN_modulation.1")
    for i in _blocks(shapes, "transformer_blocks"):
        here, there = f"transformer_blocks.{i}.", f"double_blocks.{i}."
        yield from _renamed(shapes, FLUX_DOUBLE, here, there)
        for stream, names, number in (("img", OWN, 1), ("txt", ADDED, 2)):
            qkv = [f"{here}attn.{name}" for name in names]
            yield from _numbered(shapes, f"{there}{stream}_attn.qkv", qkv)
            yield from _fused(shapes, f"{there}processor.qkv_lora{number}", qkv)
        xlabs = {"attn.to_out.0": "processor.proj_lora1", "attn.to_add_out": "processor.proj_lora2"}
        yield from _renamed(shapes, xlabs, here, there)
    for i in _blocks(shapes, "single_transformer_blocks"):
        here, there = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        yield from _renamed(shapes, FLUX_SINGLE, here, there)
        yield from _renamed(shapes, {"proj_out": "processor.proj_lora"}, here, there)
        qkv = [f"{here}attn.{name}" for name in OWN]
        yield from _numbered(shapes, f"{there}linear1", [*qkv, f"{here}proj_mlp"])
        yield from _fused(shapes, f"{there}processor.qkv_lora", qkv)


# Stable Diffusion 3: Stability's layout

SD3 = {
    "pos_embed.proj": "x_embedder.proj",
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "proj_out": "final_layer.linear",
}
SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}


def _sd3(shapes: Shapes) -> Iterator[Named]:
    yield from _renamed(shapes, SD3)
    yield from _turned(shapes, "norm_out.linear", "final_layer.adaLN_modulation.1")
    for i in _blocks(shapes, "transformer_blocks"):
        here, there = f"transformer_blocks.{i}.", f"joint_blocks.{i}."
        last = f"{here}attn.to_add_out" not in shapes  # its context only scales and shifts
        table = {k: v for k, v in SD3_BLOCK.items() if not (last and k == "norm1_context.linear")}
        yield from _renamed(shapes, table, here, there)
        if last:
            yield from _turned(shapes, f"{here}norm1_context.linear", f"{there}context_block.adaLN_modulation.1")
        for block, attention, names in (("x_block", "attn", OWN), ("context_block", "attn", ADDED), ("x_block", "attn2", OWN)):  # fmt: skip
            qkv = [f"{here}{attention}.{name}" for name in names]
            yield from _numbered(shapes, f"{there}{block}.{attention}.qkv", qkv)


# PixArt

PIXART = {
    "pos_embed.proj": "x_embedder.proj",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
    "adaln_single.linear": "t_block.1",
    "proj_out": "final_layer.linear",
}
PIXART_BLOCK = {
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
}


def _pixart(shapes: Shapes) -> Iterator[Named]:
    yield from _renamed(shapes, PIXART)
    for i in _blocks(shapes, "transformer_blocks"):
        here, there = f"transformer_blocks.{i}.", f"blocks.{i}."
        yield from _renamed(shapes, PIXART_BLOCK, here, there)
        yield from _numbered(shapes, f"{there}attn.qkv", [f"{here}attn1.{name}" for name in OWN])
        yield from _numbered(shapes, f"{there}cross_attn.kv_linear", [f"{here}attn2.{name}" for name in OWN[1:]])


def _text(shapes: Shapes) -> Iterator[Named]:
    """CLIP's layers with the level that older libraries have around them, and without."""
    for layer in shapes:
        if re.match(r"(text_model\.)?encoder\.layers\.", layer):
            plain = layer.removeprefix("text_model.")
            yield from ((name, (Piece(layer),)) for name in (plain, f"text_model.{plain}") if name != layer)
