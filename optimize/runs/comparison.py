"""What changed between two reports, row by row, and whether it is more than noise.

A difference in latency is claimed where its 95 % interval excludes 1. Rows of one bench are paired round by round. Two
benches were run at different times, so their ratio holds whatever happened to the machine in between: the interval is
widened by as much as rows of unchanged artifacts may have moved, and without such a row nothing is claimed. Unlike
environments are not compared.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimize.errors import ArtifactError, UserError
from optimize.measure import bench, wording
from optimize.measure.record import Measurement, paired, speedup, unlike
from optimize.measure.statistics import Interval
from optimize.plain.shapes import Summary, as_shaped, misshapen
from optimize.report import figures
from optimize.storage.weights import read_json

NOTHING = "no difference shown"


def compare(a: Path | str, b: Path | str) -> dict[str, Any]:
    """`{a, b, latency, size, quality, gates, only_in_a, only_in_b}`, JSON values.

    `a` and `b` are run folders (measurements.jsonl, summary.json), measurements files or summary.json files. Ratios are
    a's time over b's: above 1, b is faster. Raises UserError or ArtifactError where there is nothing to compare.
    """
    with as_shaped(Path(a)):
        before = load(Path(a))
    with as_shaped(Path(b)):
        after = load(Path(b))
    with as_shaped(Path(f"{a} or {b}")):
        return _compared(str(a), str(b), before, after)


def _compared(a: str, b: str, before: Report, after: Report) -> dict[str, Any]:
    common = [key for key in before.rows if key in after.rows]
    if not common:
        raise UserError(
            f"compare: no row of {a} is in {b}. Rows are matched by name: {_some(before.rows)} against {_some(after.rows)}."
        )
    pairs = {key: (before.rows[key], after.rows[key]) for key in common}
    return {
        "a": a,
        "b": b,
        "latency": _latencies(pairs),
        "size": [line for key, (x, y) in pairs.items() for line in _sizes(key, x, y)],
        "quality": list(_qualities(before.summary, after.summary)),
        "gates": list(_gates(before.summary, after.summary)),
        "only_in_a": [k for k in before.rows if k not in after.rows],
        "only_in_b": [k for k in after.rows if k not in before.rows],
    }


@dataclass(frozen=True)
class Line:
    """One row of a report: its measurement where the raw samples are there, else its line in the summary."""

    artifact_id: str
    environment: dict[str, Any]
    status: str
    reason: str
    measurement: Measurement | None = None
    row: dict[str, Any] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        """Whether there are figures."""
        return self.status == "done"


@dataclass(frozen=True)
class Report:
    """Rows by key, and the summary ({} where there is none)."""

    rows: dict[str, Line]
    summary: dict[str, Any]


def load(path: Path) -> Report:
    """A run's folder, a measurements file (the last row of a key counts), or a summary.json."""
    if path.is_dir():
        summary, measured = path / "summary.json", path / "measurements.jsonl"
        if not any(os.path.lexists(file) for file in (summary, measured)):
            raise UserError(
                f"compare: {path} holds neither summary.json nor measurements.jsonl. Give a run's folder, e.g. exported/digits."
            )
        about = read_json(summary) if os.path.lexists(summary) else {}
        rows = _summary_lines(about) if about else {}
        rows |= _measured_lines(measured, rows) if os.path.lexists(measured) else {}
    elif path.suffix == ".json":
        about = read_json(path, object)
        rows = _summary_lines(about)
    else:
        about, rows = {}, _measured_lines(path, {})
    if not rows:
        raise UserError(f"compare: {path} holds no measurements. Run optimize bench or optimize run first.")
    return Report(rows, about)


def _measured_lines(path: Path, summarized: dict[str, Line]) -> dict[str, Line]:
    """The last row of every key, with its line of the summary where there is one."""
    found = {}
    for m in bench.read(path):
        if not m.key.startswith("factor:"):
            row = summarized[m.key].row if m.key in summarized else {}
            identity = m.artifact_id or str(row.get("artifact_id") or "")
            found[m.key] = Line(identity, m.environment, m.status, m.reason, m, row)
    return found


def _summary_lines(summary: Any) -> dict[str, Line]:
    """Lines of a summary, keyed as its measurements are."""
    if not isinstance(summary, dict) or "rows" not in summary:
        raise UserError(
            "compare: that JSON file is no summary.json (it has no rows). Give the one optimize run writes."
        )
    if wrong := misshapen(summary, Summary):
        raise ArtifactError(f"compare: that summary.json is not of this version: {wrong}")
    found = {}
    for row in figures.rows(summary):
        key = f"{row.get('variant')}/{figures.runner(row)}/{row.get('batch')}"
        about = (str(row.get("artifact_id") or ""), summary.get("environment") or {})
        found[key] = Line(*about, figures.status(row), str(row.get("reason") or ""), row=row)
    return found


def _latencies(pairs: dict[str, tuple[Line, Line]]) -> list[dict[str, Any]]:
    ratios = {key: ratio for key, (x, y) in pairs.items() if (ratio := _ratio(x, y)) is not None}
    unchanged = {key for key in ratios if pairs[key][0].artifact_id and same_artifact(*pairs[key])}
    found = []
    for key, (x, y) in pairs.items():
        if key in ratios:
            moved = [abs(math.log(end)) for k in unchanged - {key} for end in (ratios[k].low, ratios[k].high)]
            found.append({"row": key, **judged(ratios[key], _paired(x, y), max(moved, default=None))})
        else:
            found.append({"row": key, "ratio": None, "verdict": "not compared", "basis": _why_not(x, y)})
    return found


def judged(ratio: Interval, pair: bool, moved: float | None) -> dict[str, Any]:
    """`{ratio, paired, verdict, basis}`. `moved`: the largest |ln ratio| that the intervals of unchanged rows hold."""
    if pair:
        basis = "paired by round"
    elif moved is None:
        basis = "measured in different benches, unpaired; no unchanged row shows what the machine did: not claimed"
        return {"ratio": ratio.to_json(), "paired": False, "verdict": NOTHING, "basis": basis}
    else:
        wider = math.exp(moved)
        ratio = Interval(ratio.value, ratio.low / wider, ratio.high * wider, ratio.n)
        basis = f"measured in different benches, unpaired; widened by the {wider - 1:.1%} that unchanged rows may have moved"
    verdict = "faster" if ratio.low > 1 else "slower" if ratio.high < 1 else NOTHING
    return {"ratio": ratio.to_json(), "paired": pair, "verdict": verdict, "basis": basis}


def same_artifact(x: Line, y: Line) -> bool:
    """Whether both rows are of the very same files."""
    return x.artifact_id == y.artifact_id


def _paired(x: Line, y: Line) -> bool:
    return x.measurement is not None and y.measurement is not None and paired(x.measurement, y.measurement)


def _ratio(x: Line, y: Line) -> Interval | None:
    """a's time over b's, per image; None where the two cannot be compared."""
    if _why_not(x, y):
        return None
    if x.measurement and y.measurement:
        return speedup(x.measurement, y.measurement)
    above, below = (_median_ms(line) for line in (x, y))
    return None if above is None or below is None else quotient(above, below)


def quotient(above: Interval, below: Interval) -> Interval:
    """The ratio of two independent medians: their intervals' half widths, as logarithms, added in quadrature."""
    value = above.value / below.value
    down = math.hypot(math.log(above.value / above.low), math.log(below.high / below.value))
    up = math.hypot(math.log(above.high / above.value), math.log(below.value / below.low))
    return Interval(value, value * math.exp(-down), value * math.exp(up), min(above.n, below.n))


def _median_ms(line: Line) -> Interval | None:
    """The median image latency with its interval; None where a summary of an earlier version lacks the interval."""
    found = line.row.get("image_latency_ms") or {}
    if line.measurement:
        latency = line.measurement.image_latency()
        per = 1e3 / line.measurement.variant.batch
        found = {k: latency[k] * per for k in ("p50", "low", "high")} | {"n": latency["n"]}
    if any(wording.number(found.get(k)) is None for k in ("p50", "low", "high")):
        return None
    return Interval(found["p50"], found["low"], found["high"], found["n"])


def _why_not(x: Line, y: Line) -> str:
    """Why two rows' times are not compared; empty where they may be."""
    for name, line in (("a", x), ("b", y)):
        if not line.done:
            return f"{name} {line.status}: {line.reason}"
    if differ := unlike(x.environment, y.environment):
        return f"environments differ: {differ}"
    if x.measurement and y.measurement:
        if differ := unlike(x.measurement.threads, y.measurement.threads):
            return f"threads differ: {differ}"
        return "" if x.measurement.image_s and y.measurement.image_s else "no images were timed"
    return "" if _median_ms(x) and _median_ms(y) else "no interval of the median in the summary"


def _sizes(key: str, x: Line, y: Line) -> Iterator[dict[str, Any]]:
    """Exact figures that changed: bytes on disk, parameters, multiply-accumulates, evaluations."""
    for what in ("size_bytes", "params", "macs", "nfe"):
        a, b = (_exact(line, what) for line in (x, y))
        if a is not None and b is not None and a != b:
            yield {"row": key, "what": what, "a": a, "b": b}


def _exact(line: Line, what: str) -> float | None:
    found, m = wording.number(line.row.get(what)), line.measurement
    if found is None and m is not None and m.done and what in ("size_bytes", "nfe"):
        return m.memory.get("file_bytes") if what == "size_bytes" else m.nfe
    return found


def _qualities(before: dict[str, Any], after: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Quality figures with an interval on both sides, once for every variant and runner."""
    mine, theirs = (_by_variant(s) for s in (before, after))
    for name in [n for n in mine if n in theirs]:
        for what, a in mine[name].items():
            b: Any = theirs[name].get(what)
            if _with_interval(a) and _with_interval(b):
                yield {"row": name, "what": what, "a": a["value"], "b": b["value"], **difference(a, b)}


def _with_interval(figure: Any) -> bool:
    return figures.bounds(figure)[0] is not None and wording.number(figure) is not None


def _by_variant(summary: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows = [r for r in figures.done(summary) if r.get("quality")]
    return {f"{r.get('variant')}/{figures.runner(r)}": r["quality"] for r in rows}


def difference(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """`{difference: {value, low, high}, verdict}` of b - a, half widths added in quadrature as if they were independent;
    images of the same seeds are not, so the interval is rather too wide."""
    value = b["value"] - a["value"]
    low = value - math.hypot(a["high"] - a["value"], b["value"] - b["low"])
    high = value + math.hypot(a["value"] - a["low"], b["high"] - b["value"])
    verdict = "changed" if low > 0 or high < 0 else NOTHING
    return {"difference": {"value": value, "low": low, "high": high}, "verdict": verdict}


def _gates(before: dict[str, Any], after: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Gates and targets whose outcome changed."""
    for kind in ("gates", "targets"):
        mine, theirs = before.get(kind) or {}, after.get(kind) or {}
        for name in [n for n in mine if n in theirs]:
            a, b = ((side[name] or {}).get("holds") for side in (mine, theirs))
            if a != b:
                values = {"a_value": (mine[name] or {}).get("value"), "b_value": (theirs[name] or {}).get("value")}
                yield {"kind": kind[:-1], "name": name, "a": a, "b": b, **values}


def _some(keys: dict[str, Any]) -> str:
    names = list(keys)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
