"""Widths of the trunk of a conditional U-Net: what residual sums chain together, and who reads it behind which skip.

The network's forward is walked by hand, block by block, with widths in the place of tensors: sums join widths, skips
lay them side by side. Within a transformer its tokens have a width of their own. Norms follow their widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from optimize.pruning.dependency import Coupled, Slice

if TYPE_CHECKING:
    from torch import nn

BLOCKS = frozenset(
    {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "CrossAttnUpBlock2D", "UpBlock2D"}
)


def walkable(module: nn.Module) -> bool:
    """Whether the network is a UNet2DConditionModel of the blocks that are known here."""
    if type(module).__name__ != "UNet2DConditionModel":
        return False
    unet: Any = module
    blocks = [*unet.down_blocks, *unet.up_blocks, unet.mid_block]
    attentions = [a for b in blocks for a in getattr(b, "attentions", ())]
    return (
        {type(b).__name__ for b in blocks} <= BLOCKS
        and all(type(a).__name__ == "Transformer2DModel" for a in attentions)
        and all(type(t).__name__ == "BasicTransformerBlock" for a in attentions for t in a.transformer_blocks)
        and isinstance(unet.conv_norm_out, _torch().nn.GroupNorm)
    )


def trunk_groups(module: nn.Module, keep_down: bool = False) -> list[Coupled]:
    """Every width of the trunk, sorted by name. `keep_down` leaves out what a ControlNet's residuals are added to: the
    outputs of the way down and of the middle. Nothing here reaches the network's own output."""
    unet: Any = module
    walk = _Walk({child: path for path, child in module.named_modules()})
    h: Tensor = [walk.made(unet.conv_in)]
    skips = [h]
    for block in unet.down_blocks:
        h = _layers(walk, block, h, skips)
    h = _middle(walk, unet.mid_block, h)
    if keep_down:
        for part in (*(p for skip in skips for p in skip), *h):
            part.top().fixed = True
    for block in unet.up_blocks:
        h = _upwards(walk, block, h, skips)
    walk.read(unet.conv_norm_out, h)
    walk.read(unet.conv_out, h)
    return walk.groups()


@dataclass(eq=False)
class _Width:
    """Channels that go together; `slices` (layer, outputs, start) of all that make or read them. Joined ones point to
    the one that stands for them."""

    size: int
    slices: list[tuple[Any, bool, int]] = field(default_factory=list)
    fixed: bool = False
    joined: _Width | None = None

    def top(self) -> _Width:
        return self if self.joined is None else self.joined.top()


Tensor = Sequence[_Width]  # widths side by side, as concatenation lays them


@dataclass
class _Walk:
    """Collects the widths met on the way."""

    paths: dict[Any, str]
    widths: list[_Width] = field(default_factory=list)

    def made(self, layer: Any) -> _Width:
        """The new width of a layer's outputs."""
        width = _Width(layer.weight.shape[0], [(layer, True, 0)])
        self.widths.append(width)
        return width

    def read(self, layer: Any, h: Tensor) -> None:
        """A layer's inputs, or a norm's channels, are the widths of `h`."""
        outputs, start = _is_norm(layer), 0
        for part in h:
            part.top().slices.append((layer, outputs, start))
            start += part.top().size

    def joins(self, made: _Width, h: Tensor) -> _Width:
        """The sum of what a layer made and of `h`, which is one width."""
        (other,) = h
        mine, theirs = made.top(), other.top()
        if mine is not theirs:
            theirs.slices += mine.slices
            mine.joined = theirs
        return theirs

    def groups(self) -> list[Coupled]:
        """The widths that may change, as groups."""
        tops = [w for w in self.widths if w.joined is None and not w.fixed]
        return sorted((self._coupled(w) for w in tops), key=lambda group: group.name)

    def _coupled(self, width: _Width) -> Coupled:
        placed: dict[tuple[Any, bool], tuple[list[int], list[int]]] = {}
        for layer, outputs, start in width.slices:
            own, channel = placed.setdefault((layer, outputs), ([], []))
            own += range(start, start + width.size)
            channel += range(width.size)
        slices = tuple(
            Slice(self.paths[layer], layer, outputs, tuple(own), tuple(channel))
            for (layer, outputs), (own, channel) in placed.items()
        )
        made = [s.path for s in slices if s.outputs and not _is_norm(s.layer)]
        norms = [s for s in slices if hasattr(s.layer, "num_groups")]
        alone = tuple(s.path for s in norms if s.layer.num_channels == width.size)
        blocks = [s.layer.num_groups for s in norms if s.path in alone] or [s.layer.num_groups for s in norms] or [1]
        return Coupled(min(made), width.size, slices, alone, math.gcd(width.size, max(blocks)), 0)


def _layers(walk: _Walk, block: Any, h: Tensor, skips: list[Tensor]) -> Tensor:
    """A block on the way down; what it leaves for the way up is appended to `skips`."""
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        h = _attended(walk, attention, _resnet(walk, resnet, h))
        skips.append(h)
    for resampling in block.downsamplers or ():
        h = _resampled(walk, resampling, h)
        skips.append(h)
    return h


def _middle(walk: _Walk, block: Any, h: Tensor) -> Tensor:
    if block is None:
        return h
    h = _resnet(walk, block.resnets[0], h)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        h = _resnet(walk, resnet, _attended(walk, attention, h))
    return h


def _upwards(walk: _Walk, block: Any, h: Tensor, skips: list[Tensor]) -> Tensor:
    attentions = getattr(block, "attentions", None) or [None] * len(block.resnets)
    for resnet, attention in zip(block.resnets, attentions, strict=True):
        h = _attended(walk, attention, _resnet(walk, resnet, [*h, *skips.pop()]))
    for resampling in block.upsamplers or ():
        h = _resampled(walk, resampling, h)
    return h


def _resnet(walk: _Walk, m: Any, h: Tensor) -> Tensor:
    walk.read(m.norm1, h)
    walk.read(m.conv1, h)
    made = walk.made(m.conv2)
    if m.conv_shortcut is None:
        return [walk.joins(made, h)]
    walk.read(m.conv_shortcut, h)
    return [walk.joins(walk.made(m.conv_shortcut), [made])]


def _resampled(walk: _Walk, m: Any, h: Tensor) -> Tensor:
    if not m.use_conv:
        return h
    walk.read(m.conv, h)
    return [walk.made(m.conv)]


def _attended(walk: _Walk, m: Any, h: Tensor) -> Tensor:
    """A transformer over the positions of `h`, added to it; its tokens have a width of their own."""
    if m is None:
        return h
    walk.read(m.norm, h)
    walk.read(m.proj_in, h)
    tokens = [walk.made(m.proj_in)]
    for block in m.transformer_blocks:
        for norm in (block.norm1, block.norm2, block.norm3):
            if norm is not None:
                walk.read(norm, tokens)
        for attention in (block.attn1, block.attn2):
            if attention is not None:
                tokens = [_attention(walk, attention, tokens)]
        walk.read(block.ff.net[0].proj, tokens)
        tokens = [walk.joins(walk.made(block.ff.net[2]), tokens)]
    walk.read(m.proj_out, tokens)
    return [walk.joins(walk.made(m.proj_out), h)]


def _attention(walk: _Walk, m: Any, tokens: Tensor) -> _Width:
    """Queries read the tokens; keys and values as well, unless they read the text."""
    for layer in (m.to_q,) if m.is_cross_attention else (m.to_q, m.to_k, m.to_v):
        walk.read(layer, tokens)
    return walk.joins(walk.made(m.to_out[0]), tokens)


def _is_norm(layer: Any) -> bool:
    nn = _torch().nn
    return isinstance(layer, nn.GroupNorm | nn.LayerNorm)


def _torch() -> Any:
    import torch

    return torch
