"""Charts as SVG text: the waterfall of speed-up factors, and quality against latency.

Colours are CSS variables with fallbacks, so a chart inside the page follows its light or dark theme and the same text
saved as a file still draws. Both axes of time are logarithmic: factors multiply.
"""

from __future__ import annotations

import math
from html import escape
from itertools import pairwise

from optimize.report import figures
from optimize.report.figures import Row, Summary

INK, FAINT, GRID = "var(--ink, #1d2330)", "var(--faint, #667085)", "var(--grid, #dfe3ea)"
GAIN, LOSS, TOTAL = "var(--accent, #2f6fde)", "var(--warn, #b4610a)", "var(--ink, #1d2330)"
FONT = "font-family='system-ui, sans-serif'"


def waterfall(factors: dict[str, float | None]) -> str:
    """Horizontal bars on a logarithmic axis: each factor starts where the product of those before it ends.

    Factors without a number are left out; an empty string where none has one or one is not positive.
    """
    known = {k: v for k, v in ((k, figures.number(v)) for k, v in factors.items()) if v is not None}
    if not known or min(known.values()) <= 0:
        return ""
    ends = [1.0]
    for factor in known.values():
        ends.append(ends[-1] * factor)
    left, width, row = 118, 620, 34
    x = _log_scale(min(ends), max(*ends, 1.5), left, left + width - 90)
    bottom = row * (len(known) + 1) + 8
    parts = [_vertical(x(v), 4, bottom, f"{figures.digits(v)}×") for v in _log_ticks(min(ends), max(ends))]
    for i, ((name, factor), (start, end)) in enumerate(zip(known.items(), pairwise(ends))):
        colour = GAIN if factor >= 1 else LOSS
        parts.append(_bar(name, f"×{figures.digits(factor)}", x(start), x(end), row * i + 8, colour, i))
        parts.append(f"<line x1='{x(end):.1f}' x2='{x(end):.1f}' y1='{row * i + 30}' y2='{row * (i + 1) + 8}' stroke='{FAINT}'/>")
    total = figures.ratio_text(ends[-1])
    parts.append(_bar("all together", total, x(1.0), x(ends[-1]), row * len(known) + 8, TOTAL, len(known)))
    label = f"Speed-up factors, together {total}"
    return _svg(left + width, bottom + 24, label, parts)


def _bar(name: str, text: str, start: float, end: float, y: float, colour: str, index: int) -> str:
    low, high = min(start, end), max(start, end)
    return (
        f"<g><title>{escape(figures.plain(name))}: {escape(text)}</title>"
        f"<text x='106' y='{y + 15}' text-anchor='end' fill='{INK}'>{escape(figures.plain(name))}</text>"
        f"<rect x='{low:.1f}' y='{y}' width='{max(high - low, 2):.1f}' height='22' rx='3' fill='{colour}'/>"
        f"<text x='{high + 7:.1f}' y='{y + 15}' fill='{INK}' font-weight='600'>{escape(text)}</text></g>"
    )


def pareto(summary: Summary) -> str:
    """FD against latency per image at the headline batch; area is size on disk, whiskers are FD's interval.

    The row that stands for a variant is labelled, its other runners are drawn faint; the dashed line is FD's gate, the
    grey steps join what nothing else beats in both. Empty where fewer than two points have both figures.
    """
    batch = figures.headline_batch(summary)
    points = [r for r in figures.done(summary) if r.get("batch") == batch and _place(summary, r) is not None]
    if len(points) < 2:
        return ""
    limit = _fd_limit(summary)
    places = [p for r in points if (p := _place(summary, r)) is not None]
    times = [p[0] for p in places]
    heights = [v for r in points for v in (figures.number(_fd(summary, r)), *figures.bounds(_fd(summary, r))) if v is not None]
    heights += [] if limit is None else [limit]
    box = (62.0, 18.0, 734.0, 344.0)  # left, top, right, bottom
    x = _log_scale(min(times) / 1.5, max(times) * 1.8, box[0], box[2])
    low, high = max(0.0, min(heights) - 0.15 * _spread(heights)), max(heights) + 0.15 * _spread(heights)
    parts, y = _frame(x, (min(times) / 1.5, max(times) * 1.8), low, high, box)
    if limit is not None:
        parts.append(_limit_line(y(limit), limit, box))
    parts.append(_frontier([(x(a), y(b)) for a, b in places], box))
    parts += _dots(summary, points, x, y, batch)
    return _svg(752, 392, f"FD against latency per image at batch {batch}", parts)


def _fd(summary: Summary, row: Row) -> object:
    return figures.quality(summary, row, "fd")


def _spread(values: list[float]) -> float:
    return max(values) - min(values) or abs(values[0]) or 1.0


def _place(summary: Summary, row: Row) -> tuple[float, float] | None:
    """(milliseconds per image, FD), or None where one is not known."""
    time = figures.latency(row, "image", "p50")
    fd = figures.number(_fd(summary, row))
    return None if time is None or time <= 0 or fd is None else (time, fd)


def _fd_limit(summary: Summary) -> float | None:
    return figures.number(((summary.get("gates") or {}).get("fd") or {}).get("limit"))


def _frame(x, span: tuple[float, float], low: float, high: float, box: tuple[float, ...]) -> tuple[list[str], object]:  # type: ignore[no-untyped-def]
    """Grid, ticks and axis titles, and the scale of the y axis."""
    left, top, right, bottom = box

    def y(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [_vertical(x(v), top, bottom, figures.digits(v)) for v in _log_ticks(*span) if span[0] <= v <= span[1]]
    for value in _linear_ticks(low, high):
        parts.append(f"<line x1='{left}' x2='{right}' y1='{y(value):.1f}' y2='{y(value):.1f}' stroke='{GRID}'/>")
        parts.append(f"<text x='{left - 8}' y='{y(value) + 4:.1f}' text-anchor='end' fill='{FAINT}'>{value:g}</text>")
    middle = (top + bottom) / 2
    parts.append(f"<text x='{(left + right) / 2}' y='{bottom + 38}' text-anchor='middle' fill='{FAINT}'>image latency p50, ms (log) — faster is left</text>")
    parts.append(f"<text x='16' y='{middle}' text-anchor='middle' fill='{FAINT}' transform='rotate(-90 16 {middle})'>FD — better is down</text>")
    return parts, y


def _limit_line(y: float, limit: float, box: tuple[float, ...]) -> str:
    text = f"gate: FD ≤ {figures.digits(limit)}"
    return (
        f"<line x1='{box[0]}' x2='{box[2]}' y1='{y:.1f}' y2='{y:.1f}' stroke='{LOSS}' stroke-dasharray='5 4'/>"
        f"<text x='{box[2] - 4}' y='{y - 6:.1f}' text-anchor='end' fill='{LOSS}'>{text}</text>"
    )


def _frontier(places: list[tuple[float, float]], box: tuple[float, ...]) -> str:
    """Steps through the points that no other beats in both (pixels: left is faster, down is better)."""
    best: list[tuple[float, float]] = []
    for px, py in sorted(places, key=lambda p: (p[0], -p[1])):
        if not best or py > best[-1][1]:
            best.append((px, py))
    path = f"M{best[0][0]:.1f} {box[1]}" + "".join(f" V{py:.1f} H{after:.1f}" for (_, py), after in zip(best, [*(p[0] for p in best[1:]), box[2]]))
    return f"<path d='{path}' fill='none' stroke='{FAINT}' stroke-opacity='.55' stroke-width='1.5'/>"


def _dots(summary: Summary, points: list[Row], x, y, batch: int | None) -> list[str]:  # type: ignore[no-untyped-def]
    largest = max((figures.number(r.get("size_bytes")) or 0.0 for r in points), default=0.0) or 1.0
    labelled = [s for v in figures.variants(summary) if (s := figures.shown(summary, v, batch)) is not None]
    parts: list[str] = []
    labels: list[tuple[float, float, str, str]] = []
    for row in sorted(points, key=lambda r: any(r is s for s in labelled)):
        time, fd = _place(summary, row) or (1.0, 0.0)
        radius = 22 * math.sqrt((figures.number(row.get("size_bytes")) or largest * 0.02) / largest)
        chosen, variant = any(row is s for s in labelled), str(row.get("variant"))
        colour = {"final": GAIN, "fair": LOSS}.get(variant, FAINT)
        if chosen:
            parts.append(_whisker(_fd(summary, row), x(time), y, colour))
            labels.append((x(time), y(fd), variant, colour))
        parts.append(_dot(row, x(time), y(fd), max(radius, 3.5), colour, chosen, fd))
    return parts + _labels(labels)


def _whisker(fd: object, x: float, y, colour: str) -> str:  # type: ignore[no-untyped-def]
    low, high = figures.bounds(fd)
    return "" if low is None else f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y(low):.1f}' y2='{y(high):.1f}' stroke='{colour}' stroke-width='1.5'/>"


def _dot(row: Row, x: float, y: float, radius: float, colour: str, chosen: bool, fd: float) -> str:
    about = f"{row.get('variant')} · {figures.runner(row)} · {row.get('precision') or ''}: {figures.digits(figures.latency(row, 'image', 'p50'))} ms, FD {figures.digits(fd)}, {figures.bytes_text(row.get('size_bytes'))}"
    fill, line = (".35", "1.5") if chosen else (".06", ".7")
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}' fill='{colour}' fill-opacity='{fill}' stroke='{colour}' stroke-width='{line}' stroke-opacity='{1 if chosen else 0.45}'><title>{escape(about)}</title></circle>"


def _labels(labels: list[tuple[float, float, str, str]]) -> list[str]:
    """Names beside their dots with a leader, moved up or down until no two overlap."""
    placed: list[tuple[float, float, float]] = []
    parts = []
    for x, y, text, colour in sorted(labels, key=lambda p: p[0]):
        width = 7.6 * len(text) + 6
        left = x + 26 if x + 26 + width < 734 else x - 26 - width
        offsets = (d * s for d in range(0, 200, 4) for s in (-1, 1))
        top = next((y - 14 + d for d in offsets if 16 < y - 14 + d < 340 and not _hits(left, y - 14 + d, width, placed)), y - 14)
        placed.append((left, top, width))
        end = left - 2 if left > x else left + width
        parts.append(f"<line x1='{x:.1f}' y1='{y:.1f}' x2='{end:.1f}' y2='{top:.1f}' stroke='{colour}' stroke-width='.8'/>")
        parts.append(f"<text x='{left:.1f}' y='{top + 4:.1f}' fill='{INK}' font-weight='600'>{escape(text)}</text>")
    return parts


def _hits(left: float, top: float, width: float, placed: list[tuple[float, float, float]]) -> bool:
    return any(left < a + w and a < left + width and abs(top - b) < 16 for a, b, w in placed)


def _log_scale(low: float, high: float, start: float, end: float):  # type: ignore[no-untyped-def]
    """Function from a positive value to pixels, low at `start` and high at `end`."""
    span = math.log(high / low) or 1.0
    return lambda value: start + math.log(value / low) / span * (end - start)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 10, 100 … inside the span, or 1, 2, 5 … where it is under two decades."""
    steps = (1, 2, 5) if high / low < 100 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [s * 10.0**d for d in decades for s in steps if low * 0.999 <= s * 10.0**d <= high * 1.001]


def _linear_ticks(low: float, high: float) -> list[float]:
    """About five round values inside [low, high]."""
    raw = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(s * size for s in (1, 2, 5, 10) if s * size >= raw)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _vertical(x: float, top: float, bottom: float, text: str) -> str:
    return (
        f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{top}' y2='{bottom}' stroke='{GRID}'/>"
        f"<text x='{x:.1f}' y='{bottom + 17}' text-anchor='middle' fill='{FAINT}'>{text}</text>"
    )


def _svg(width: float, height: float, label: str, parts: list[str]) -> str:
    body = "".join(parts)
    return f"<svg viewBox='0 0 {width} {height}' role='img' aria-label='{escape(label)}' {FONT} font-size='13'>{body}</svg>"
