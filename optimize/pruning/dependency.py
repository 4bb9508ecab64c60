"""Which slices of which layers can only be removed together: torch-pruning's dependency graph, in our own terms.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023 (arXiv 2301.12900). torch-pruning traces the network
and removes coupled slices; what it does not know about diffusers' modules (heads, sizes kept as attributes) is here.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimize.errors import EnvironmentLacks, UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Slice:
    """One layer's part in a group: entry `own[i]` along its outputs (or inputs) belongs to channel `channel[i]`."""

    path: str
    layer: nn.Module
    outputs: bool
    own: tuple[int, ...]
    channel: tuple[int, ...]


@dataclass(frozen=True)
class Coupled:
    """A group of `width` channels with all its slices. `head_width` > 0: the inside of an attention, cut by heads.

    `norms` are the paths of the group norms that see these channels alone; `norm_groups` is the number of contiguous
    blocks these norms make of them (those behind a concatenation, where there is no such norm; 1 without any).
    """

    name: str
    width: int
    slices: tuple[Slice, ...]
    norms: tuple[str, ...]
    norm_groups: int
    head_width: int


def trace(module: nn.Module, feed: dict[str, Any], output: Callable[[Any], Tensor]) -> Any:
    """torch-pruning's graph of `module` (its parameters must require gradients). Raises EnvironmentLacks without it."""
    import torch

    try:
        import torch_pruning
    except ImportError as error:
        raise EnvironmentLacks(
            f"pruning needs torch-pruning ({error}). Install it: pip install torch-pruning"
        ) from error
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(module, feed, output_transform=output, verbose=False)


def coupled_groups(graph: Any, module: nn.Module) -> list[Coupled]:
    """Every group that may be pruned, sorted by name.

    Left out: channels that reach the network's output; groups of linear layers alone outside attention (embeddings of
    time and class, next to no MACs); attentions with one head, since part of a head would change its scale.
    """
    from torch import nn

    paths = {child: path for path, child in module.named_modules()}
    # Convolutions first: seen from a projection that is split later (scale and shift), channels would count twice.
    traced = [g for kind in (nn.Conv2d, nn.Linear) for g in graph.get_all_groups(root_module_types=(kind,))]
    found = [_coupled(group, paths) for group in traced]
    return sorted((g for g in found if g is not None), key=lambda g: g.name)


def remove(graph: Any, chosen: Iterable[tuple[Coupled, Collection[int]]]) -> None:
    """Remove the given channels of each group from every layer coupled to it, with torch-pruning's layer pruners.

    All groups at once: behind a concatenation a layer belongs to several, and indices are those before any removal.
    """
    for layer, outputs, own in by_layer(chosen):
        pruner = graph.get_pruner_of_module(layer)
        (pruner.prune_out_channels if outputs else pruner.prune_in_channels)(layer, own)


def by_layer(chosen: Iterable[tuple[Coupled, Collection[int]]]) -> list[tuple[nn.Module, bool, list[int]]]:
    """(layer, whether its outputs are cut or its inputs, which of them) for the channels chosen of each group; what
    several groups take from a layer comes together, and layers that lose nothing are left out."""
    cuts: dict[tuple[nn.Module, bool], set[int]] = {}
    for group, channels in chosen:
        for part in group.slices:
            own = {i for i, c in zip(part.own, part.channel, strict=True) if c in channels}
            cuts.setdefault((part.layer, part.outputs), set()).update(own)
    return [(layer, outputs, sorted(own)) for (layer, outputs), own in cuts.items() if own]


def _coupled(group: Any, paths: dict[nn.Module, str]) -> Coupled | None:
    from torch import nn

    slices = tuple(
        Slice(
            paths[item.dep.target.module],
            item.dep.target.module,
            "out" in item.dep.handler.__name__,
            tuple(item.idxs),
            tuple(item.root_idxs),
        )
        for item in group
        if item.dep.target.module in paths
    )
    if any(not item.dep.target.outputs for item in group):  # nothing reads it: the network's own output
        return None
    width, head_width = len(group[0].idxs), _head_width(slices, {path: m for m, path in paths.items()})
    convolutional = any(isinstance(s.layer, nn.Conv2d) for s in slices)
    if isinstance(group[0].dep.target.module, nn.Linear) and (convolutional or not 0 < head_width < width):
        return None
    name = min(s.path for s in slices if s.outputs and not isinstance(s.layer, nn.GroupNorm))
    norms = tuple(s.path for s in slices if isinstance(s.layer, nn.GroupNorm) and s.layer.num_channels == width)
    return Coupled(name, width, slices, norms, _norm_groups(slices, width), 0 if convolutional else head_width)


def _head_width(slices: tuple[Slice, ...], modules: dict[str, nn.Module]) -> int:
    """Channels per head where the slices are the inside of an attention, else 0."""
    for s in slices:
        owner = modules[s.path.rpartition(".")[0]]
        if s.outputs and s.path.rpartition(".")[2] == "to_q" and hasattr(owner, "heads"):
            return len(s.own) // int(owner.heads)
    return 0


def _norm_groups(slices: tuple[Slice, ...], width: int) -> int:
    """Blocks of the norms that see this group alone; of those behind a concatenation where there is no such norm."""
    from torch import nn

    norms = [s.layer for s in slices if isinstance(s.layer, nn.GroupNorm)]
    alone = [n.num_groups for n in norms if n.num_channels == width]
    return math.gcd(width, max(alone or [n.num_groups for n in norms] or [1]))


def norm_sizes(module: nn.Module) -> dict[str, tuple[int, int]]:
    """(groups, channels) of every group norm by path."""
    from torch import nn

    return {path: (m.num_groups, m.num_channels) for path, m in module.named_modules() if isinstance(m, nn.GroupNorm)}


def repair(module: nn.Module, norms: dict[str, tuple[int, int]], whole: set[str], feed: dict[str, Any]) -> None:
    """Make the sizes that modules keep as attributes follow their weights, in place, and run the network once.

    `norms`: `norm_sizes` before; `whole`: the norms that lost whole groups. Resampling modules learn their width from
    what they are given. Raises UserError where the result does not run.
    """
    import torch

    for path, child in module.named_modules():
        if path in norms:
            child.num_groups = regrouped(child.num_channels, *norms[path], path in whole)
        fix = _SIZES.get(type(child).__name__)
        if fix:
            fix(child)
    resampling = [m for m in module.modules() if type(m).__name__ in ("Downsample2D", "Upsample2D")]
    hooks = [m.register_forward_pre_hook(_learn_width) for m in resampling]
    try:
        with torch.no_grad():
            module(**feed)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f"prune: {type(module).__name__} with these blocks cannot be pruned: the result does not run ({error})."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()


def regrouped(channels: int, groups_before: int, channels_before: int, whole: bool) -> int:
    """Number of norm groups for a new width: the same, or the same channels per group (first, where `whole` groups
    went), whichever divides; else the largest divisor. Never more than before."""
    size = channels_before // groups_before
    same, smaller = channels % groups_before == 0, channels % size == 0
    if smaller and (whole or not same):
        return channels // size
    return groups_before if same else max(n for n in range(1, groups_before) if channels % n == 0)


def _learn_width(module: Any, inputs: tuple[Tensor, ...]) -> None:
    module.channels = inputs[0].shape[1]
    conv = getattr(module, "conv", None) or getattr(module, "Conv2d_0", None)
    module.out_channels = getattr(conv, "out_channels", module.channels)


def _resnet(m: Any) -> None:
    m.in_channels, m.out_channels = m.conv1.in_channels, m.conv2.out_channels


def _attention(m: Any) -> None:
    head = m.inner_dim // m.heads
    key = m.to_q if m.to_k is None else m.to_k  # None: keys are those of added projections alone
    m.query_dim, m.cross_attention_dim = m.to_q.in_features, key.in_features
    m.inner_dim, m.inner_kv_dim = m.to_q.out_features, key.out_features
    m.heads = m.sliceable_head_dim = m.inner_dim // head
    m.out_dim = m.to_out[0].out_features
    m.out_context_dim = m.out_dim if m.to_add_out is None else m.to_add_out.out_features


def _flux_attention(m: Any) -> None:
    m.inner_dim = m.to_q.out_features
    m.heads = m.inner_dim // m.head_dim


def _flux_single(m: Any) -> None:
    m.mlp_hidden_dim = m.proj_mlp.out_features


def _attention_1d(m: Any) -> None:
    head = m.channels // m.num_heads
    m.channels = m.query.out_features
    m.num_heads = m.channels // head


_SIZES: dict[str, Callable[[Any], None]] = {
    "ResnetBlock2D": _resnet,
    "Attention": _attention,
    "FluxAttention": _flux_attention,
    "FluxSingleTransformerBlock": _flux_single,
    "SelfAttention1d": _attention_1d,
}
