"""Target and budget in, recipe out: what is predicted to meet the budget at the least predicted loss of quality.

An option is considered only where it beats what is simpler by more than its own interval. Losses are published figures of other models, as the rise of FID over the untouched model's: a prior for choosing, which
the run's own gates then judge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from optimize.configs import Config
from optimize.planning.forecast import COMPUTED, Candidate, Forecast
from optimize.planning.offers import exports_for
from optimize.planning.subject import FEWEST

SHARES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)  # of the MACs to remove
CALLS = (16, 8, 4, 2, 1)  # network evaluations of a student
# FID at N evaluations over FID at 8: (expected, worst). Expected: multistep consistency distillation on ImageNet-64,
# small model: 1.6, 1.7, 2.0, 4.3 (Heek et al. 2024). Worst: progressive distillation on CIFAR-10: 2.57, 3.00, 4.51,
# 9.12 (Salimans & Ho 2022).
LOSS_OF_CALLS = {1: (2.69, 3.55), 2: (1.25, 1.75), 4: (1.06, 1.17)}
# FID rise for each share of the MACs removed, after finetuning: Diff-Pruning CIFAR-10 44 %: 1.26, CelebA 44 %: 0.96,
# LSUN-Church 60 %: 1.31; BK-SDM 33 %: 1.21, 43 %: 1.30, 62 %: 1.31 (parameters). Mean slope and largest.
LOSS_OF_SHARE = (0.48, 0.70)
# FLUX.1-dev FID: BF16 20.3, INT8 20.4 (SVDQuant's table); 16 bits lose nothing that is published
LOSS_OF_FORMAT = {"int8": (1.005, 1.05), "fp8": (1.0, 1.05)}
TAKEN = ("seed", "source", "sampler", "data", "quality", "pinned", "fair", "prices")  # from the recipe it starts from
UNKNOWN = "quality unknown until the gates judge it"
DEFAULT_LOSS = 0.3  # allowed where no budget is given at all: the FD gate's usual 1.3


class Budget(Config):
    """What is asked for; None: not asked."""

    latency_ms: float | None = Field(default=None, gt=0)  # of one batch of images
    size_mb: float | None = Field(default=None, gt=0)  # of the network's file, 10^6 bytes
    max_quality_loss: float | None = Field(default=None, ge=0)  # rise of FID (FD) as a fraction: 0.3 is 1.3 times

    @property
    def empty(self) -> bool:
        """Whether nothing is asked of time and size."""
        return self.latency_ms is None and self.size_mb is None

    def excess(self, found: Forecast) -> float:
        """How many times over the budget a forecast is at its worst; 1 or less meets it."""
        asked = [(found.seconds * 1e3, self.latency_ms), (found.size_bytes / 1e6, self.size_mb)]
        return max((value / limit for value, limit in asked if limit), default=0.0)


@dataclass(frozen=True)
class Option:
    """A candidate with its forecast and predicted loss of quality."""

    found: Forecast
    way: str  # to run it
    runner: str | None  # spec of the runner here that runs it so; None: this version has none
    loss: float  # expected rise of FID, a fraction
    worst: float

    @property
    def passes(self) -> int:
        """How many passes it takes."""
        c = self.found.candidate
        return 2 * bool(c.share) + bool(c.nfe) + (c.format in LOSS_OF_FORMAT)


@dataclass(frozen=True)
class Proposal:
    """The option chosen, whether it is predicted to meet the budget, and what would be needed where it does not."""

    option: Option | None
    meets: bool
    certain: bool  # even at the end of the interval
    needed: tuple[str, ...] = ()


def losses(candidate: Candidate) -> tuple[float, float]:
    """(expected, worst) rise of FID as a fraction."""
    expected, worst = LOSS_OF_CALLS.get(candidate.nfe or 0, (1.0, 1.0))
    by_format = LOSS_OF_FORMAT.get(candidate.format, (1.0, 1.0))
    return (
        expected * (1 + LOSS_OF_SHARE[0] * candidate.share) * by_format[0] - 1,
        worst * (1 + LOSS_OF_SHARE[1] * candidate.share) * by_format[1] - 1,
    )


def loss_text(expected: float, worst: float, steps: int | None = None) -> str:
    """A predicted loss in words; nothing is published of fewer steps of another solver that holds for any model."""
    if steps:
        return UNKNOWN
    if worst < 0.005:
        return "no loss of FID is published for as much"
    return f"FID {1 + expected:.2f} times the untouched model's (at worst {1 + worst:.2f})"


def candidates(nfe: int, guided: bool, formats: Sequence[str], steps: Sequence[int] = ()) -> Iterable[Candidate]:
    """Everything that may be proposed for a model of `nfe` evaluations today: fewer steps, fewer calls of a student, or as
    many as unguided steps (guidance folded in), thinner networks, and the formats that work."""
    folded = (nfe // 2,) if guided and nfe // 2 <= 64 else ()
    calls = sorted({n for n in (*folded, *CALLS) if n < nfe}, reverse=True)
    drawn = [{}, *({"steps": n} for n in steps), *({"nfe": n} for n in calls)]
    return [Candidate(share=s, format=f, **how) for how in drawn for s in SHARES for f in formats]


def fewer_steps(steps: int) -> tuple[int, ...]:
    """Steps of the better solver worth trying without any training; none where there is little to gain."""
    return tuple(n for n in (20, 10) if n < steps)[:1]


def worthwhile(options: Sequence[Option], budget: Budget) -> list[Option]:
    """The options that beat each simpler one among them by more than their own interval, or that a size is asked for."""
    known = {o.found.candidate: o for o in options}
    return [o for o in options if all(beats(o, other, budget) for other in _simpler(o.found.candidate, known))]


def beats(option: Option, other: Option, budget: Budget) -> bool:
    """Whether an option is faster than another at the end of its own interval, or smaller where that one is too large."""
    mine, theirs = option.found, other.found
    too_large = budget.size_mb is not None and theirs.size_bytes / 1e6 > budget.size_mb
    return mine.high < theirs.seconds or (too_large and mine.size_bytes < theirs.size_bytes)


def _simpler(c: Candidate, known: Mapping[Candidate, Option]) -> Iterator[Option]:
    """The same without one of its changes."""
    others = [replace(c, share=0.0)] if c.share else []
    if c.nfe or c.steps:
        others += [
            o for o in known if o.nfe is None and (o.share, o.format) == (c.share, c.format) and (c.nfe or not o.steps)
        ]
    if c.format != "fp32":
        plain = COMPUTED if c.format in LOSS_OF_FORMAT else ("fp32",)
        others += [replace(c, format=f) for f in plain]
    yield from (known[o] for o in others if o in known and o != c)


def propose(options: Sequence[Option], budget: Budget) -> Proposal:
    """The option of least loss that meets the budget, without training where that is possible; without a budget the
    simplest that the fastest within the allowed loss does not beat. Where none meets it, the nearest within the allowed
    loss, and what would be needed."""
    limit = budget.max_quality_loss
    if limit is None and budget.empty:
        limit = DEFAULT_LOSS
    worthy = worthwhile(options, budget)
    allowed = [o for o in worthy if limit is None or o.loss <= limit]
    if not allowed:
        return Proposal(None, False, False, ("there is nothing that works on this target to choose from",))
    if budget.empty:
        fastest = min(allowed, key=lambda o: (o.found.seconds, o.loss))
        near = [o for o in allowed if o.found.seconds <= fastest.found.high]
        return Proposal(min(near, key=lambda o: (o.passes, round(o.loss, 6), o.found.seconds)), True, True)
    meeting = [o for o in allowed if budget.excess(o.found) <= 1]
    if meeting:
        best = min(
            meeting,
            key=lambda o: (bool(o.passes), round(o.loss, 6), o.passes, bool(o.found.candidate.steps), o.found.seconds),
        )
        return Proposal(best, True, _certain(best, budget))
    best = min(allowed, key=lambda o: (budget.excess(o.found), o.loss))
    return Proposal(best, False, False, tuple(_needed(best, worthy, budget)))


def _certain(option: Option, budget: Budget) -> bool:
    return budget.latency_ms is None or option.found.high * 1e3 <= budget.latency_ms


def _needed(best: Option, options: Sequence[Option], budget: Budget) -> Iterable[str]:
    """What would meet the budget: a larger loss, or so much faster a device, or so much larger a budget."""
    found = best.found
    if budget.latency_ms and found.seconds * 1e3 > budget.latency_ms:
        times = found.seconds * 1e3 / budget.latency_ms
        yield f"latency {found.seconds * 1e3:.3g} ms is {times:.3g} times the budget: a device that much faster, or --latency-ms {_up(found.seconds * 1e3)}"
    if budget.size_mb and found.size_bytes / 1e6 > budget.size_mb:
        yield f"size {found.size_bytes / 1e6:.3g} MB is over the budget: --size-mb {_up(found.size_bytes / 1e6)}"
    meeting = [o for o in options if budget.excess(o.found) <= 1]
    if meeting and budget.max_quality_loss is not None:
        least = min(o.loss for o in meeting)
        yield f"or --max-quality-loss {_up(least)}, which is predicted to be enough"


def _up(value: float) -> str:
    """Two figures, rounded up."""
    step = 10 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step - 1e-9) * step:.2g}" if value < 100 else str(math.ceil(value))


def recipe_of(
    option: Option, base: dict[str, Any], name: str, target: str, budget: Budget, on_gpu: bool
) -> dict[str, Any]:
    """A recipe, as plain values, that makes what the option says. `base` is the resolved recipe whose source, data and
    judges it takes over, with the settings of passes that it shares."""
    settings = {n: c for entry in base.get("passes", ()) for n, c in entry.items()}
    gates: dict[str, Any] = {**base.get("gates", {})}
    if budget.max_quality_loss is not None:
        gates["fd"] = {**gates.get("fd", {}), "max_ratio": round(1 + budget.max_quality_loss, 6)}
    runners = list(dict.fromkeys(["torch", option.runner or "onnxruntime"]))
    bench = {**base.get("benchmark", {}), "batch": sorted({1, option.found.batch}), "runners": runners}
    taken = {k: base[k] for k in TAKEN if k in base}
    steps = list(_passes(option.found.candidate, settings, on_gpu))
    if option.found.candidate.steps and not taken.get("fair"):  # what finds out whether so few steps pass the gates
        taken["fair"] = {"solvers": [FEWEST], "steps": [option.found.candidate.steps]}
    head = {"version": 1, "name": name, **taken, "target": target}
    exports = exports_for(runners[-1], option.found.candidate.format, bench["batch"])
    return {**head, "passes": steps, "exports": exports, "benchmark": bench, "gates": gates}


def _passes(candidate: Candidate, settings: dict[str, Any], on_gpu: bool) -> Iterable[dict[str, Any]]:
    narrow = candidate.format in LOSS_OF_FORMAT
    if candidate.share:
        config = {"budget": {"macs": candidate.share}, "max_share": max(0.5, min(1.0, candidate.share))}
        wide = {"round_to": 16} if on_gpu and narrow else {}
        yield {"prune": dict(settings.get("prune", {})) | config | wide}
        yield {"recover": dict(settings.get("recover", {}))}
    if candidate.nfe:
        yield {"distill": dict(settings.get("distill", {})) | {"nfe": candidate.nfe}}
    if narrow:
        yield {"quantize": dict(settings.get("quantize", {})) | {"format": candidate.format}}
