"""Optimization profiles: which input shapes an engine takes and which it is fastest for, planned from sizes in use.

`sizes` maps a symbol to the values in use, `{"B": (1, 16), "H": (64, 96)}`: the engine takes everything between the
smallest and the largest and is tuned for the largest, or for what `best` names; with `exact`, a further profile is tuned
for every combination.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from optimize.diffusion.network import TensorSpec
from optimize.engines.builder import Shapes
from optimize.errors import UserError, did_you_mean

MOST = 8  # profiles; each takes memory of its own in an execution context
Sizes = Mapping[str, Sequence[int]]


def plan_profiles(
    inputs: tuple[TensorSpec, ...], sizes: Sizes, exact: bool = False, best: Mapping[str, int] | None = None
) -> list[Shapes]:
    """Profiles of a network's inputs; empty where no dimension is symbolic. `best` is by symbol what the engine is tuned
    for instead of the largest size.

    UserError where a symbol has no sizes, a size is given for no symbol, or `exact` makes more than `MOST` profiles."""
    symbols = list(dict.fromkeys(d.partition("/")[0] for spec in inputs for d in spec.dims if isinstance(d, str)))
    _check(symbols, sizes)
    if not symbols:
        return []
    ranges = {s: _range(s, sizes[s], (best or {}).get(s)) for s in symbols}
    found = [_profile(inputs, ranges)]
    points = [dict(zip(symbols, values)) for values in product(*(sorted(set(sizes[s])) for s in symbols))]
    if exact and len(points) > 1:
        found += [_profile(inputs, {s: (v, v, v) for s, v in point.items()}) for point in points]
        if len(found) > MOST:
            raise UserError(
                f"profiles: one for each of {len(points)} combinations of sizes is too many; {MOST - 1} at most. Give fewer sizes, or leave `exact` out."
            )
    return found


def _range(symbol: str, sizes: Sequence[int], best: int | None) -> tuple[int, int, int]:
    """(smallest, best, largest)."""
    low, high = min(sizes), max(sizes)
    if best is not None and not low <= best <= high:
        raise UserError(
            f"profiles: the best {symbol} is {best}, outside {low} to {high}. Give one of the sizes in use."
        )
    return low, best or high, high


def _check(symbols: list[str], sizes: Sizes) -> None:
    missing = [s for s in symbols if not sizes.get(s)]
    if missing:
        known = ", ".join(symbols)
        raise UserError(
            f"profiles: no sizes for {', '.join(missing)}; the network's symbolic dimensions are {known}. Give each the values in use, e.g. {missing[0]}=1,4."
        )
    strange = [s for s in sizes if s not in symbols]
    if strange:
        raise UserError(
            f"profiles: {', '.join(strange)} is no symbolic dimension of the network. It has: {', '.join(symbols) or 'none'}.{did_you_mean(strange[0], symbols)}"
        )
    wrong = {s: list(v) for s, v in sizes.items() if any(n < 1 for n in v)}
    if wrong:
        raise UserError(f"profiles: sizes are whole numbers from 1 on, given {wrong}.")


def _profile(inputs: tuple[TensorSpec, ...], ranges: Mapping[str, tuple[int, int, int]]) -> Shapes:
    """[smallest, best, largest] shape of every input with a symbolic dimension."""
    return {
        spec.name: [[d if isinstance(d, int) else _size(d, ranges, i) for d in spec.dims] for i in range(3)]
        for spec in inputs
        if any(isinstance(d, str) for d in spec.dims)
    }


def _size(dim: str, ranges: Mapping[str, tuple[int, int, int]], which: int) -> int:
    """A symbol's size, or the part of it that "H/2" is."""
    symbol, _, part = dim.partition("/")
    return -(-ranges[symbol][which] // int(part or 1))  # rounded up, as a network's own inputs are


def defaults(
    inputs: tuple[TensorSpec, ...], batch: Sequence[int], shape: Sequence[int], told: Sizes
) -> dict[str, tuple[int, ...]]:
    """Sizes where none are given: the batches in use, the model's own size (C,H,W; C,L) for the rest of its first input,
    which is what is denoised, and for what it is told besides, such as text states, the sizes `told` of that."""
    found: dict[str, tuple[int, ...]] = {}
    for number, spec in enumerate(inputs):
        for position, symbol in enumerate(spec.dims):
            if symbol == "B":
                found["B"] = tuple(batch)
            elif isinstance(symbol, str) and "/" not in symbol and number == 0 and 0 < position <= len(shape):
                found[symbol] = (int(shape[position - 1]),)
            elif symbol in told:
                found.setdefault(str(symbol), tuple(told[str(symbol)]))
    return found


def bound_text(profiles: list[Shapes]) -> list[dict[str, Any]]:
    """Profiles as a record holds them: input -> {min, opt, max}."""
    return [{n: dict(zip(("min", "opt", "max"), three)) for n, three in p.items()} for p in profiles]
