"""The per-layer section: where parameters, work and time sit; a picture by kind of layer and a table by layer.

Reads `summary["layers"]`: a list of {path, kind, macs, params, bytes, share_time, …}, or such lists by network's name.
Any key may be missing; a key that is not known here and holds numbers becomes a column of its own.
"""

from __future__ import annotations

from html import escape
from typing import Any

from optimize.measure import wording
from optimize.report import figures
from optimize.report.figures import Summary

Layer = dict[str, Any]
# key, title, how its numbers read
KNOWN = (
    ("macs", "MACs", wording.count_text),
    ("other_flops", "Other FLOPs", wording.count_text),
    ("params", "Params", wording.count_text),
    ("bytes", "Bytes", wording.bytes_text),
    ("time_ms", "Time ms", wording.digits),
    ("share_time", "Time", wording.percent_text),
    ("share_roofline", "Roofline time", wording.percent_text),
)
BARS = (("params", "parameters"), ("macs", "MACs"), ("share_roofline", "roofline time"), ("share_time", "time"))
SHOWN = 15  # layers in sight; the others are folded
KINDS = 6  # kinds with a colour of their own; the rest is one more
COLOURS = tuple(f"var(--kind{i}, {c})" for i, c in enumerate(("#2462d1", "#c8741a", "#2a8f62", "#8a4fbe", "#b8405e", "#2b8ca3", "#8a93a3")))  # fmt: skip


def sections(summary: Summary) -> list[dict[str, Any]]:
    """For every network with layers: {name, svg, columns, rows, shown}, layers in order of time, else of work."""
    given = summary.get("layers") or []
    named = given if isinstance(given, dict) else {"": given}
    found = []
    for name, layers in named.items():
        kept = [layer for layer in layers or [] if isinstance(layer, dict)]
        if kept:
            columns, rows = table(kept)
            found.append({"name": str(name), "svg": picture(kept), "columns": columns, "rows": rows, "shown": SHOWN})
    return found


def table(layers: list[Layer]) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """(columns (key, title), rows {path, kind, cells [{text, sort, share}]}); `share` 0..1 of the column's largest draws a bar."""
    known = {k for k, _, _ in KNOWN}
    others = {k: (k, figures.plain(k), figures.any_text) for layer in layers for k, v in layer.items() if k not in known and wording.number(v) is not None}  # fmt: skip
    columns = [c for c in (*KNOWN, *others.values()) if any(wording.number(layer.get(c[0])) is not None for layer in layers)]  # fmt: skip
    largest = {k: max(_size(layer, k) for layer in layers) for k, _, _ in columns}
    rows = []
    for layer in in_order(layers):
        cells = [
            {"text": text(layer.get(k)), "sort": wording.number(layer.get(k)), "share": _size(layer, k) / largest[k] if largest[k] else 0.0}
            for k, _, text in columns
        ]  # fmt: skip
        path, kind = (figures.any_text(layer.get(k)) for k in ("path", "kind"))
        rows.append({"path": path, "kind": kind, "cells": cells, "predicted": bool(layer.get("predicted"))})
    return [(k, title) for k, title, _ in columns], rows


def in_order(layers: list[Layer]) -> list[Layer]:
    """Heaviest first: by time where it is known, else by MACs."""
    key = next((k for k in ("share_time", "time_ms", "share_roofline") if any(_size(x, k) for x in layers)), "macs")
    return sorted(layers, key=lambda layer: -_size(layer, key))


def picture(layers: list[Layer]) -> str:
    """Bars of shares by kind of layer, one for parameters, MACs and time as far as they are known; SVG text."""
    weight = {k: [sum(_size(x, b) for x in layers if _kind(x) == k) for b, _ in BARS] for k in map(_kind, layers)}
    bars = [(i, title) for i, (b, title) in enumerate(BARS) if sum(w[i] for w in weight.values()) > 0]
    if not bars:
        return ""
    totals = [sum(w[i] for w in weight.values()) for i in range(len(BARS))]
    order = sorted(weight, key=lambda k: -max(weight[k][i] / totals[i] for i, _ in bars))
    top, rest = order[:KINDS], order[KINDS:]
    groups = [(k, [k]) for k in top] + (
        [(f"{len(rest)} other kind{'s' if len(rest) > 1 else ''}", rest)] if rest else []
    )
    parts = []
    for row, (i, title) in enumerate(bars):
        shares = [(name, sum(weight[k][i] for k in kinds) / totals[i]) for name, kinds in groups]
        parts += _bar(title, shares, 8 + 38 * row)
    legend, height = _legend([name for name, _ in groups], 22 + 38 * len(bars))
    return (
        f"<svg viewBox='0 0 752 {height}' role='img' aria-label='Shares of the kinds of layers' "
        f"font-family='system-ui, sans-serif' font-size='13'>{''.join(parts + legend)}</svg>"
    )


def _bar(title: str, shares: list[tuple[str, float]], y: int) -> list[str]:
    ink = "var(--ink, #1d2330)"
    parts, x = [f"<text x='106' y='{y + 18}' text-anchor='end' fill='{ink}'>{escape(title)}</text>"], 118.0
    for colour, (name, share) in zip(COLOURS, shares):
        width = 620 * share
        about = f"{name}: {wording.percent_text(share)} of {title}"
        parts.append(
            f"<rect x='{x:.1f}' y='{y}' width='{max(width - 1, 0):.1f}' height='26' fill='{colour}'><title>{escape(about)}</title></rect>"
        )
        if width > 44:
            parts.append(
                f"<text x='{x + width / 2:.1f}' y='{y + 18}' text-anchor='middle' fill='#ffffff' font-size='12'>{100 * share:.0f} %</text>"
            )
        x += width
    return parts


def _legend(names: list[str], y: int) -> tuple[list[str], int]:
    """Swatches with names, wrapped; and the height that is needed."""
    parts, x = [], 118.0
    for colour, name in zip(COLOURS, names):
        width = 36 + 8.0 * len(name)
        if x + width > 744 and x > 118:
            x, y = 118.0, y + 22
        parts.append(f"<rect x='{x:.1f}' y='{y}' width='12' height='12' rx='2' fill='{colour}'/>")
        parts.append(f"<text x='{x + 18:.1f}' y='{y + 11}' fill='var(--ink, #1d2330)'>{escape(name)}</text>")
        x += width
    return parts, y + 20


def _kind(layer: Layer) -> str:
    return str(layer.get("kind") or "other")


def _size(layer: Layer, key: str) -> float:
    return max(wording.number(layer.get(key)) or 0.0, 0.0)
