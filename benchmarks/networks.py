"""The named networks: configs of tiny ones for tests, and of full-size ones, to be built with random weights.

python benchmarks/networks.py            # parameters and MACs of the full-size networks, no memory for weights
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from optimize.architectures.known import with_controlnet, with_sizes

if TYPE_CHECKING:
    from optimize.diffusion.model import Model
    from optimize.diffusion.sampling import Sampler

Config = dict[str, Any]

_SD = {
    "_class_name": "UNet2DConditionModel", "sample_size": 16, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [32, 64], "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"], "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 32,
}  # fmt: skip
_SDXL = {
    **_SD, "attention_head_dim": [4, 8], "transformer_layers_per_block": [1, 2], "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 80,
}  # fmt: skip
_UNET1D = {
    "_class_name": "UNet1DModel", "sample_size": 64, "in_channels": 2, "out_channels": 2, "extra_in_channels": 16,
    "time_embedding_dim": 16, "block_out_channels": [32, 64, 64],
    "down_block_types": ["DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D"],
    "up_block_types": ["AttnUpBlock1D", "UpBlock1D", "UpBlock1DNoSkip"],
}  # fmt: skip
_UNET2D = {
    "_class_name": "UNet2DModel", "sample_size": 16, "in_channels": 3, "out_channels": 3,
    "block_out_channels": [16, 32, 32], "layers_per_block": 1, "norm_num_groups": 8, "num_class_embeds": 11,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
_DIT = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4,
    "out_channels": 8, "num_layers": 2, "sample_size": 16, "num_embeds_ada_norm": 10,
}  # fmt: skip
_PIXART = {
    "_class_name": "PixArtTransformer2DModel", "num_attention_heads": 4, "attention_head_dim": 24, "in_channels": 4,
    "out_channels": 8, "num_layers": 2, "cross_attention_dim": 96, "sample_size": 16, "caption_channels": 24,
    "use_additional_conditions": True,
}  # fmt: skip
_SD3 = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 24, "caption_projection_dim": 64,
    "pooled_projection_dim": 20, "pos_embed_max_size": 24, "qk_norm": "rms_norm", "dual_attention_layers": [0],
}  # fmt: skip
_FLUX = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 16, "num_layers": 1, "num_single_layers": 2,
    "attention_head_dim": 16, "num_attention_heads": 4, "joint_attention_dim": 24, "pooled_projection_dim": 20,
    "guidance_embeds": True, "axes_dims_rope": [4, 6, 6],
}  # fmt: skip

TINY: Mapping[str, Config] = MappingProxyType(
    {
        "unet2d": _UNET2D,
        "sd": with_sizes(_SD, L=7),
        "sdxl": with_sizes(_SDXL, L=7),
        "inpainting": with_sizes({**_SD, "in_channels": 9}, L=7),
        "controlnet": with_sizes(with_controlnet(_SD), L=7),
        "unet1d": _UNET1D,
        "dit": _DIT,
        "pixart": with_sizes(_PIXART, L=7),
        "sd3": with_sizes(_SD3, L=7),
        "flux": with_sizes(_FLUX, S=64, L=7),
    }
)

# stable-diffusion-v1-5: unet/config.json
SD15 = {
    "_class_name": "UNet2DConditionModel", "sample_size": 64, "in_channels": 4, "out_channels": 4,
    "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"], "layers_per_block": 2,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}  # fmt: skip
# stabilityai/stable-diffusion-xl-base-1.0: unet/config.json
SDXL = {
    "_class_name": "UNet2DConditionModel", "sample_size": 128, "in_channels": 4, "out_channels": 4,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048, "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "projection_class_embeddings_input_dim": 2816, "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
}  # fmt: skip
# facebook/DiT-XL-2-256: transformer/config.json
DIT_XL_2 = {
    "_class_name": "DiTTransformer2DModel", "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
    "out_channels": 8, "num_layers": 28, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000,
}  # fmt: skip
# PixArt-alpha/PixArt-XL-2-512x512: transformer/config.json
PIXART_XL_2 = {
    "_class_name": "PixArtTransformer2DModel", "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
    "out_channels": 8, "num_layers": 28, "sample_size": 64, "cross_attention_dim": 1152, "caption_channels": 4096,
}  # fmt: skip
# stabilityai/stable-diffusion-3-medium: transformer/config.json
SD3_MEDIUM = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 128, "patch_size": 2, "in_channels": 16, "num_layers": 24,
    "attention_head_dim": 64, "num_attention_heads": 24, "joint_attention_dim": 4096, "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048, "out_channels": 16, "pos_embed_max_size": 192,
}  # fmt: skip
# the widths of black-forest-labs/FLUX.1-dev with a ninth of its blocks: 1.45 billion parameters
FLUX_SHAPED = {
    "_class_name": "FluxTransformer2DModel", "in_channels": 64, "num_layers": 2, "num_single_layers": 5,
    "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096, "pooled_projection_dim": 768,
    "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip

FULL: Mapping[str, Config] = MappingProxyType(
    {
        "sd15": SD15,
        "sdxl": SDXL,
        "dit_xl_2": DIT_XL_2,
        "pixart_xl_2": PIXART_XL_2,
        "sd3_medium": SD3_MEDIUM,
        "flux_shaped": FLUX_SHAPED,
    }
)
SCHEDULERS: Mapping[str, Config] = MappingProxyType(
    {
        "SD3Transformer2DModel": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
        "FluxTransformer2DModel": {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    }
)
STABLE = {
    "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    "steps_offset": 1, "set_alpha_to_one": False, "clip_sample": False,
}  # fmt: skip


def scheduler(config: Config) -> Config:
    """The scheduler config that networks of this class are sampled with."""
    return dict(SCHEDULERS.get(config["_class_name"], STABLE))


def model(config: Config, sampler: Sampler | None = None, seed: int = 0) -> Model:
    """The Model of a config with seeded random weights. Zero-initialized layers get small weights, so that every layer
    has an effect."""
    import torch

    from optimize.architectures.assembled import assembled
    from optimize.diffusion.sampling import Sampler

    torch.manual_seed(seed)
    made = assembled(config["_class_name"], config, scheduler(config), sampler or Sampler(steps=4))
    with torch.no_grad():
        for p in made.module.parameters():
            if not bool(p.any()):
                p.normal_(std=0.02)
    return made


def main() -> None:
    """Print a line a network."""
    from optimize.architectures.components import skeleton
    from optimize.diffusion.network import example_inputs
    from optimize.roofline.layers import layers, macs, params

    for name, config in FULL.items():
        module, inputs = skeleton(config)
        found = layers(module, feed=example_inputs(inputs, 1))
        print(f"{name:14}{params(found) / 1e6:10.1f} M parameters{macs(found) / 1e9:10.1f} G MACs")


if __name__ == "__main__":
    main()
