"""Modules that torch's older exporter has no form of compute the same by other operators while it traces.

diffusers' resampling of one-dimensional signals writes its kernel into a zero matrix, at every channel, and convolves with
that; the exporter does not know the shape of a matrix that is written into. Here the kernel goes over every channel alone.
torch's root-mean-square norm is an operator that it does not know; here it is written out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def stand_ins(module: nn.Module) -> Iterator[None]:
    """Inside the block, the parts of `module` that have a stand-in compute by it."""
    forms = _forms()
    replaced = [part for part in module.modules() if type(part) in forms]
    for part in replaced:
        part.forward = partial(forms[type(part)], part)
    try:
        yield
    finally:
        for part in replaced:
            del part.forward


def _forms() -> dict[type[nn.Module], Callable[..., Tensor]]:
    from diffusers.models.unets.unet_1d_blocks import Downsample1d, Upsample1d
    from torch import nn

    return {Downsample1d: _down, Upsample1d: _up, nn.RMSNorm: _rms}


def _down(part: Any, x_BCL: Tensor) -> Tensor:
    from torch.nn import functional as F

    padded = F.pad(x_BCL, (part.pad,) * 2, part.pad_mode)
    kernel = _of_each_channel(part, padded)
    return F.conv1d(padded, kernel, stride=2, groups=kernel.shape[0])


def _up(part: Any, x_BCL: Tensor, temb: Tensor | None = None) -> Tensor:
    from torch.nn import functional as F

    padded = F.pad(x_BCL, ((part.pad + 1) // 2,) * 2, part.pad_mode)
    kernel = _of_each_channel(part, padded)
    return F.conv_transpose1d(padded, kernel, stride=2, padding=part.pad * 2 + 1, groups=kernel.shape[0])


def _of_each_channel(part: Any, x_BCL: Tensor) -> Tensor:
    """The kernel, once a channel: (C, 1, K)."""
    kernel: Tensor = part.kernel
    return kernel.to(x_BCL)[None, None].repeat(int(x_BCL.shape[1]), 1, 1)


def _rms(part: Any, x: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dims, times the weight."""
    import torch

    dims = tuple(range(-len(part.normalized_shape), 0))
    eps = torch.finfo(x.dtype).eps if part.eps is None else part.eps
    normed = x * torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + eps)
    return normed if part.weight is None else normed * part.weight
