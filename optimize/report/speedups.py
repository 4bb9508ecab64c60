"""How fast, and how sure of it: whether the timing was noisy, and the factors of the speed-up with their intervals."""

from __future__ import annotations

import math
from typing import Any

from optimize.measure import wording
from optimize.report import figures
from optimize.report.figures import AGAINST, Summary

THE = {"vs_baseline": "the baseline", "vs_fair": "the fair configuration"}


def noise(summary: Summary) -> str:
    """A sentence for the banner where timings were noisy: how many rows, and what the headline's speed-ups may be; empty
    where none was."""
    timed = [r for r in figures.done(summary) if r.get("variant") != "final"] or figures.done(summary)
    disturbed = [r for r in timed if r.get("noisy")]
    final = figures.shown(summary, "final", figures.headline_batch(summary))
    found = [k for k in AGAINST if final is not None and figures.ratio(final, k) is not None]
    keys = [k for k in found if final is not None and figures.noisy(summary, final, k)]
    if not disturbed and not keys:
        return ""
    rows = f"{len(disturbed)} of {len(timed)} rows" if disturbed else "the final row"
    text = f"Timing was noisy: other work on this machine disturbed {rows}"
    gains = [
        " ".join(w for w in (figures.ratio_text(v), figures.interval_text(v), "against", THE[k]) if w)
        for k in keys
        if (v := figures.speedup(final or {}, k))
    ]
    if not gains:
        return f"{text}, none of them behind the headline's speed-ups."
    return f"{text}, those behind the headline among them: {' and '.join(gains)}."


def factors(summary: Summary) -> dict[str, Any]:
    """The steps of the speed-up by name, each a number or, where its interval is known, {ratio, low, high}."""
    intervals = summary.get("factor_intervals") or {}
    return {name: intervals.get(name) or value for name, value in (summary.get("factors") or {}).items()}


def whole(summary: Summary) -> Any:
    """All factors together: the final row's speed-up with its interval where it is their product, else the product;
    None where there is no factor."""
    known = [v for f in factors(summary).values() if (v := wording.number(f)) is not None]
    product = math.prod(known)
    final = figures.shown(summary, "final", figures.headline_batch(summary))
    value = figures.speedup(final, "vs_baseline") if final is not None else None
    same = wording.number(value) is not None and math.isclose(wording.number(value) or 0.0, product, rel_tol=1e-6)
    return value if same else (product if known else None)
