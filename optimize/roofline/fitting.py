"""Rates from measurements: bounded least squares on ln(predicted / measured), and the error on groups left out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from optimize.hardware.targets import Target
from optimize.roofline.layers import Layer
from optimize.roofline.rates import Device, Rates, Table

Free = Mapping[str, tuple[float, float]]  # field of Rates, or "<field>.<kind>", and its bounds
PRIOR = 0.1  # weight of a starting value against one measurement: decides only what no measurement tells


@dataclass(frozen=True)
class Case:
    """One measured network call. Cases of a group are left out together: one GPU, or one network at all its batches."""

    group: str
    layers: Sequence[Layer]
    target: Target
    seconds: float


def fit(cases: Sequence[Case], start: Rates, free: Free, format: str) -> Rates:
    """`start` with its `free` fields fitted to `cases`, and its spread and samples from leaving each group out."""
    tables = [Table(c.layers, Device(c.target, start), format) for c in cases]
    errors = left_out(cases, start, free, tables)
    means = [float(np.mean(np.square(e))) for e in errors.values()]
    spread = math.sqrt(float(np.mean(means)))
    return replace(_fitted(cases, tables, start, free), spread=spread, samples=len(means))


def left_out(cases: Sequence[Case], start: Rates, free: Free, tables: Sequence[Table]) -> dict[str, list[float]]:
    """ln(predicted / measured) of each group's cases, by rates fitted without that group."""
    found = {}
    for group in dict.fromkeys(c.group for c in cases):
        kept = [i for i, c in enumerate(cases) if c.group != group]
        rates = _fitted([cases[i] for i in kept], [tables[i] for i in kept], start, free)
        found[group] = [log_error(c, t, rates) for c, t in zip(cases, tables) if c.group == group]
    return found


def log_error(case: Case, table: Table, rates: Rates) -> float:
    """ln(predicted / measured)."""
    compute, memory, overhead = Device(case.target, rates).seconds(table)
    return math.log(float((np.maximum(compute, memory) + overhead).sum()) / case.seconds)


def _fitted(cases: Sequence[Case], tables: Sequence[Table], start: Rates, free: Free) -> Rates:
    from scipy.optimize import least_squares

    low, high = np.log(np.array(list(free.values())).T)
    first = np.clip(np.log([_get(start, name) for name in free]), low, high)

    def residuals(x: np.ndarray) -> np.ndarray:
        rates = _with(start, dict(zip(free, np.exp(x))))
        return np.array([*(log_error(c, t, rates) for c, t in zip(cases, tables)), *(PRIOR * (x - first))])

    best = least_squares(residuals, first, bounds=(low - 1e-9, high + 1e-9)).x
    return _with(start, dict(zip(free, np.exp(best))))


def _get(rates: Rates, name: str) -> float:
    field, _, kind = name.partition(".")
    value = getattr(rates, field)
    return float(value[kind] if kind else value)


def _with(rates: Rates, values: Mapping[str, float]) -> Rates:
    changed: dict[str, Any] = {}
    for name, value in values.items():
        field, _, kind = name.partition(".")
        if kind:
            changed[field] = {**changed.get(field, getattr(rates, field)), kind: float(value)}
        else:
            changed[field] = float(value)
    return replace(rates, **changed)
