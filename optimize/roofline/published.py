"""Rates of GPUs from published figures: Stable Diffusion 1.5 at 512x512, the only ones for several classes at once.

Source: "PyTorch 2.0", documentation of diffusers (v0.17), text-to-image, FP16, channels last, PyTorch nightly of 2023
with `torch.compile(mode="reduce-overhead")`, in iterations a second. The pipeline is guided, so one iteration is one
U-Net call at twice the batch of images, with a scheduler step beside it; 77 tokens, 64x64 latents. Which A100 it was
is not said; 40 GB is assumed. The page gives T4's batch 16 as 1.99 seconds an iteration.

The fitted share of the bandwidth is small, since it also holds what kernels lose between arithmetic and memory: on a
GPU a layer's bound says which term is longer in this fit, no more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from optimize.hardware.targets import Target, target
from optimize.roofline.fitting import Case, Free, log_error
from optimize.roofline.rates import Device, Rates, Table

IMAGES = (1, 4, 16)  # batch of images; the U-Net runs twice that
COMPILED: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        "a100": (49.74, 17.27, 4.68),
        "v100": (22.17, 6.86, 1.90),
        "rtx3090": (25.69, 7.30, 1.91),
        "rtx4090": (49.81, 15.59, 3.85),
        "t4": (7.56, 1.99, 1 / 1.99),
    }
)
SD15_UNET: Mapping[str, Any] = MappingProxyType(
    {
        "_class_name": "UNet2DConditionModel",
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "down_block_types": (*3 * ("CrossAttnDownBlock2D",), "DownBlock2D"),
        "up_block_types": ("UpBlock2D", *3 * ("CrossAttnUpBlock2D",)),
    }
)
# Shares of a peak stay below what well-tuned kernels reach of it; the cache's gain below what vendors print of theirs.
FREE: Free = {
    "compute.default": (0.2, 0.8),
    "bandwidth": (0.05, 0.9),
    "cache": (1.0, 15.0),
    "overhead_s": (1e-6, 5e-5),
}
START = Rates(
    name="published Stable Diffusion 1.5 figures, torch.compile, FP16",
    compute={"default": 0.6},
    bandwidth=0.7,
    cache=3.0,
    overhead_s=6e-6,
    spread=0.5,
    samples=len(COMPILED),
)


def gpu_rates(target: Target) -> Rates:
    """Rates of a GPU class. One set for all, and a scale where the class has figures of its own; what `fit` and `scale`
    give is written out, so that a plan need not trace a U-Net, and a test fits again. The spread is that of GPUs left
    out of the fit, also for those with figures of their own: other networks and other software differ as well."""
    known = SCALES.get(target.name)
    name = f"{START.name}, {'its own among them' if known else 'of other GPUs'}"
    return Rates(**{**vars(START), **FITTED, "name": name, "scale": known or 1.0})


def scale(own: Sequence[Case], rates: Rates) -> float:
    """Measured over predicted time of a GPU's own figures, geometric mean."""
    errors = [log_error(case, Table(case.layers, Device(case.target, rates), "fp16"), rates) for case in own]
    return math.exp(-sum(errors) / len(errors))


FITTED: Mapping[str, Any] = MappingProxyType(
    {
        "compute": MappingProxyType({"default": 0.8}),
        "bandwidth": 0.1387,
        "cache": 13.52,
        "overhead_s": 5.02e-6,
        "spread": 0.3227,
        "samples": 5,
    }
)
SCALES: Mapping[str, float] = MappingProxyType(
    {"a100": 1.0, "v100": 1.045, "rtx3090": 0.806, "rtx4090": 0.752, "t4": 1.347}
)


def cases() -> list[Case]:
    """The published figures as measured calls, a group a GPU."""
    from optimize.architectures.components import skeleton
    from optimize.diffusion.network import example_inputs
    from optimize.roofline.layers import layers

    module, inputs = skeleton(dict(SD15_UNET))
    found = {n: layers(module, feed=example_inputs(inputs, 2 * n)) for n in IMAGES}
    return [
        Case(name, found[n], target(name), 1 / rate)
        for name, rates in COMPILED.items()
        for n, rate in zip(IMAGES, rates)
    ]
