"""Charts as SVG text: the waterfall of speed-up factors, and quality against latency.

Colours are CSS variables with fallbacks, so a chart inside the page follows its light or dark theme and the same text
saved as a file still draws. Both axes of time are logarithmic: factors multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from html import escape
from itertools import pairwise

from optimize.measure import wording
from optimize.report import figures
from optimize.report.figures import Row, Summary

HALO = "var(--card, #ffffff)"
INK, FAINT, GRID = "var(--ink, #1d2330)", "var(--faint, #667085)", "var(--grid, #dfe3ea)"
GAIN, LOSS, TOTAL = "var(--accent, #2f6fde)", "var(--warn, #b4610a)", "var(--ink, #1d2330)"
COLOURS = {"final": GAIN, "fair": LOSS}  # of the variants that matter most
ROOM = 150  # beside the longest bar, for its factor and interval
FAR = 10.0  # a gate beyond this many times the worst FD is written, not drawn: its line would flatten the rest
Scale = Callable[[float], float]
Box = tuple[float, float, float, float]  # left, top, right, bottom
FONT = "font-family='system-ui, sans-serif'"


def waterfall(factors: Mapping[str, object], whole: object = None) -> str:
    """Horizontal bars on a logarithmic axis: each factor, a number or {ratio, low, high}, starts where the product of
    those before it ends. `whole`: all together with its interval, where it is known.

    Factors without a number are left out; an empty string where none has one or one is not positive.
    """
    known = {k: v for k, v in ((k, wording.number(v)) for k, v in factors.items()) if v is not None}
    if not known or min(known.values()) <= 0:
        return ""
    ends = [1.0]
    for factor in known.values():
        ends.append(ends[-1] * factor)
    left, width, row = 12 + max(105, *(7.2 * len(figures.plain(k)) for k in known)), 620, 34
    x = _log_scale(min(ends), max(*ends, 1.5), left, left + width - ROOM)
    bottom = row * (len(known) + 1) + 8
    parts = [_vertical(x(v), 4, bottom, f"{v:g}×") for v in _log_ticks(min(ends), max(ends))]
    for i, ((name, factor), (start, end)) in enumerate(zip(known.items(), pairwise(ends))):
        colour = GAIN if factor >= 1 else LOSS
        text = f"×{wording.digits(factor)} {figures.interval_text(factors[name])}".strip()
        parts.append(_bar(left - 12, name, text, x(start), x(end), row * i + 8, colour, i))
        parts.append(
            f"<line x1='{x(end):.1f}' x2='{x(end):.1f}' y1='{row * i + 30}' y2='{row * (i + 1) + 8}' stroke='{FAINT}'/>"
        )
    total = f"{figures.ratio_text(ends[-1])} {figures.interval_text(whole)}".strip()
    parts.append(_bar(left - 12, "all together", total, x(1.0), x(ends[-1]), row * len(known) + 8, TOTAL, len(known)))
    label = f"Speed-up factors, together {total}"
    return _svg(left + width, bottom + 24, label, parts)


def _bar(ends: float, name: str, text: str, start: float, end: float, y: float, colour: str, index: int) -> str:
    low, high = min(start, end), max(start, end)
    return (
        f"<g><title>{escape(figures.plain(name))}: {escape(text)}</title>"
        f"<text x='{ends:.0f}' y='{y + 15}' text-anchor='end' fill='{INK}'>{escape(figures.plain(name))}</text>"
        f"<rect x='{low:.1f}' y='{y}' width='{max(high - low, 2):.1f}' height='22' rx='3' fill='{colour}'/>"
        f"<text x='{high + 7:.1f}' y='{y + 15}' fill='{INK}' font-weight='600'>{escape(text)}</text></g>"
    )


def pareto(summary: Summary) -> str:
    """FD against latency per image at the headline batch; area is size on disk, whiskers are FD's interval.

    The row that stands for a variant is labelled, its other runners are drawn faint; the dashed line is FD's gate, the
    grey steps join what nothing else beats in both. Empty where fewer than two points have both figures.
    """
    batch = figures.headline_batch(summary)
    candidates = [*figures.done(summary), *figures.predicted(summary)]
    points = [r for r in candidates if r.get("batch") == batch and _place(summary, r) is not None]
    if len(points) < 2:
        return ""
    limit = _fd_limit(summary)
    places = [p for r in points if (p := _place(summary, r)) is not None]
    times = [p[0] for p in places]
    heights = [
        v for r in points for v in (wording.number(_fd(summary, r)), *figures.bounds(_fd(summary, r))) if v is not None
    ]
    near = limit is not None and limit <= FAR * max(heights)
    heights += [limit] if limit is not None and near else []
    box = (62.0, 18.0, 734.0, 344.0)  # left, top, right, bottom
    span = (min(times) / 1.5, max(times) * 2.0)
    x = _log_scale(*span, box[0], box[2])
    y, ticks = _height_scale(heights, box)
    parts = _frame(x, y, _log_ticks(*span), ticks, box)
    measured = [p for r in points if not r.get("predicted") and (p := _place(summary, r)) is not None]
    parts.append(_frontier([(x(a), y(b)) for a, b in measured], box) if measured else "")
    taken: list[Box] = []
    if limit is not None and not near:
        parts.append(_limit_text(box[1] + 16, f"gate: FD ≤ {wording.digits(limit)}, far above", box))
    elif limit is not None:
        parts.append(_limit_line(y(limit), limit, box))
        taken.append((box[2] - 110, y(limit) - 18, box[2], y(limit)))
    parts += _dots(summary, points, x, y, batch, taken)
    return _svg(752, 392, f"FD against latency per image at batch {batch}", parts)


def _fd(summary: Summary, row: Row) -> object:
    return figures.quality(summary, row, "fd")


def _place(summary: Summary, row: Row) -> tuple[float, float] | None:
    """(milliseconds per image, FD), or None where one is not known."""
    time = figures.latency(row, "image", "p50")
    fd = wording.number(_fd(summary, row))
    return None if time is None or time <= 0 or fd is None else (time, fd)


def _fd_limit(summary: Summary) -> float | None:
    return wording.number(((summary.get("gates") or {}).get("fd") or {}).get("limit"))


def _height_scale(values: list[float], box: tuple[float, ...]) -> tuple[Scale, list[float]]:
    """Scale of the y axis with its ticks: logarithmic where the values span a factor of six or more, else linear."""
    low, high = min(values), max(values)
    if low > 0 and high / low >= 6:
        low, high = low / 1.9, high * 1.35  # room for names below the lowest dot
        return _log_scale(low, high, box[3], box[1]), _log_ticks(low, high)
    margin = 0.2 * (high - low) or 0.2 * abs(high) or 1.0
    low, high = max(0.0, low - margin), high + margin
    return (lambda v: box[3] - (v - low) / (high - low) * (box[3] - box[1])), _linear_ticks(low, high)


def _frame(x: Scale, y: Scale, times: list[float], heights: list[float], box: tuple[float, ...]) -> list[str]:
    """Grid, ticks and axis titles."""
    left, top, right, bottom = box
    parts = [_vertical(x(v), top, bottom, f"{v:g}") for v in times]
    for value in heights:
        parts.append(f"<line x1='{left}' x2='{right}' y1='{y(value):.1f}' y2='{y(value):.1f}' stroke='{GRID}'/>")
        parts.append(f"<text x='{left - 8}' y='{y(value) + 4:.1f}' text-anchor='end' fill='{FAINT}'>{value:g}</text>")
    middle = (top + bottom) / 2
    parts.append(
        f"<text x='{(left + right) / 2}' y='{bottom + 38}' text-anchor='middle' fill='{FAINT}'>"
        "image latency p50, ms (logarithmic) — faster is left</text>"
    )
    parts.append(
        f"<text x='16' y='{middle}' text-anchor='middle' fill='{FAINT}' transform='rotate(-90 16 {middle})'>"
        "FD — better is down</text>"
    )
    return parts


def _limit_line(y: float, limit: float, box: tuple[float, ...]) -> str:
    text = _limit_text(y - 6, f"gate: FD ≤ {wording.digits(limit)}", box)
    return (
        f"<line x1='{box[0]}' x2='{box[2]}' y1='{y:.1f}' y2='{y:.1f}' stroke='{LOSS}' stroke-dasharray='5 4'/>" + text
    )


def _limit_text(y: float, text: str, box: tuple[float, ...]) -> str:
    return f"<text x='{box[2] - 4}' y='{y:.1f}' text-anchor='end' fill='{LOSS}'>{text}</text>"


def _frontier(places: list[tuple[float, float]], box: tuple[float, ...]) -> str:
    """Steps through the points that no other beats in both (pixels: left is faster, down is better), and what they beat."""
    best: list[tuple[float, float]] = []
    for px, py in sorted(places, key=lambda p: (p[0], -p[1])):
        if not best or py > best[-1][1]:
            best.append((px, py))
    path = f"M{best[0][0]:.1f} {box[1]}" + "".join(
        f" V{py:.1f} H{after:.1f}" for (_, py), after in zip(best, [*(p[0] for p in best[1:]), box[2]])
    )
    area = f"<path d='{path} V{box[1]} Z' fill='{GAIN}' fill-opacity='.05'/>"
    return area + f"<path d='{path}' fill='none' stroke='{GAIN}' stroke-opacity='.4' stroke-width='1.5'/>"


def _dots(summary: Summary, points: list[Row], x: Scale, y: Scale, batch: int | None, taken: list[Box]) -> list[str]:
    """Circles, whiskers and names; `taken` are boxes where no name may lie."""
    largest = max((wording.number(r.get("size_bytes")) or 0.0 for r in points), default=0.0) or 1.0
    standing = [s for v in figures.variants(summary) if (s := figures.shown(summary, v, batch)) is not None]
    parts: list[str] = []
    names: dict[tuple[float, float], list[str]] = {}
    for row in sorted(points, key=lambda r: any(r is s for s in standing)):
        time, fd = _place(summary, row) or (1.0, 0.0)
        radius = max(20 * math.sqrt((wording.number(row.get("size_bytes")) or 0.0) / largest), 3.5)
        chosen, variant = any(row is s for s in standing), str(row.get("variant"))
        colour = COLOURS.get(variant, FAINT)
        if chosen:
            parts.append(_whisker(_fd(summary, row), x(time), y, colour))
            names.setdefault((x(time), y(fd)), []).append(variant)
            taken.append((x(time) - radius, y(fd) - radius, x(time) + radius, y(fd) + radius))
            low, high = figures.bounds(_fd(summary, row))
            if low is not None and high is not None:
                taken.append((x(time) - 2, y(high), x(time) + 2, y(low)))
        parts.append(_dot(row, x(time), y(fd), radius, colour, chosen, fd))
    return parts + _labels({k: " = ".join(v) for k, v in names.items()}, taken)


def _whisker(fd: object, x: float, y: Scale, colour: str) -> str:
    low, high = figures.bounds(fd)
    if low is None or high is None:
        return ""
    return (
        f"<line x1='{x:.1f}' x2='{x:.1f}' y1='{y(low):.1f}' y2='{y(high):.1f}' stroke='{colour}' stroke-width='1.5'/>"
    )


def _dot(row: Row, x: float, y: float, radius: float, colour: str, chosen: bool, fd: float) -> str:
    time, size = wording.digits(figures.latency(row, "image", "p50")), wording.bytes_text(row.get("size_bytes"))
    name = " · ".join(str(v) for v in (row.get("variant"), figures.runner(row), row.get("precision")) if v)
    about = f"{name}: {time} ms, FD {wording.digits(fd)}, {size}"
    fill, stroke, line = (0.35, 1, 1.5) if chosen else (0.06, 0.45, 0.7)
    dashes = ""
    if row.get("predicted"):
        about, fill, dashes = f"predicted: {about}", 0.0, "stroke-dasharray='3 3' "
    return (
        f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius:.1f}' fill='{colour}' fill-opacity='{fill}' stroke='{colour}' "
        f"{dashes}stroke-width='{line}' stroke-opacity='{stroke}'><title>{escape(about)}</title></circle>"
    )


def _labels(names: dict[tuple[float, float], str], taken: list[Box]) -> list[str]:
    """Names near their dots with a leader, where they cover neither a dot nor another name."""
    parts = []
    for (x, y), text in sorted(names.items()):
        left, top = _free_place(x, y, 7.8 * len(text), taken)
        width, colour = 7.8 * len(text), COLOURS.get(text.split(" = ")[-1], INK)
        taken.append((left, top - 9, left + width, top + 7))
        end = min(max(x, left), left + width)
        edge = top + (7 if top < y else -9)
        parts.append(
            f"<line x1='{x:.1f}' y1='{y:.1f}' x2='{end:.1f}' y2='{edge:.1f}' stroke='{FAINT}' stroke-width='.8'/>"
        )
        parts.append(
            f"<text x='{left:.1f}' y='{top + 4:.1f}' fill='{colour}' font-weight='600' paint-order='stroke' "
            f"stroke='{HALO}' stroke-width='4'>{escape(text)}</text>"
        )
    return parts


def _free_place(x: float, y: float, width: float, taken: list[Box]) -> tuple[float, float]:
    """Left end and middle height of a text near (x, y) inside the frame that hits nothing taken; the nearest one."""
    offers = [
        (left, y + rise)
        for rise in range(-150, 151, 6)
        for left in (x + 6, x - width / 2, x - width - 6)
        if left > 66 and left + width < 732 and 28 < y + rise < 334
    ]
    free = [p for p in offers if not any(_overlap((p[0], p[1] - 9, p[0] + width, p[1] + 7), t) for t in taken)]
    return min(free or offers or [(x, y)], key=lambda p: abs(p[1] - y) + 0.3 * abs(p[0] + width / 2 - x))


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _log_scale(low: float, high: float, start: float, end: float) -> Scale:
    """Function from a positive value to pixels, low at `start` and high at `end`."""
    span = math.log(high / low) or 1.0
    return lambda value: start + math.log(value / low) / span * (end - start)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 10, 100 … inside the span, or 1, 2, 5 … where it is under three decades."""
    steps = (1, 2, 5) if high / low < 1000 else (1,)
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
