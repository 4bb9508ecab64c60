"""Measured values as text: significant digits, bytes, counts, seconds, shares. What is not there is a dash."""

from __future__ import annotations

import math
from typing import Any

DASH = "–"
_UNIT = {"min": 60.0, "s": 1.0, "ms": 1e-3}


def number(value: Any) -> float | None:
    """A finite number, out of a plain one or of {value} or {ratio}; None otherwise."""
    if isinstance(value, dict):
        value = value.get("value", value.get("ratio"))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def digits(value: Any, significant: int = 3) -> str:
    """A number with three significant digits and thousands separators, without an exponent where it can be read."""
    x = number(value)
    if x is None:
        return DASH
    if x == 0 or abs(x) >= 10 ** (significant - 1):
        return f"{x:,.0f}"
    if abs(x) < 1e-3:
        return f"{x:.1e}"
    return f"{x:.{significant - 1 - math.floor(math.log10(abs(x)))}f}"


def bytes_text(value: Any) -> str:
    """Bytes in decimal units."""
    return _scaled(value, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)))


def count_text(value: Any) -> str:
    """Parameters or multiply-accumulates."""
    return _scaled(value, (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0)))


def seconds_text(value: Any) -> str:
    """Seconds in the unit that reads best."""
    x = number(value)
    return f"{digits(x / 3600)} h" if x and x >= 7200 else _scaled(value, (("min", 120.0), ("s", 0.5), ("ms", 0.0)))


def _scaled(value: Any, units: tuple[tuple[str, float], ...]) -> str:
    """`value` in the first unit whose threshold it reaches."""
    x = number(value)
    if x is None:
        return DASH
    name, threshold = next((u for u in units if abs(x) >= u[1]), units[-1])
    return f"{digits(x / _UNIT.get(name, threshold))} {name}".rstrip()


def percent_text(value: Any) -> str:
    """A fraction as per cent with one decimal."""
    x = number(value)
    return DASH if x is None else f"{100 * x:.1f} %"
