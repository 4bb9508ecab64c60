"""Which layers are quantized: by name in every architecture, and by size for each format."""

from __future__ import annotations

import pytest
from torch import nn

from optimize.quantization.eligible import KEEP, WEIGHT_ONLY, layers, matching, unfit

# path -> stays in high precision; as diffusers names the layers of its networks
NAMES = {
    "down_blocks.0.resnets.0.conv1": False,
    "down_blocks.0.resnets.0.time_emb_proj": True,
    "down_blocks.0.resnets.0.conv_shortcut": True,
    "down_blocks.0.downsamplers.0.conv": False,
    "conv_in": True,
    "conv_out": True,
    "add_embedding.linear_1": True,
    # transformers inside a U-Net
    "mid_block.attentions.0.proj_in": False,
    "mid_block.attentions.0.proj_out": False,
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_k": False,
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_q": False,
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k": True,
    "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj": False,
    # 1-D U-Nets
    "time_mlp.linear_1": True,
    "down_blocks.1.resnets.0.conv_1": False,
    "down_blocks.1.resnets.0.conv_skip": True,
    # DiT, PixArt
    "pos_embed.proj": True,
    "transformer_blocks.0.norm1.emb.timestep_embedder.linear_1": True,
    "transformer_blocks.0.norm1.linear": True,
    "transformer_blocks.0.attn1.to_out.0": False,
    "adaln_single.linear": True,
    "caption_projection.linear_2": True,
    "proj_out": True,
    "proj_out_2": True,
    # Stable Diffusion 3, Flux
    "context_embedder": True,
    "x_embedder": True,
    "time_text_embed.guidance_embedder.linear_2": True,
    "transformer_blocks.0.norm1_context.linear": True,
    "transformer_blocks.0.attn.add_k_proj": False,
    "transformer_blocks.0.ff_context.net.2": False,
    "single_transformer_blocks.3.norm.linear": True,
    "single_transformer_blocks.3.proj_mlp": False,
    "single_transformer_blocks.3.proj_out": False,
    "norm_out.linear": True,
}


@pytest.mark.parametrize("path", NAMES)
def test_embeddings_modulations_first_and_last_layers_stay(path: str) -> None:
    assert (matching(path, KEEP) is not None) == NAMES[path]


def test_what_is_stored_narrow_though_it_computes_wide_is_among_what_stays() -> None:
    narrow = [path for path in NAMES if matching(path, WEIGHT_ONLY)]
    assert "transformer_blocks.0.norm1.linear" in narrow and "conv_in" not in narrow
    assert all(NAMES[path] for path in narrow)


@pytest.mark.parametrize(
    ("layer", "int8", "fp8"),
    [
        (nn.Conv2d(16, 32, 3), "", ""),
        (nn.Linear(64, 48), "", ""),
        (nn.Conv1d(16, 16, 5), "", ""),
        (nn.Conv2d(4, 32, 3), "4 channels in and 32 out; INT8 needs 8", "4 channels in and 32 out; FP8 needs 16"),
        (nn.Linear(32, 2), "32 channels in and 2 out; INT8 needs 8", "32 channels in and 2 out; FP8 needs 16"),
        (nn.Linear(64, 40), "", "64 channels in and 40 out; FP8 needs multiples of 16"),
        (nn.Conv2d(64, 64, 3, groups=2), "", "a convolution of 2 groups; FP8 has none"),
        (nn.Conv2d(32, 32, 3, groups=32), "1 channels in and 1 out; INT8 needs 8", "1 channels in and 1 out; FP8 needs 16"),
        (nn.Conv2d(32, 32, 7), "", "49 taps; FP8 takes 32"),
    ],
)  # fmt: skip
def test_layers_no_kernel_takes_say_why(layer: nn.Module, int8: str, fp8: str) -> None:
    assert (unfit(layer, "int8"), unfit(layer, "fp8")) == (int8, fp8)


def test_convolutions_of_one_and_two_dimensions_and_linear_layers_are_looked_at() -> None:
    network = nn.Sequential(
        nn.Conv1d(1, 1, 1), nn.Conv2d(1, 1, 1), nn.Conv3d(1, 1, 1), nn.Linear(1, 1), nn.GroupNorm(1, 1)
    )
    assert [path for path, _ in layers(network)] == ["0", "1", "3"]
