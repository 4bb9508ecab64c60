"""Images as feature networks expect them: three channels, the network's side, the network's normalization.

Every resize is stated, since it moves FID more than most models differ by (Parmar et al., arXiv 2104.11222).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimize.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation in [0, 1]
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def rgb(images: Tensor) -> Tensor:
    """(N,3,H,W) of (N,1 or 3,H,W): grey is repeated. UserError for other channel counts."""
    if images.shape[1] not in (1, 3):
        raise UserError(
            f"quality.features: images have {images.shape[1]} channels; this network sees grey or colour images (1 or 3). Give a network of your own: {{import: package.module:name}}."
        )
    return images.expand(-1, 3, -1, -1)


def eight_bit(images: Tensor) -> Tensor:
    """Values 0..255, rounded, of images in [-1, 1]: what a saved picture holds."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round()


def smooth(images: Tensor, height: int, width: int, mode: str = "bicubic") -> Tensor:
    """Resized with antialiasing, half-pixel centres; untouched where the size is right."""
    from torch.nn.functional import interpolate

    if tuple(images.shape[2:]) == (height, width):
        return images
    return interpolate(images, (height, width), mode=mode, align_corners=False, antialias=True)


def like_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear as TensorFlow 1 does it, which FID was defined with: corner-anchored positions, no antialiasing."""
    return _lines(_lines(images, side, 2), side, 3)


def _lines(images: Tensor, side: int, axis: int) -> Tensor:
    """One axis resampled at positions k · size / side."""
    import torch

    size = images.shape[axis]
    place = torch.arange(side, dtype=images.dtype, device=images.device) * (size / side)
    low = place.long()
    share = (place - low).view([-1 if a == axis else 1 for a in range(4)])
    below, above = images.index_select(axis, low), images.index_select(axis, (low + 1).clamp(max=size - 1))
    return below + (above - below) * share


def centred(images: Tensor, side: int) -> Tensor:
    """The shorter side resized to `side`, then the middle square: CLIP's own preparation."""
    height, width = images.shape[2:]
    scale = side / min(height, width)
    resized = smooth(images, *(max(side, round(s * scale)) for s in (height, width)))
    top, left = ((s - side) // 2 for s in resized.shape[2:])
    return resized[:, :, top : top + side, left : left + side]


def normalized(images: Tensor, constants: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Images in [-1, 1], kept within it after a resize, as (x - mean) / deviation of values in [0, 1]."""
    mean, deviation = (images.new_tensor(c).view(1, -1, 1, 1) for c in constants)
    return ((images.clamp(-1, 1) + 1) / 2 - mean) / deviation
