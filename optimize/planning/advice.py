"""What makes a model faster, the free things first: each with its predicted gain, and what it may cost in quality.

Each is compared with the same without it, and left out where its gain is within the interval of its own prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from optimize.measure.record import Measurement
from optimize.planning import propose
from optimize.planning.forecast import COMPUTED, Candidate, Forecast
from optimize.planning.subject import FEWEST, Subject

Foretell = Callable[[Candidate, int], Forecast | None]  # of a candidate at a batch; None where it cannot be
SAME = "the same images"
ROUNDED = "images all but the same: parity is gated"
NAMES = {"torch": "PyTorch", "torch_compile": "torch.compile", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
CALLS = (8, 4, 2, 1)  # of a student
SHARE = 0.4  # of the MACs that pruning is foretold with
TOGETHER = 16  # images drawn at once


@dataclass(frozen=True)
class Advice:
    """One thing to do: `gain` is how many times faster it is predicted to be than without it, `before_ms` an image, to
    `ms` with the interval [low, high]; `measured` where it is no prediction."""

    kind: Literal["free", "pass"]
    what: str
    gain: float
    before_ms: float
    ms: float
    low_ms: float
    high_ms: float
    risk: str
    measured: bool = False

    @property
    def holds(self) -> bool:
        """Whether it is faster at the end of its interval as well."""
        return self.high_ms < self.before_ms


def advise(
    subject: Subject, batch: int, formats: Sequence[str], foretell: Foretell, measured: Sequence[Measurement]
) -> dict[str, list[dict[str, object]]]:
    """`{proposed, unproven}`: what is worth doing, free things first and each kind by gain, and what is within its own
    interval. `formats` are those that pay on the target, `measured` what was measured of this model there."""
    tried = [
        *_free(subject, batch, formats, foretell),
        *_runners(measured),
        *_passes(subject, batch, formats, foretell),
    ]
    ordered = sorted(tried, key=lambda a: (a.kind == "pass", -a.gain))
    proposed = [asdict(a) for a in ordered if a.holds]
    return {"proposed": proposed, "unproven": [asdict(a) for a in ordered if not a.holds and a.gain > 1]}


def _free(subject: Subject, batch: int, formats: Sequence[str], foretell: Foretell) -> Iterator[Advice]:
    """What needs no training: fewer steps, a format of the export, more images at once."""
    today = Candidate(format=_plain(formats))
    before = foretell(today, batch)
    if before is None:
        return
    for steps in steps_of(subject):
        sampler = subject.sampler
        what = f"{steps} steps of {FEWEST} instead of {sampler.steps} of {sampler.solver}"
        yield from _made(
            "free", what, before, foretell(Candidate(format=today.format, steps=steps), batch), propose.UNKNOWN
        )
    floats = [f for f in formats if f in COMPUTED and f != today.format]
    found = [x for f in floats if (x := foretell(Candidate(format=f), batch))]
    if found:
        best = min(found, key=lambda x: x.seconds)
        what = f"{best.candidate.format.upper()} instead of {today.format.upper()}"
        yield from _made("free", what, before, best, ROUNDED)
    if batch < TOGETHER:
        yield from _made(
            "free", f"{TOGETHER} images at once instead of {batch}", before, foretell(today, TOGETHER), SAME
        )


def steps_of(subject: Subject) -> tuple[int, ...]:
    """Fewer steps worth trying; none of a student, which was taught its own."""
    return () if "distill" in subject.passes else propose.fewer_steps(subject.sampler.steps)


def _passes(subject: Subject, batch: int, formats: Sequence[str], foretell: Foretell) -> Iterator[Advice]:
    """What is trained or calibrated, of an untouched model: a student of fewer calls, thinner, narrower."""
    plain = _plain(formats)
    if subject.passes or (before := foretell(Candidate(format=plain), batch)) is None:
        return
    drawn = [before, *(x for n in steps_of(subject) if (x := foretell(Candidate(format=plain, steps=n), batch)))]
    students = [x for n in CALLS if n < subject.nfe and (x := foretell(Candidate(nfe=n, format=plain), batch))]
    usual = [x for x in students if propose.losses(x.candidate)[0] <= propose.DEFAULT_LOSS]
    if usual:
        best, calls = usual[-1], usual[-1].nfe
        what = f"distill to {calls} network evaluation{'s' * (calls != 1)} instead of {subject.nfe}"
        yield from _made("pass", what, min(drawn, key=lambda x: x.seconds), best, _loss(best))
    pruned = foretell(Candidate(share=SHARE, format=plain), batch)
    yield from _made("pass", f"prune {100 * SHARE:.0f} % of the MACs", before, pruned, _loss(pruned))
    floats = [x for f in formats if f in COMPUTED and (x := foretell(Candidate(format=f), batch))]
    for format in (f for f in formats if f not in COMPUTED):
        found = foretell(Candidate(format=format), batch)
        yield from _made(
            "pass", f"quantize to {format.upper()}", min(floats, key=lambda x: x.seconds), found, _loss(found)
        )


def _runners(measured: Sequence[Measurement]) -> Iterator[Advice]:
    """The fastest runner that was measured in FP32, against PyTorch at the same batch."""
    plain = [m for m in measured if m.image_s and not m.variant.options and m.variant.sampler is None]
    for batch in sorted({m.variant.batch for m in plain})[:1]:
        rows = {m.variant.runner: m.image_latency() for m in plain if m.variant.batch == batch}
        if "torch" not in rows or len(rows) < 2:
            continue
        name = min(rows, key=lambda r: rows[r]["p50"])
        best, before = rows[name], rows["torch"]
        was, ms, low, high = (1e3 * v / batch for v in (before["low"], best["p50"], best["low"], best["high"]))
        what = f"{NAMES.get(name, name)} instead of PyTorch"
        yield Advice("free", what, before["p50"] / best["p50"], was, ms, low, high, ROUNDED, measured=True)


def _plain(formats: Sequence[str]) -> str:
    return "fp32" if "fp32" in formats or not formats else formats[0]


def _made(
    kind: Literal["free", "pass"], what: str, before: Forecast, after: Forecast | None, risk: str
) -> Iterator[Advice]:
    """The change from one forecast to another, an image."""
    if after is None:
        return
    was = before.seconds / before.batch
    ms, low, high = (1e3 * value / after.batch for value in (after.seconds, after.low, after.high))
    yield Advice(kind, what, 1e3 * was / ms, 1e3 * was, ms, low, high, risk)


def _loss(found: Forecast | None) -> str:
    return propose.loss_text(*propose.losses(found.candidate)) if found else ""
