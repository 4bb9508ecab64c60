"""Registered architectures: how to build a network from its config and what its inputs are.

Artifacts name an entry of this table; an import path never comes out of an artifact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimize.denoiser import Conditioning
from optimize.errors import unknown
from optimize.network import TensorSpec

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Architecture:
    """`build(config)` gives the module; the other functions read the config."""

    build: Callable[[dict[str, Any]], nn.Module]
    inputs: Callable[[dict[str, Any]], tuple[TensorSpec, ...]]
    conditioning: Callable[[dict[str, Any]], Conditioning]
    shape: Callable[[dict[str, Any]], tuple[int, int, int]]


def _build_unet2d(config: dict[str, Any]) -> nn.Module:
    from diffusers import UNet2DModel

    return UNet2DModel.from_config(config)


def _unet2d_inputs(config: dict[str, Any]) -> tuple[TensorSpec, ...]:
    c, h, w = _unet2d_shape(config)
    common = (TensorSpec("sample", ("B", c, h, w)), TensorSpec("timestep", ("B",)))
    return (*common, TensorSpec("class_labels", ("B",), "int64")) if config.get("num_class_embeds") else common


def _unet2d_conditioning(config: dict[str, Any]) -> Conditioning:
    """The last class embedding is the null class, as classifier-free training adds it."""
    count = config.get("num_class_embeds")
    return Conditioning("class", count - 1, count - 1) if count else Conditioning()


def _unet2d_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    size = config["sample_size"]
    h, w = (size, size) if isinstance(size, int) else size
    return config["in_channels"], h, w


ARCHITECTURES = {"UNet2DModel": Architecture(_build_unet2d, _unet2d_inputs, _unet2d_conditioning, _unet2d_shape)}


def architecture(name: str) -> Architecture:
    """The entry called `name`; UserError with the nearest name otherwise."""
    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]
