"""Parameters and multiply-accumulates of published networks, built from their configurations, against published figures.

Convention: one MAC is one multiplication with its addition, half a FLOP pair; convolutions, linear layers, matrix
products and both products of attention count, nothing else; one sample through the network once. The networks are built
on the meta device, without weights. Published MACs of DDPM come from a counter that hooks modules and so leaves out
attention's two products: ours are printed by that convention, which is compared, and by ours. Prints a table; exits with
1 where a figure is off by more than a per cent.

    python benchmarks/known_networks.py
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from optimize.architectures.components import skeleton
from optimize.diffusion.network import example_inputs
from optimize.roofline.layers import layers, macs, params
from optimize.roofline.published import SD15_UNET

TOLERANCE = 0.01

# google/ddpm-cifar10-32: config.json
DDPM_CIFAR10 = {
    "_class_name": "UNet2DModel", "act_fn": "silu", "attention_head_dim": None,
    "block_out_channels": (128, 256, 256, 256), "center_input_sample": False,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"), "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-6, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
# CompVis/stable-diffusion-v1-4: unet/config.json; the same network as version 1.5
SD14_UNET = dict(SD15_UNET)
# stabilityai/stable-diffusion-xl-base-1.0: unet/config.json
SDXL_UNET = {
    "_class_name": "UNet2DConditionModel", "act_fn": "silu", "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "attention_head_dim": (5, 10, 20), "block_out_channels": (320, 640, 1280),
    "cross_attention_dim": 2048, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "in_channels": 4, "layers_per_block": 2, "out_channels": 4, "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128, "transformer_layers_per_block": (1, 2, 10),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "use_linear_projection": True,
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A network and what was published of it, None where nothing was found; `bare_macs` without attention's products."""

    name: str
    config: dict[str, Any]
    params: float
    bare_macs: float | None
    macs: float | None
    source: str


KNOWN = (
    Known("DDPM CIFAR-10", DDPM_CIFAR10, 35.7e6, 6.1e9, None, "Fang et al. 2023 (Diff-Pruning); 32x32"),
    Known(
        "Stable Diffusion 1.4 U-Net",
        SD14_UNET,
        859.5e6,
        None,
        404.4e9,
        "keras_cv_attention_models, v1.5; 64x64 latents",
    ),
    Known("Stable Diffusion XL U-Net", SDXL_UNET, 2.57e9, None, None, "Podell et al. 2023 (2.6B); 128x128 latents"),
)


def figures(known: Known) -> list[tuple[str, float | None, int]]:
    """(figure, published, ours) of one network."""
    module, inputs = skeleton(known.config)
    found = layers(module, feed=example_inputs(inputs, 1))
    outside = sum(layer.macs for layer in found if layer.kind not in ("attention", "matmul"))
    return [
        ("parameters", known.params, params(found)),
        ("MACs, without attention", known.bare_macs, outside),
        ("MACs", known.macs, macs(found)),
    ]


def main() -> int:
    """0 where every published figure is met, 1 where one is not."""
    print(f"{'network':<28}{'figure':<25}{'published':>14}{'ours':>20}{'off by':>9}   source")
    good = True
    for known in KNOWN:
        for figure, published, ours in figures(known):
            if published is None:
                print(f"{known.name:<28}{figure:<25}{'–':>14}{ours:>20,}{'–':>9}")
                continue
            off = ours / published - 1
            good &= abs(off) <= TOLERANCE
            verdict = "" if abs(off) <= TOLERANCE else "DIFFERS; "
            print(f"{known.name:<28}{figure:<25}{published:>14,.0f}{ours:>20,}{off:>+9.2%}   {verdict}{known.source}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
