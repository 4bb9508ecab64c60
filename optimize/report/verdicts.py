"""The quality section: a line a figure, a column a variant, each value with its interval and its change to the baseline.

Figures are read off the summary, so those of further feature networks appear without an edit here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from optimize.measure import wording
from optimize.measure.wording import DASH
from optimize.report import figures
from optimize.report.figures import Summary

# key, title, better: -1 lower, 1 higher
KNOWN = (
    ("fd", "FD", -1),
    ("fd_held_out", "FD held-out", -1),
    ("fd_training", "FD training", -1),
    ("kid", "KID", -1),
    ("precision", "Precision", 1),
    ("recall", "Recall", 1),
    ("density", "Density", 1),
    ("coverage", "Coverage", 1),
    ("fd_per_class", "FD, worst class", -1),
    ("class_accuracy", "Accuracy", 1),
    ("class_accuracy_min", "Accuracy, worst class", 1),
    ("clip_score", "CLIP score", 1),
    ("psnr_db", "PSNR dB", 1),
    ("ssim", "SSIM", 1),
    ("lpips", "LPIPS", -1),
    ("endpoint_error", "Endpoint error", -1),
)
PARTS = ("fd_held_out", "fd_training")
FOLDED = ("kid_held_out", "kid_training")  # in summary.json, not in reports
SHARES = ("class_accuracy", "precision", "recall", "coverage")  # read as per cent
Cell = tuple[str, str, str, str]  # value, its interval, its change to the baseline with interval, better or worse
NBSP = "\u00a0"  # keeps an interval in one line


def table(summary: Summary) -> tuple[list[str], list[tuple[str, str, list[Cell]]]]:
    """(names of variants, lines of (title, arrow to the better side, a cell a variant)); equal variants share a column."""
    columns: dict[tuple[Any, ...], list[str]] = {}
    keys = _keys(summary)
    for variant, quality in _qualities(summary).items():
        cells = tuple(_cell(variant, quality, key, better) for key, _, better in keys)
        if any(cell[0] != DASH for cell in cells):
            columns.setdefault(cells, []).append(variant)
    lines = [(title, {-1: "↓", 1: "↑", 0: ""}[better], [c[i] for c in columns]) for i, (_, title, better) in enumerate(keys)]  # fmt: skip
    kept = [line for line in lines if any(cell[0] != DASH for cell in line[2])]
    return [" = ".join(names) for names in columns.values()], kept


def by_class(summary: Summary) -> list[tuple[str, list[str], list[tuple[str, list[tuple[str, float]]]]]]:
    """Tables of figures by class: (title, classes, [(variant, [(text, how bad 0..1)])])."""
    found = []
    for key, title, text in (
        ("class_accuracy", "Accuracy", wording.percent_text),
        ("fd_per_class", "FD", wording.digits),
    ):
        rows = {v: q.get(key) for v, q in _qualities(summary).items()}
        known = {v: f for v, f in rows.items() if isinstance(f, dict) and f.get("per_class")}
        if known:
            classes = list(dict.fromkeys(str(c) for f in known.values() for c in _classes(f)))
            every = [x for f in known.values() for v in f["per_class"] if (x := wording.number(v)) is not None]
            worst = max(every, default=0.0) if key == "fd_per_class" else 0.0
            body = [(v, _shaded(f, classes, text, worst)) for v, f in known.items()]
            found.append((title, classes, body))
    return found


def judges(summary: Summary) -> list[str]:
    """A line for everything that judged: its name, the network, and how images reach it."""
    found = []
    for name, entry in (summary.get("judges") or {}).items():
        if isinstance(entry, dict):
            network = entry.get("network")
            what = ", ".join(f"{k} {v}" for k, v in network.items()) if isinstance(network, dict) else str(network)
            found.append(f"{figures.plain(name)}: {what}" + (f" ({entry['about']})" if entry.get("about") else ""))
    return found


def notes(summary: Summary) -> list[str]:
    """What the run notes of itself, then what figures say of themselves, such as too few images for FD; each once, with the
    variants it holds for."""
    found: dict[str, list[str]] = {}
    qualities = _qualities(summary)
    for variant, quality in qualities.items():
        for text in _remarks(quality):
            found.setdefault(text, []).append(variant)
    every = len(qualities)
    own = [str(note) for note in summary.get("notes") or ()]
    return own + [f"{text} ({'every variant' if len(n) == every > 1 else ', '.join(n)})" for text, n in found.items()]


def _remarks(quality: dict[str, Any]) -> Iterator[str]:
    """Remarks of one variant; parts of the scans say nothing that all of them have said."""
    for key, value in quality.items():
        if not isinstance(value, dict) or (key in PARTS and (quality.get("fd") or {}).get("note")):
            continue
        if value.get("note"):
            yield f"{_title(key)}: {value['note']}"
        if missing := value.get("left_out"):
            label = next(iter(missing))
            yield f"{_title(key)}: left out {'class' if len(missing) == 1 else 'classes'} {', '.join(missing)}. Class {label}: {missing[label]}"


def _qualities(summary: Summary) -> dict[str, dict[str, Any]]:
    """The quality of each variant's standing row, figures borrowed as in `figures.quality`."""
    batch, found = figures.headline_batch(summary), {}
    names = {k for r in figures.done(summary) for k in (r.get("quality") or {})}
    for variant in figures.variants(summary):
        row = figures.shown(summary, variant, batch)
        quality = {k: q for k in names if (q := figures.quality(summary, row, k)) is not None}
        if quality:
            found[variant] = quality
    return found


def _keys(summary: Summary) -> list[tuple[str, str, int]]:
    """The known figures, then those of further feature networks, which share their direction."""
    present = dict.fromkeys(k for q in _qualities(summary).values() for k in sorted(q))
    known = {k for k, _, _ in KNOWN}
    others = [k for k in present if k not in known and k not in FOLDED and k != "difference"]
    others.sort(key=_place)
    return [*KNOWN, *((k, _title(k), _direction(k)) for k in others)]


def _place(key: str) -> tuple[str, int]:
    """Figures of one further network together, in the order of the known ones."""
    names = [(len(name), i, name) for i, (name, _, _) in enumerate(KNOWN) if key.startswith(f"{name}_")]
    length, index, _ = max(names, default=(0, 0, ""))
    return key[length:], index


def _title(key: str) -> str:
    """A known figure's title; `fd_dinov2` reads `FD · dinov2`."""
    for name, title, _ in sorted(KNOWN, key=lambda k: -len(k[0])):
        if key == name:
            return title
        if key.startswith(f"{name}_"):
            return f"{title} · {figures.plain(key[len(name) + 1 :])}"
    return figures.plain(key)


def _direction(key: str) -> int:
    return next((better for name, _, better in sorted(KNOWN, key=lambda k: -len(k[0])) if key.startswith(name)), 0)


def _cell(variant: str, quality: dict[str, Any], key: str, better: int) -> Cell:
    text = _text(key)
    value = quality.get(key)
    low, high = figures.bounds(value)
    interval = "" if low is None else f"{text(low)} to {text(high)}".replace(" ", NBSP)
    difference = None if variant == "baseline" else (quality.get("difference") or {}).get(key)
    if wording.number(difference) is None:
        return text(value), interval, "", ""
    low, high = figures.bounds(difference)
    change = f"Δ {_signed(text, difference)}".replace(" ", NBSP)
    if low is None or high is None:
        return text(value), interval, change, ""
    ends = f"[{_signed(text, low)}, {_signed(text, high)}]".replace(" ", NBSP)
    sign = better * ((low > 0) - (high < 0))  # 0 where the interval holds 0
    return text(value), interval, f"{change} {ends}", {1: "better", -1: "worse", 0: ""}[sign]


def _text(key: str) -> Callable[[Any], str]:
    return wording.percent_text if key.startswith(SHARES) else wording.digits


def _signed(text: Callable[[Any], str], value: Any) -> str:
    return ("+" if (wording.number(value) or 0) > 0 else "") + text(value).replace("-", "−")


def _classes(figure: dict[str, Any]) -> list[Any]:
    return figure.get("classes") or list(range(len(figure["per_class"])))


def _shaded(
    figure: dict[str, Any], classes: list[str], text: Callable[[Any], str], worst: float
) -> list[tuple[str, float]]:
    """Each class's value with how bad it is, 0 to 1: a share's distance from 1, or a distance over the worst of all; its
    root, so that small losses show."""
    values = dict(zip((str(c) for c in _classes(figure)), figure["per_class"]))
    cells = []
    for name in classes:
        x = wording.number(values.get(name))
        bad = 0.0 if x is None else 1 - x if worst == 0 else x / worst
        cells.append((text(x), max(bad, 0.0) ** 0.5))
    return cells
