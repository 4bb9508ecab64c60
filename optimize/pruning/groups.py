"""Which channels to remove so that a network costs what it may: greedy, lowest importance per saved MAC first.

A group is a set of channels that only go together with their coupled slices elsewhere. Its channels leave in units
that keep the network valid: the same number from every norm group, whole norm groups, or whole attention heads. The
cost of a network is a sum of products of widths, so every candidate is counted exactly, at the widths of the moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

Units = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Group:
    """`importance` (C,); `units`: index arrays in the order in which they may be removed, least important first."""

    name: str
    importance: np.ndarray
    units: Units

    @property
    def width(self) -> int:
        """Channels before anything is removed."""
        return len(self.importance)

    def removed(self, taken: int) -> np.ndarray:
        """Sorted indices of the channels gone after `taken` units."""
        return np.sort(np.concatenate(self.units[:taken])) if taken else np.zeros(0, dtype=np.int64)

    def width_after(self, taken: int) -> int:
        """Channels left after `taken` units."""
        return self.width - sum(len(u) for u in self.units[:taken])


@dataclass(frozen=True)
class Term:
    """MACs of one layer: `coefficient * inputs * outputs`, each `fixed + sum(times * width of group)`."""

    coefficient: float
    inputs: Mapping[int, int]
    outputs: Mapping[int, int]
    fixed_inputs: int = 0
    fixed_outputs: int = 0

    def macs(self, widths: Sequence[int]) -> float:
        """MACs at the groups' widths."""
        rows = self.fixed_inputs + sum(n * widths[g] for g, n in self.inputs.items())
        return self.coefficient * rows * (self.fixed_outputs + sum(n * widths[g] for g, n in self.outputs.items()))


def even_units(importance: np.ndarray, blocks: int, step: int) -> Units:
    """Units of `step` channels that take the same number from each of `blocks` contiguous blocks, lowest first.

    `step` is a multiple of `blocks`, which divides C. The first unit is smaller where C is no multiple of `step`, so
    that every width after it is; the last `step` channels stay.
    """
    order = np.argsort(importance.reshape(blocks, -1), axis=1, kind="stable")  # (blocks, C / blocks)
    rows = order + np.arange(blocks)[:, None] * order.shape[1]
    return tuple(np.sort(rows[:, a:b].ravel()) for a, b in _cuts(order.shape[1], step // blocks))


def chunk_units(importance: np.ndarray, size: int, step: int) -> Units:
    """Units of `step` channels made of whole contiguous chunks of `size` (norm groups, heads), lowest sum first."""
    chunks = np.arange(len(importance)).reshape(-1, size)
    order = np.argsort(importance.reshape(-1, size).sum(1), kind="stable")
    return tuple(np.sort(chunks[order[a:b]].ravel()) for a, b in _cuts(len(order), step // size))


def _cuts(count: int, step: int) -> list[tuple[int, int]]:
    """[start, end) of consecutive units over `count` items; the remainder goes first, one whole unit is kept."""
    edges = [0, *range(count % step or step, count, step)]
    return list(pairwise(edges))


def up_to(group: Group, share: float) -> Group:
    """The group with only as many units as take `share` of its channels, at least one where it has any."""
    within = sum(group.width - group.width_after(n) <= share * group.width for n in range(1, len(group.units) + 1))
    return replace(group, units=group.units[: max(within, 1)])


def cost(terms: Sequence[Term], widths: Sequence[int]) -> float:
    """MACs of the network at these widths."""
    return sum(term.macs(widths) for term in terms)


def smallest(groups: Sequence[Group], terms: Sequence[Term]) -> float:
    """MACs left when every unit is removed."""
    return cost(terms, [g.width_after(len(g.units)) for g in groups])


def select(groups: Sequence[Group], terms: Sequence[Term], target: float, per_mac: bool = True) -> tuple[int, ...]:
    """Units to take from each group so that the cost comes as near to `target` MACs as whole units allow.

    Takes the unit with the lowest importance per MAC it saves now (or the lowest importance, `per_mac=False`) while
    the cost stays above the target; the last unit is the one that lands nearest. Deterministic: of equals the one
    that saves less, then the earlier group.
    """
    taken, widths = [0] * len(groups), [g.width for g in groups]
    now = cost(terms, widths)
    touching = [[t for t in terms if g in t.inputs or g in t.outputs] for g in range(len(groups))]
    while now > target:
        options = _options(groups, touching, taken, widths, per_mac)
        if not options:
            break
        _, saved, g = min(options)
        if now - saved <= target:
            nearest, saved, g = min((abs(now - saved - target), saved, g) for _, saved, g in options)
            if now - target <= nearest:
                break
        widths[g] -= len(groups[g].units[taken[g]])
        taken[g] += 1
        now -= saved
    return tuple(taken)


def _options(
    groups: Sequence[Group],
    touching: Sequence[Sequence[Term]],
    taken: Sequence[int],
    widths: list[int],
    per_mac: bool,
) -> list[tuple[float, float, int]]:
    """(score, MACs saved, group) of the next unit of every group that still has one and saves anything."""
    found = []
    for g, group in enumerate(groups):
        if taken[g] == len(group.units):
            continue
        unit = group.units[taken[g]]
        smaller = [*widths[:g], widths[g] - len(unit), *widths[g + 1 :]]
        saved = cost(touching[g], widths) - cost(touching[g], smaller)
        total = float(group.importance[unit].sum())
        if saved > 0:
            found.append((total / saved if per_mac else total / len(unit), saved, g))
    return found
