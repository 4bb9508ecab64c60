"""Reading a summary: which rows to show, what was achieved, and numbers as text.

A summary is the parsed summary.json. Any optional key may be absent or null (a refused row has a reason and no
figures), so every reader here returns None for what is not there, and every writer shows it as a dash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from optimize.measure.record import policy_text
from optimize.measure.wording import DASH, bytes_text, digits, number, seconds_text

Summary = dict[str, Any]
Row = dict[str, Any]

VARIANTS = ("baseline", "fair", "prune", "recover", "distill", "quantize", "final")


@dataclass(frozen=True)
class Headline:
    """What was achieved: one sentence, what 1,000 images cost, and tiles of (figure, caption, detail)."""

    sentence: str
    cost: str
    tiles: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Check:
    """One gate or target. `sign` is the relation asked for, read off value, limit and whether it holds."""

    kind: str  # gate or target
    name: str
    value: str
    sign: str
    limit: str
    holds: bool | None
    note: str = ""

    @property
    def routine(self) -> bool:
        """A parity gate that holds: there is one for every export and runner, so reports fold them away."""
        return self.holds is True and self.name.startswith("parity ")

    @property
    def verdict(self) -> str:
        """`holds`, `failed` (a gate), `missed` (a target) or `unknown`."""
        if self.holds is None:
            return "unknown"
        return "holds" if self.holds else {"gate": "failed", "target": "missed"}[self.kind]


def headline(summary: Summary) -> Headline:
    """The sentence on top of every report, made of measured numbers alone."""
    batch = headline_batch(summary)
    final, base = shown(summary, "final", batch), shown(summary, "baseline", batch)
    if final is None:
        return Headline("No measured row of the final model: nothing can be claimed yet.", "", ())
    sentence = f"The final model makes {_rate(final)} on {runner(final)} at batch {final.get('batch', DASH)}"
    gains = [
        f"{ratio_in_full(summary, final, key)}{',' * noisy(summary, final, key)} {words}"
        for key, words in (
            ("vs_baseline", "the baseline's rate"),
            ("vs_fair", "that of the fastest uncompressed configuration"),
        )
        if ratio(final, key) is not None
    ]
    sentence += f": {' and '.join(gains)}" if gains else ""
    parts = [p for p in (_size_clause(final, base), _quality_clause(summary, final, base)) if p]
    sentence += f"; {', '.join(parts)}" if parts else ""
    return Headline(sentence + ".", _cost(final, base), tuple(_tiles(summary, final, base)))


def _rate(row: Row) -> str:
    rate = number(row.get("images_per_s"))
    return "images at an unmeasured rate" if rate is None else f"{digits(rate)} images a second"


def _size_clause(final: Row, base: Row | None) -> str:
    share = _share(final, base, "size_bytes")
    return "" if share is None else f"its file is {digits(100 * share)} % of the baseline's size"


def _quality_clause(summary: Summary, final: Row, base: Row | None) -> str:
    ours, theirs = (None if row is None else number(quality(summary, row, "fd")) for row in (final, base))
    if ours is None:
        return ""
    return f"FD {digits(ours)}" + ("" if theirs is None else f" against {digits(theirs)}")


def _share(final: Row, base: Row | None, key: str) -> float | None:
    ours, theirs = number(final.get(key)), number((base or {}).get(key))
    return ours / theirs if ours is not None and theirs else None


def _cost(final: Row, base: Row | None) -> str:
    """Cost is machine time: 1,000 images cost 1000 / rate seconds of the same machine."""
    ours, theirs = number(final.get("images_per_s")), number((base or {}).get("images_per_s"))
    if not ours:
        return ""
    text = f"1,000 images cost {seconds_text(1000 / ours)} of this machine"
    if not theirs:
        return text + "."
    return f"{text} instead of {seconds_text(1000 / theirs)}: {digits(100 * theirs / ours)} % of the baseline's cost."


def _tiles(summary: Summary, final: Row, base: Row | None) -> list[tuple[str, str, str]]:
    tiles = []
    for key, caption in (
        ("vs_baseline", "images a second against the baseline"),
        ("vs_fair", "against the fair configuration"),
    ):
        if ratio(final, key) is not None:
            low, high = bounds(speedup(final, key))
            details = [] if low is None else [f"95 % interval {digits(low)} to {digits(high)}×"]
            details += ["noisy"] if noisy(summary, final, key) else []
            tiles.append((ratio_text(speedup(final, key)), caption, ", ".join(details)))
    share = _share(final, base, "size_bytes")
    if share is not None and base is not None:
        detail = f"{bytes_text(final.get('size_bytes'))} instead of {bytes_text(base.get('size_bytes'))}"
        tiles.append((f"{digits(100 * share)} %", "of the baseline's bytes", detail))
    fd = quality(summary, final, "fd")
    if number(fd) is not None:
        theirs = quality(summary, base, "fd") if base else None
        tiles.append(
            (digits(number(fd)), "FD, lower is better", f"baseline {digits(number(theirs))}" if number(theirs) else "")
        )
    cost = _share(base or {}, final, "images_per_s")
    if cost is not None:
        tiles.append((f"{digits(100 * cost)} %", "of the cost per 1,000 images", "machine time, same machine"))
    return tiles


def checks(summary: Summary, kind: str) -> list[Check]:
    """The run's gates (`kind="gate"`) or targets (`"target"`), misses first."""
    found = [_check(kind, name, entry or {}) for name, entry in (summary.get(f"{kind}s") or {}).items()]
    return sorted(found, key=lambda c: {False: 0, None: 1, True: 2}[c.holds])


def _check(kind: str, name: str, entry: dict[str, Any]) -> Check:
    value, limit = (any_text(entry.get(k)) for k in ("value", "limit"))
    note = str(entry.get("note") or "")
    return Check(kind, plain(name), value, relation(entry), limit, entry.get("holds"), note)


def relation(entry: dict[str, Any]) -> str:
    """`≤` or `≥`: the relation asked for, or the one that `holds` implies; empty where it cannot be told."""
    if entry.get("at_most") is not None:
        return "≤" if entry["at_most"] else "≥"
    a, b, holds = number(entry.get("value")), number(entry.get("limit")), entry.get("holds")
    if a is None or b is None or holds is None or a == b:
        return ""
    return "≤" if (a < b) == holds else "≥"


def misses(summary: Summary) -> list[Check]:
    """Gates that failed, then targets that were missed."""
    return [c for kind in ("gate", "target") for c in checks(summary, kind) if c.holds is False]


def verdict(summary: Summary) -> str:
    """`failed` (a gate), `missed` (a target) or `passed`; the run's own flags count beside the listed checks."""
    lost = {c.kind for c in misses(summary)}
    if "gate" in lost or summary.get("gates_passed") is False:
        return "failed"
    return "missed" if "target" in lost or summary.get("targets_met") is False else "passed"


def tally(entries: dict[str, Any] | None) -> str:
    """A row's gates or targets in a cell: `✓ 3/3`, `✗ 2/3`, or a dash where none were judged."""
    judged = [bool((e or {}).get("holds")) for e in (entries or {}).values() if (e or {}).get("holds") is not None]
    return f"{'✓' if all(judged) else '✗'} {sum(judged)}/{len(judged)}" if judged else DASH


def rows(summary: Summary) -> list[Row]:
    """All rows, refused and failed ones included, in the order of the run."""
    return [r for r in summary.get("rows") or [] if isinstance(r, dict)]


def done(summary: Summary) -> list[Row]:
    """Rows with measured figures; what was predicted is no measurement."""
    return [r for r in rows(summary) if status(r) == "done" and not r.get("predicted")]


def predicted(summary: Summary) -> list[Row]:
    """Rows whose times were predicted, not measured."""
    return [r for r in rows(summary) if status(r) == "done" and r.get("predicted")]


def status(row: Row) -> str:
    """`done`, `refused` or `failed`; a row that does not say has figures."""
    return str(row.get("status") or "done")


def lost(summary: Summary) -> list[str]:
    """A line for every row that has no figures, with its reason."""
    return [
        f"{r.get('status')}: {place(r)}: {r.get('reason') or 'no reason given'}"
        for r in rows(summary)
        if status(r) != "done"
    ]


def place(row: Row) -> str:
    """Which row this is, in words."""
    return f"{row.get('variant')} on {runner(row)}, batch {row.get('batch')}"


AGAINST = {"vs_baseline": "baseline", "vs_fair": "fair"}  # the variant that a speed-up is taken against


def noisy(summary: Summary, row: Row, key: str) -> bool:
    """Whether a speed-up of this row rests on a timing that other work on the machine disturbed: its own, or that of the
    row it is taken against."""
    other = shown(summary, AGAINST[key], row.get("batch"))
    return bool(row.get("noisy") or (other or {}).get("noisy"))


def ratio_in_full(summary: Summary, row: Row, key: str) -> str:
    """`227× [181, 317], noisy`: a speed-up, its interval where there is one, and whether its timing was noisy."""
    value = speedup(row, key)
    text = f"{ratio_text(value)} {interval_text(value)}".strip()
    return f"{text}, noisy" if noisy(summary, row, key) else text


def throttled(summary: Summary) -> list[Row]:
    """Rows during whose turns the processor or the GPU ran slower than it can."""
    return [r for r in done(summary) if r.get("throttled")]


def rewritten(summary: Summary) -> list[str]:
    """A sentence for every variant whose graph a runner changes before it runs it."""
    found = {(r.get("variant"), runner(r), said): None for r in done(summary) for said in r.get("lowered") or []}
    return [f"{variant} on {name}: {said}" for variant, name, said in found]


def variants(summary: Summary) -> list[str]:
    """Names of the variants in the rows: the known ones in the order of the recipe's way, then others."""
    names = list(dict.fromkeys(str(r.get("variant")) for r in rows(summary)))
    return sorted(names, key=lambda n: VARIANTS.index(n) if n in VARIANTS else VARIANTS.index("final") - 0.5)


def headline_batch(summary: Summary) -> int | None:
    """The largest batch at which the final model was measured (else any variant): the one claims are made at."""
    found = [r for r in done(summary) if isinstance(r.get("batch"), int)]
    finals = [r["batch"] for r in found if r.get("variant") == "final"]
    return max(finals or [r["batch"] for r in found], default=None)


def shown(summary: Summary, variant: str, batch: int | None) -> Row | None:
    """The row that stands for a variant at a batch: the baseline as its user runs it (eager torch), fair as speed-ups
    are taken against it, any other on its fastest runner."""
    found = [r for r in done(summary) if r.get("variant") == variant and r.get("batch") == batch]
    if variant == "baseline":
        found = [r for r in found if r.get("runner") == "torch"] or found
    if variant == "fair":
        found = [r for r in found if ratio(r, "vs_fair") == 1.0] or found
    return max(found, key=lambda r: number(r.get("images_per_s")) or 0.0, default=None)


def quality(summary: Summary, row: Row | None, key: str) -> Any:
    """A quality figure of a row, or that of another row of the very same artifact at the same precision."""
    if row is None:
        return None
    own = (row.get("quality") or {}).get(key)
    if own is not None or row.get("artifact_id") is None:
        return own
    same = [
        r for r in rows(summary) if all(r.get(k) == row.get(k) for k in ("artifact_id", "variant", "precision", "nfe"))
    ]
    return next((q[key] for r in same if (q := r.get("quality") or {}).get(key) is not None), None)


def speedup(row: Row, key: str) -> Any:
    """The {ratio, low, high} of a row against `vs_baseline` or `vs_fair`, or None."""
    return (row.get("speedup") or {}).get(key)


def ratio(row: Row, key: str) -> float | None:
    """The ratio of `speedup`."""
    return number(speedup(row, key))


def runner(row: Row) -> str:
    """The runner with its options and what is unusual about its I/O, e.g. `openvino:bf16`, `torch:fp16@cuda+graphs`."""
    options = dict(row.get("runner_options") or {})
    device = f"@{options.pop('device')}" if "device" in options else ""
    policy = policy_text(str(row.get("io", "host")), bool(row.get("cuda_graphs")))
    return ":".join([str(row.get("runner") or DASH), *map(str, options.values())]) + device + policy


def latency(row: Row, kind: str, percentile: str) -> float | None:
    """Milliseconds: kind `call` or `image`, percentile `p50`, `p90`, `p95` or `p99`."""
    return number((row.get(f"{kind}_latency_ms") or {}).get(percentile))


def bounds(value: Any) -> tuple[float | None, float | None]:
    """(low, high) of a figure with an interval; both None where one is missing."""
    low, high = (number(value.get(k)) for k in ("low", "high")) if isinstance(value, dict) else (None, None)
    return (low, high) if low is not None and high is not None else (None, None)


def ratio_text(value: Any) -> str:
    """`213×`, or a dash."""
    return DASH if number(value) is None else f"{digits(value)}×"


def interval_text(value: Any) -> str:
    """`[198, 229]`, or nothing where there is no interval."""
    low, high = bounds(value)
    return "" if low is None else f"[{digits(low)}, {digits(high)}]"


def any_text(value: Any) -> str:
    """Any JSON value in a cell: numbers with four digits, truth in words, the rest as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float) and math.isfinite(value):
        x = float(value)
        return f"{x:,.0f}" if x == round(x) or abs(x) >= 1000 else f"{x:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(any_text(v) for v in value)
    return DASH if value is None or value == "" else str(value)


def plain(name: Any) -> str:
    """A key as words."""
    return str(name).replace("_", " ").replace(".", " · ")


def short_id(value: Any) -> str:
    """The first characters of a content address."""
    return str(value)[:10] if value else DASH


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (path, text) pairs, lists of plain values kept in one line."""
    if isinstance(value, dict):
        return [pair for k, v in value.items() for pair in flat(v, f"{prefix}.{k}" if prefix else str(k))]
    if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        return [pair for i, v in enumerate(value) for pair in flat(v, f"{prefix}[{i}]")]
    return [(prefix, any_text(value))]
