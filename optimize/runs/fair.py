"""The fair baseline: the fastest uncompressed FP32 configuration that passes the same gates as the candidate.

A speed-up over an untuned 50-step sampler says little; a better solver is free. Every solver, step count, spacing and
guidance of the recipe's `fair` section is a candidate. Time is network evaluations times the call time of the fastest
FP32 runner, so candidates are tried by rising evaluations, and the search ends with the first count at which any passes
(all of that count are tried; the one with the lowest FD is taken).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby, product
from typing import TYPE_CHECKING, Any

from optimize.diffusion.sampling import Guidance, Sampler
from optimize.recipes.schema import FairConfig
from optimize.runs.gates import hold

if TYPE_CHECKING:
    from optimize.diffusion.schedule import Schedule

Judge = Callable[[Sampler], tuple[dict[str, Any], dict[str, Any]]]


def search(
    config: FairConfig, baseline: Sampler, schedule: Schedule, judge: Judge
) -> tuple[Sampler | None, list[dict[str, Any]]]:
    """(chosen sampler or None, a row for every candidate tried). `judge(sampler)` gives (quality, gates)."""
    rows: list[dict[str, Any]] = []
    for _, same_nfe in groupby(candidates(config, baseline, schedule), key=lambda s: s.nfe(schedule)):
        tried = [(sampler, *judge(sampler)) for sampler in same_nfe]
        rows += [_row(sampler, schedule, quality, gates) for sampler, quality, gates in tried]
        passing = [(quality["fd"]["value"], i) for i, (_, quality, gates) in enumerate(tried) if hold(gates)]
        if passing:
            return tried[min(passing)[1]][0], rows
    return None, rows


def candidates(config: FairConfig, baseline: Sampler, schedule: Schedule) -> Iterator[Sampler]:
    """Samplers by rising NFE, none dearer than the baseline; clipping as in the baseline."""
    found: dict[tuple[Any, ...], Sampler] = {}
    for solver, steps, spacing, guided in product(config.solvers, config.steps, config.spacings, config.guided):
        if guided and baseline.guidance.cfg is None:
            continue
        guidance = baseline.guidance if guided else Guidance()
        sampler = Sampler(
            solver=solver,
            steps=steps,
            spacing=spacing,
            clip=baseline.clip,
            use_clipped_model_output=baseline.use_clipped_model_output,
            guidance=guidance,
        )
        alike = solver if steps > 1 else ""  # one step is one Euler step, whatever the solver
        found.setdefault((tuple(sampler.times(schedule)), alike, guided), sampler)
    within = [s for s in found.values() if s.nfe(schedule) <= baseline.nfe(schedule)]
    return iter(sorted(within, key=lambda s: s.nfe(schedule)))


def _row(sampler: Sampler, schedule: Schedule, quality: dict[str, Any], gates: dict[str, Any]) -> dict[str, Any]:
    return {
        "solver": sampler.solver,
        "steps": sampler.steps,
        "spacing": sampler.spacing,
        "guided": bool(sampler.guidance.cfg),
        "nfe": sampler.nfe(schedule),
        "fd": quality.get("fd"),
        "class_accuracy_min": quality.get("class_accuracy", {}).get("min"),
        "passes": hold(gates),
        "reason": "; ".join(
            g.get("note") or f"{n} {g['value']:.3f} over {g['limit']:.3f}" for n, g in gates.items() if not g["holds"]
        ),
    }
