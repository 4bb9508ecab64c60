"""A tiny model in stock diffusers layout."""

from __future__ import annotations

from pathlib import Path

import torch


def make_tiny_folder(folder: Path) -> Path:
    """A class-conditional UNet2DModel (16x16, widths 16/32/32, 10 classes and a null) in stock diffusers layout."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=11,
    )
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False).save_pretrained(
        folder / "scheduler"
    )
    return folder
