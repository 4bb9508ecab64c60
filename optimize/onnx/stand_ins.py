"""Modules that torch's older exporter has no form of compute the same by other operators while it traces.

diffusers' resampling of one-dimensional signals writes its kernel into a zero matrix, at every channel, and convolves with
that; the exporter does not know the shape of a matrix that is written into. Here the kernel goes over every channel alone.
torch's root-mean-square norm is an operator that it does not know; here it is written out. Flux' rotary embedding takes a
slice of a shape, which the exporter notes as numbers; here the last dim alone is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

FLUX, ROTARY = "diffusers.models.transformers.transformer_flux", "apply_rotary_emb"


@contextmanager
def stand_ins(module: nn.Module) -> Iterator[None]:
    """Inside the block, the parts of `module` that have a stand-in compute by it."""
    forms, flux = _forms(), sys.modules.get(FLUX)
    replaced = [part for part in module.modules() if type(part) in forms]
    for part in replaced:
        part.forward = partial(forms[type(part)], part)
    rotary = getattr(flux, ROTARY, None)
    if rotary is not None:
        setattr(flux, ROTARY, partial(_rotary, rotary))
    try:
        yield
    finally:
        for part in replaced:
            del part.forward
        if rotary is not None:
            setattr(flux, ROTARY, rotary)


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


def _rotary(
    own: Any, x: Tensor, freqs: Any, use_real: bool = True, use_real_unbind_dim: int = -1, sequence_dim: int = 2
) -> Any:
    """x cos + (x turned by a quarter) sin, where pairs (real, imaginary) stand side by side; other forms are diffusers' own."""
    import torch

    if not use_real or use_real_unbind_dim != -1:
        return own(x, freqs, use_real, use_real_unbind_dim, sequence_dim)
    cos, sin = (f[None, :, None] if sequence_dim == 1 else f[None, None] for f in freqs)
    real, imaginary = x.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(3)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
