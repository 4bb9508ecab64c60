"""Widths inside the blocks of diffusers' conditional networks: heads, feed-forwards, the middle of residual blocks.

These widths meet no residual sum, so a group is a handful of layers named by the block's class, and nothing has to be
traced: tracing stumbles over fused attention, gated units and packed projections. Inputs keep their widths, a
ControlNet's residuals among them; so does the trunk between the blocks, but for the U-Nets of `trunk.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from optimize.pruning import trunk
from optimize.pruning.dependency import Coupled, Slice, by_layer

if TYPE_CHECKING:
    from torch import Tensor, nn

# Networks that hold one of these are pruned inside their blocks.
OPAQUE = frozenset(
    {
        "BasicTransformerBlock",
        "JointTransformerBlock",
        "FluxTransformerBlock",
        "FluxSingleTransformerBlock",
        "UNet1DModel",
    }
)


def opaque(module: nn.Module) -> bool:
    """Whether a network is one that is not traced, because tracing stumbles over its blocks."""
    return any(type(child).__name__ in OPAQUE for child in module.modules())


def inner_groups(module: nn.Module) -> list[Coupled]:
    """Every width inside a known block, sorted by name.

    Left out: attentions with one head, since part of a head would change its scale, and those whose queries have other
    heads than their keys or are normalized across heads.
    """
    found: list[Coupled] = []
    for path, child in module.named_modules():
        find = _INSIDE.get(type(child).__name__)
        if find is not None:
            found += find(f"{path}." if path else "", child)
    return sorted(found, key=lambda group: group.name)


def known_groups(module: nn.Module, inputs: Iterable[str]) -> list[Coupled]:
    """All groups of a network that is not traced: inside its blocks, and in the trunk where it can be walked. `inputs`
    are the names of its inputs: widths that a given residual is added to stay."""
    found = inner_groups(module)
    if trunk.walkable(module):
        found += trunk.trunk_groups(module, keep_down=any("additional_residual" in name for name in inputs))
    return sorted(found, key=lambda group: group.name)


def remove(chosen: Iterable[tuple[Coupled, Collection[int]]]) -> None:
    """Remove the given channels of each group from every layer coupled to it, in place; indices are those before."""
    for layer, outputs, own in by_layer(chosen):
        cut(layer, outputs, own)


def cut(layer: Any, outputs: bool, gone: Collection[int]) -> None:
    """Remove outputs (or inputs) of a linear layer or convolution, or channels of a norm, in place."""
    from torch import nn

    names: tuple[str, ...] = ("weight", "bias")
    kind, dim = "features" if isinstance(layer, nn.Linear) else "channels", 0
    if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
        size = "num_channels"
    elif outputs:
        size = f"out_{kind}"
    else:
        names, dim, size = ("weight",), 1, f"in_{kind}"
    for name in names:
        if getattr(layer, name) is not None:
            setattr(layer, name, _without(getattr(layer, name), dim, gone))
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = (layer.normalized_shape[0] - len(gone),)
    else:
        setattr(layer, size, layer.weight.shape[dim])


def _without(weight: Tensor, dim: int, gone: Collection[int]) -> nn.Parameter:
    import torch

    kept = torch.tensor([i for i in range(weight.shape[dim]) if i not in gone], device=weight.device)
    return torch.nn.Parameter(weight.detach().index_select(dim, kept), requires_grad=weight.requires_grad)


def _slice(path: str, layer: Any, outputs: bool, width: int, start: int = 0) -> Slice:
    """`width` entries of a layer from `start`; with outputs that are a multiple of the width, all of them in turn."""
    times = layer.out_features // width if outputs and hasattr(layer, "out_features") else 1
    own = tuple(range(start, start + times * width))
    return Slice(path, layer, outputs, own, tuple(range(width)) * times)


def _group(slices: list[Slice], width: int, norm: str = "", norm_groups: int = 1, head_width: int = 0) -> Coupled:
    name = min(s.path for s in slices if s.outputs and s.path != norm)
    return Coupled(name, width, tuple(slices), (norm,) if norm else (), norm_groups, head_width)


def _attention(path: str, m: Any) -> Iterator[Coupled]:
    """Heads of an attention whose output projection is its own."""
    if getattr(m, "to_out", None) is not None and _has_heads(m):
        ends = [("to_out.0", m.to_out[0]), ("to_add_out", getattr(m, "to_add_out", None))]
        width = m.to_q.out_features
        outs = [_slice(path + name, layer, False, width) for name, layer in ends if layer is not None]
        yield _heads(path, m, outs)


def _has_heads(m: Any) -> bool:
    found = [getattr(m, name, None) for name in ("to_q", "to_k", "to_v")]
    projections = [layer for layer in found if layer is not None]
    if m.heads < 2 or getattr(m, "fused_projections", False) or len(projections) < 3:
        return False
    width = projections[0].out_features
    weights = [getattr(getattr(m, name, None), "weight", None) for name in ("norm_q", "norm_k")]
    across = any(weight is not None and weight.numel() == width for weight in weights)
    return not across and all(layer.out_features == width for layer in projections)


def _heads(path: str, m: Any, ends: list[Slice]) -> Coupled:
    names = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    width, found = m.to_q.out_features, [(name, getattr(m, name, None)) for name in names]
    slices = [_slice(path + name, layer, True, width) for name, layer in found if layer is not None]
    return _group([*slices, *ends], width, head_width=width // m.heads)


def _single(path: str, m: Any) -> Iterator[Coupled]:
    """Flux's block whose output projection reads attention and feed-forward side by side."""
    attended, hidden = m.attn.to_q.out_features, m.proj_mlp.out_features
    if _has_heads(m.attn):
        yield _heads(f"{path}attn.", m.attn, [_slice(f"{path}proj_out", m.proj_out, False, attended)])
    ends = _slice(f"{path}proj_out", m.proj_out, False, hidden, attended)
    yield _group([_slice(f"{path}proj_mlp", m.proj_mlp, True, hidden), ends], hidden)


def _feed_forward(path: str, m: Any) -> Iterator[Coupled]:
    """The hidden width; of a gated unit both halves of the projection."""
    width, first = m.net[2].in_features, m.net[0].proj
    if first.out_features % width == 0:
        slices = [_slice(f"{path}net.0.proj", first, True, width), _slice(f"{path}net.2", m.net[2], False, width)]
        yield _group(slices, width)


def _between(first: str, norm: str, last: str, *told: str) -> Callable[[str, Any], Iterator[Coupled]]:
    """The width between two convolutions with a group norm, and projections of the time that are added there."""

    def find(path: str, m: Any) -> Iterator[Coupled]:
        width, middle = m.get_submodule(first).out_channels, m.get_submodule(norm)
        slices = [_slice(path + first, m.get_submodule(first), True, width), _slice(path + norm, middle, True, width)]
        times = [(name, getattr(m, name, None)) for name in told]
        slices += [_slice(path + name, layer, True, width) for name, layer in times if layer is not None]
        slices.append(_slice(path + last, m.get_submodule(last), False, width))
        yield _group(slices, width, path + norm, middle.num_groups)

    return find


def _attention_1d(path: str, m: Any) -> Iterator[Coupled]:
    if m.num_heads > 1:
        width = m.query.out_features
        slices = [_slice(path + name, getattr(m, name), True, width) for name in ("query", "key", "value")]
        ends = _slice(f"{path}proj_attn", m.proj_attn, False, width)
        yield _group([*slices, ends], width, head_width=width // m.num_heads)


_INSIDE: dict[str, Callable[[str, Any], Iterator[Coupled]]] = {
    "Attention": _attention,
    "FluxAttention": _attention,
    "FluxSingleTransformerBlock": _single,
    "FeedForward": _feed_forward,
    "ResnetBlock2D": _between("conv1", "norm2", "conv2", "time_emb_proj"),
    "ResConvBlock": _between("conv_1", "group_norm_1", "conv_2"),
    "ResidualTemporalBlock1D": _between("conv_in.conv1d", "conv_in.group_norm", "conv_out.conv1d", "time_emb"),
    "OutConv1DBlock": _between("final_conv1d_1", "final_conv1d_gn", "final_conv1d_2"),
    "SelfAttention1d": _attention_1d,
}
