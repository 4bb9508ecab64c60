"""Gates (about being right) and targets (about being fast and small): value, limit, whether it holds."""

from __future__ import annotations

from typing import Any

from optimize.diffusion.parity import worst
from optimize.recipes.schema import Gates


def check(value: float | None, limit: float, at_most: bool = True) -> dict[str, Any]:
    """`{value, limit, holds}`; a value that is missing or not a number does not hold."""
    holds = value is not None and (value <= limit if at_most else value >= limit)
    return {"value": value, "limit": limit, "at_most": at_most, "holds": bool(holds)}


def quality_gates(
    gates: Gates, quality: dict[str, Any], baseline: dict[str, Any], half_split: dict[str, Any]
) -> dict[str, Any]:
    """The FD gate and, where the model knows classes, the class-accuracy gate of a quality against the baseline's; the gate
    `finite` alone where either could not be judged (`{"failed": why}`)."""
    if failed := quality.get("failed") or baseline.get("failed"):
        return {"finite": {"value": "no", "limit": "yes", "holds": False, "note": failed}}
    slack = half_split["value"] if gates.fd.slack == "half_split" else 0.0
    found = {"fd": check(quality["fd"]["value"], gates.fd.max_ratio * baseline["fd"]["value"] + slack)}
    if "class_accuracy" in baseline:
        pairs = zip(baseline["class_accuracy"]["per_class"], quality["class_accuracy"]["per_class"])
        found["class_accuracy"] = check(max(b - q for b, q in pairs), gates.class_accuracy.max_drop)
    return found


def slack_notes(gates: Gates, baseline: dict[str, Any], half_split: dict[str, Any]) -> list[str]:
    """A sentence where the slack lets through more than the baseline itself is from the real data."""
    own, slack = (baseline.get("fd") or {}).get("value"), half_split["value"]
    if gates.fd.slack != "half_split" or own is None or slack <= own:
        return []
    limit = gates.fd.max_ratio * own + slack
    times = f"{limit / own:.3g} times that" if own > 0 else "any multiple of that"
    return [
        f"gate fd: its slack, the FD {slack:.3g} between two halves of the real data, is more than the baseline's own FD "
        f"{own:.3g}, so up to {limit:.3g} passes, {times}. Give more real images, or set gates.fd.slack: none."
    ]


def parity_gate(gates: Gates, parity: dict[str, Any] | None, precision: str) -> dict[str, Any]:
    """The parity gate of one exported variant on one runner; precision is a row's, e.g. fp32, bf16, int8, int8+bf16."""
    limits = gates.parity.to_json()
    limit = max(limits[p] for p in precision.split("+"))
    found = check(parity["relative_l2"] if parity else None, limit)
    if parity and found["holds"] and worst(parity, precision) > limit:
        found = check(worst(parity, precision), limit) | {"note": "for latents of one value"}
    broken = (parity or {}).get("not_finite")
    return found | {"value": None, "holds": False, "note": broken} if broken else found


def hold(gates: dict[str, Any]) -> bool:
    """Whether all of them hold."""
    return all(g["holds"] for g in gates.values())
