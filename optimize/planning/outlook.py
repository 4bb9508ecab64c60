"""`optimize plan`: what works on every target, what today's model is predicted to take there, and a recipe for a budget.

`plan_for` gives plain values; `report/terminal/outlook.py` prints them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from optimize.architectures.known import ARCHITECTURES
from optimize.errors import OptimizeError, UserError
from optimize.hardware import devices, environment
from optimize.hardware.feasibility import FORMATS, NARROW, WAYS, Choice, Judgement, judge
from optimize.hardware.targets import Target
from optimize.inspect.breakdown import cache_folder
from optimize.measure.cost import Prices, load_prices
from optimize.measure.record import Measurement
from optimize.measure.statistics import Interval
from optimize.measure.wording import bytes_text, digits
from optimize.plain.text import yaml_text
from optimize.planning import offers, propose
from optimize.planning.advice import advise, steps_of
from optimize.planning.forecast import Calibration, Candidate, Forecast, Forecaster, read_measurements
from optimize.planning.propose import Budget, Option, Proposal
from optimize.planning.refusals import context_of, verdicts
from optimize.planning.subject import FEWEST, Subject, open_subject
from optimize.recipes.paths import as_seen_from
from optimize.recipes.read import parse
from optimize.recipes.schema import plain_name
from optimize.registry import PASSES
from optimize.roofline.rates import Rates
from optimize.storage.commit import write_text_atomically

T = TypeVar("T")
PREFERRED = ("tensorrt", "tensorrt-rtx", "openvino", "torch", "onnxruntime-cuda", "onnxruntime-cpu")
FORMAT_ORDER = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8")
SHOWN = {  # passes that are judged where no recipe names its own: name -> fields
    "prune": {"budget": {"macs": 0.4}},
    "recover": {},
    "distill": {},
    "quantize": {},
}
TO_FILL_IN = "FILL-IN"
NO_ADVICE: dict[str, Any] = {"proposed": [], "unproven": []}


def plan_for(
    model: str,
    targets: Sequence[str],
    *,
    latency_ms: float | None = None,
    size_mb: float | None = None,
    max_quality_loss: float | None = None,
    batch: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    like: str | None = None,
    measurements: Path | None = None,
    prices: Path | None = None,
    exported: Path = Path("exported"),
    beside: Path = Path(),
    config: Path | None = None,
) -> dict[str, Any]:
    """The whole plan as JSON values; proposed recipes are for files in the folder `beside`. `config` is the folder of the
    configs of a checkpoint in one file. Raises UserError naming what is
    wrong with the input, all of it where that can be."""
    problems: list[str] = []
    chosen = _attempt(lambda: devices.resolve(targets), problems)
    budget = _attempt(lambda: budget_of(latency_ms, size_mb, max_quality_loss), problems)
    table = _attempt(lambda: load_prices(prices), problems)
    subject = _attempt(lambda: open_subject(model, steps, guidance, like, config), problems)
    measured = _attempt(lambda: _measured(subject, measurements, exported), problems)
    if chosen is None or budget is None or table is None or subject is None or measured is None:
        raise UserError("\n".join(problems))
    planner = _Planner(subject, Forecaster(subject, batch), budget, table, measured, as_seen_from(beside))
    layers = planner.forecaster.layers(1)
    return {
        "model": subject.name,
        "predicted": True,
        "params": sum(x.weights for x in layers),
        "macs": sum(x.macs for x in layers),
        "nfe": subject.nfe,
        "batch": batch,
        "budget": budget.to_json(),
        "notes": list(subject.notes),
        "targets": [planner.target(t) for t in chosen],
    }


def budget_of(latency_ms: float | None, size_mb: float | None, max_quality_loss: float | None) -> Budget:
    """A budget; UserError naming every figure that makes none."""
    try:
        return Budget(latency_ms=latency_ms, size_mb=size_mb, max_quality_loss=max_quality_loss)
    except ValidationError as error:
        said = [f"--{e['loc'][0]}".replace("_", "-") + f": given {e['input']:g}. {e['msg']}." for e in error.errors()]
        raise UserError("budget: " + " ".join(said)) from None


def write_recipes(plan: dict[str, Any], out: Path, overwrite: bool = False) -> list[Path]:
    """Write each target's proposed recipe: to `out`, or with several targets to `out` with the target in its name.
    UserError where another file is there, unless it is to be overwritten; nothing is written then."""
    recipes = {t["name"]: t["proposal"]["recipe"] for t in plan["targets"] if t["proposal"] and t["proposal"]["recipe"]}
    several = len(plan["targets"]) > 1
    paths = {name: out.with_stem(f"{out.stem}-{name}") if several else out for name in recipes}
    for name, text in recipes.items():
        _check_recipe(paths[name], text, overwrite)
    for name, text in recipes.items():
        write_text_atomically(paths[name], text)
    return list(paths.values())


def _check_recipe(path: Path, text: str, overwrite: bool) -> None:
    free = not os.path.lexists(path) or (path.is_file() and (overwrite or path.read_bytes() == text.encode()))
    if not free:
        advice = "Give another file." if path.is_dir() else "Give another file, or --overwrite."
        raise UserError(f"--out: {path} is there already and holds something else; it is left alone. {advice}")


def _attempt(read: Callable[[], T], problems: list[str]) -> T | None:
    """What `read` gives; None where the user's input is wrong, its problem added to the others."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _measured(subject: Subject | None, given: Path | None, exported: Path) -> list[Measurement]:
    """Of the file given; else of the run the artifact lies in, or of the recipe's own run, where there is one."""
    if given is not None:
        return read_measurements(given)
    if subject is None:
        return []
    names = [subject.folder.parent / "measurements.jsonl"] if subject.id and subject.folder else []
    names += [exported / subject.recipe.name / "measurements.jsonl"] if subject.recipe and not subject.id else []
    found = next((p for p in names if os.path.lexists(p)), None)
    return [] if found is None or (found.is_file() and not found.stat().st_size) else read_measurements(found)


class _Planner:
    """One subject and budget, on one target after another."""

    def __init__(
        self,
        subject: Subject,
        forecaster: Forecaster,
        budget: Budget,
        prices: Prices,
        measured: list[Measurement],
        move: Callable[[Path], Path],
    ) -> None:
        self.subject, self.forecaster, self.budget = subject, forecaster, budget
        self.prices, self.measured, self.move = prices, measured, move
        self.facts = subject.facts(forecaster.batch)

    def target(self, target: Target) -> dict[str, Any]:
        """Everything about one target."""
        about: dict[str, Any] = {"target": target, "facts": self.facts, **context_of(target)}
        cells = {way: {f: judge(Choice(way=way, format=f, **about)) for f in FORMATS} for way in WAYS}
        alone = {judge(Choice(format=f, **about)).rule: "format" for f in FORMATS}
        alone |= {judge(Choice(way=way, **about)).rule: "way" for way in WAYS}
        found = {
            "name": target.name,
            "title": target.title,
            "sm": target.sm_text,
            "ways": {
                w: {f: self._cell(target, w, f, j) | {"about": alone.get(j.rule, "both")} for f, j in row.items()}
                for w, row in cells.items()
            },
            "passes": [{"place": place, **j.to_json()} for place, j in self._passes(target)],
        }
        return found | self._predicted(target, self._formats(target, cells))

    def _cell(self, target: Target, way: str, format: str, found: Judgement) -> dict[str, Any]:
        """A judgement, and the runner that offers it in this version (None: nothing here makes or runs it yet)."""
        return found.to_json() | {"runner": offers.runner_spec(way, format, target.cuda)}

    def _passes(self, target: Target) -> list[tuple[str, Judgement]]:
        """The recipe's passes on this target in their order; the usual ones where there is no recipe."""
        recipe = self.subject.recipe
        if recipe is not None and recipe.passes and not self.subject.passes:
            return [(place, j) for place, j in verdicts(recipe, target, self.facts) if place.startswith("passes")]
        before = frozenset({"trained", "data"}).union(*(PASSES.get(n).provides for n in self.subject.passes))
        folded = frozenset({"folded"} if self.facts.folded is not None else ())
        return [(name, judge(self._choice(target, name, before | folded))) for name in SHOWN]

    def _choice(self, target: Target, name: str, provided: frozenset[str]) -> Choice:
        step = PASSES.get(name)(**SHOWN[name])
        declared = {"requires": step.requires, "refuses_after": step.refuses_after, "provided": provided}
        format = {"format": step.format} if "quantized" in step.provides else {}
        return Choice(
            target=target,
            step=name,
            config=step.to_json(),
            facts=self.facts,
            **declared,
            **format,
            **context_of(target),
        )

    def _formats(self, target: Target, cells: dict[str, dict[str, Judgement]]) -> dict[str, str]:
        """Formats that pay on this target -> the way that is best there; what a runner here offers comes first."""
        chosen = {}
        for format in FORMAT_ORDER:
            ways = [w for w in PREFERRED if cells[w][format].verdict == "works"]
            here = [w for w in ways if offers.runner_spec(w, format, target.cuda)]
            if ways:
                chosen[format] = (here or ways)[0]
        return chosen

    def _predicted(self, target: Target, formats: dict[str, str]) -> dict[str, Any]:
        """Today's model in every format, calibrated where it was measured, and the proposal."""
        try:
            rates = self._rates(target)
            calibration = self.forecaster.calibrate(target, self.measured, rates)
            today = {f: self._forecast(target, Candidate(format=f), rates, calibration) for f in formats}
        except OptimizeError as error:
            return {
                "today": {},
                "reason": f"nothing is predicted: {error}",
                "notes": [],
                "advice": NO_ADVICE,
                "proposal": None,
            }
        proposed = self._propose(target, formats, rates, calibration)
        notes = [*calibration.notes, *self._holes(target), *_too_large(target, today)]
        shown = {f: self._shown(target, x) for f, x in today.items()}
        return {
            "today": shown,
            "notes": notes,
            "advice": self._advice(target, formats, rates, calibration),
            "proposal": proposed,
        }

    def _advice(
        self, target: Target, formats: dict[str, str], rates: Rates | None, calibration: Calibration
    ) -> dict[str, Any]:
        """What makes it faster, the free things first."""

        def foretell(candidate: Candidate, batch: int) -> Forecast | None:
            if not self._may(target, candidate):
                return None
            found = self.forecaster.at(batch).forecast(target, candidate, rates, calibration)
            return found if fits(target, found) else None

        measured = self.forecaster.usable(target, self.measured)
        return advise(self.subject, self.forecaster.batch, self._makeable(formats), foretell, measured)

    def _makeable(self, formats: dict[str, str]) -> tuple[str, ...]:
        """The formats that a pass or an exporter of this version makes."""
        return tuple(f for f in formats if f not in NARROW or f in offers.made_formats())

    def _rates(self, target: Target) -> Rates | None:
        if target.cuda:
            return None
        from optimize.roofline.probe import calibrate

        return calibrate(cache_folder(), threads=_threads())

    def _forecast(
        self, target: Target, candidate: Candidate, rates: Rates | None, calibration: Calibration
    ) -> Forecast:
        return self.forecaster.forecast(target, candidate, rates, calibration)

    def _shown(self, target: Target, found: Forecast) -> dict[str, Any]:
        """A forecast with its cost and whether it fits the memory of the parts of the class."""
        value, low, high = (found.batch / s for s in (found.seconds, found.high, found.low))
        cost = self.prices.per_1000(target.name, Interval(value, low, high, 0), environment.cores())
        return found.to_json() | {
            "fits_gb": fits(target, found) if target.memory_gb else None,
            **({"cost_per_1000": cost} if cost else {}),
        }

    def _holes(self, target: Target) -> list[str]:
        return [] if target.name in self.prices.prices else [self.prices.missing(target.name)]

    def _propose(
        self, target: Target, formats: dict[str, str], rates: Rates | None, calibration: Calibration
    ) -> dict[str, Any]:
        """The proposal as JSON values, its recipe as text."""
        if self.subject.passes:
            reason = "passes start from an untouched model; plan the recipe, the baseline or the model's own folder"
            return {"recipe": None, "meets": False, "needed": [reason]}
        steps = steps_of(self.subject)
        options = [
            Option(found, *self._run(target, formats, c), *propose.losses(c))
            for c in propose.candidates(self.subject.nfe, self.facts.guided, self._makeable(formats), steps)
            if self._may(target, c) and fits(target, found := self._forecast(target, c, rates, calibration))
        ]
        made = propose.propose(options, self.budget)
        return self._written(target, made)

    def _run(self, target: Target, formats: dict[str, str], candidate: Candidate) -> tuple[str, str | None]:
        """The way a candidate runs, and this version's runner for it."""
        way = formats[candidate.format]
        return way, offers.runner_spec(way, candidate.format, target.cuda)

    def _may(self, target: Target, candidate: Candidate) -> bool:
        """Whether the student of a candidate can be taught at all."""
        if candidate.nfe is None:
            return True
        config = {"nfe": candidate.nfe}
        choice = Choice(target=target, step="distill", config=config, facts=self.facts)
        return judge(choice).verdict == "works"

    def _written(self, target: Target, made: Proposal) -> dict[str, Any]:
        found = {"meets": made.meets, "certain": made.certain, "needed": list(made.needed), "recipe": None}
        found["asked"] = not self.budget.empty
        if made.option is None:
            return found
        option = made.option
        if self.subject.architecture not in ARCHITECTURES:
            loads = ", ".join(ARCHITECTURES)
            why = f"no pass of this version works on {self.subject.architecture} (on {loads}): forecasts, and no recipe"
            return found | {"meets": False, "needed": [why]}
        about = {"way": option.way, "runner": option.runner, "loss": option.loss, "worst_loss": option.worst}
        text, missing = self._recipe(target, option)
        shown = self._shown(target, option.found)
        return found | {"forecast": shown, **about, "recipe": text, "to_fill_in": missing}

    def _recipe(self, target: Target, option: Option) -> tuple[str, list[str]]:
        """YAML text, checked by the recipe's own parser, and the fields a user must fill in."""
        base, missing = _base(self.subject, self.move)
        where = "here" if target.name == devices.here()[0].name else target.name
        name = f"{base.get('name', 'model')}-{target.name}"
        values = propose.recipe_of(option, base, name, where, self.budget, target.cuda)
        if not target.cuda and (self.facts.positions or 10**9) <= 256:
            for entry in values["passes"]:
                if "quantize" in entry:
                    entry["quantize"]["linear"] = "weight_only"
        text = _header(option, target, missing) + yaml_text(values)
        parse(text, f"proposed recipe {name}")
        return text, missing


def fits(target: Target, found: Forecast) -> list[int]:
    """Memories (GB) of the parts of a class that hold it; a CPU's, and one that is not known, is taken to."""
    return [gb for gb in target.memory_gb or (10**6,) if found.memory_bytes <= gb * 2**30]


def _too_large(target: Target, found: dict[str, Forecast]) -> list[str]:
    """A note for every format that not every part of the class holds."""
    notes = []
    for format, forecast in found.items():
        held = fits(target, forecast)
        if len(held) < len(target.memory_gb):
            where = f"only the {held[0]} GB part holds it" if held else "no part of this class holds it"
            notes.append(f"{format.upper()} needs {forecast.memory_bytes / 2**30:.3g} GiB at least: {where}")
    return notes


def _threads() -> int:
    """Threads that a network will run on here: what OMP_NUM_THREADS says, else every core."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdigit() and int(asked) else environment.cores()


def _base(subject: Subject, move: Callable[[Path], Path]) -> tuple[dict[str, Any], list[str]]:
    """The resolved recipe a proposal takes over, its paths moved, and what it lacks where there is none."""
    if subject.recipe is not None:
        base = json.loads(json.dumps(subject.recipe.moved(move).to_json(), default=str))
        if subject.folder is not None and not subject.id:
            base["source"] = base["source"] | _source(subject, move)
        return base | {"sampler": json.loads(json.dumps(subject.sampler.to_json()))}, []
    lacking = {
        "data": {"training": f"{TO_FILL_IN}/training.safetensors", "held_out": f"{TO_FILL_IN}/held_out.safetensors"},
        "quality": {"features": f"{TO_FILL_IN}/features", "classifier": f"{TO_FILL_IN}/classifier"},
    }
    fields = [f"{section}.{key}" for section, keys in lacking.items() for key in keys]
    name = plain_name((subject.folder or Path(subject.name)).resolve().name)
    about = {"name": name, "source": _source(subject, move), "sampler": subject.sampler.to_json()}
    return about | lacking, fields


def _source(subject: Subject, move: Callable[[Path], Path]) -> dict[str, str]:
    """The model as a recipe's source names it."""
    place = {"path": str(move(subject.folder or Path(subject.name)))}
    return place | ({"config": str(move(subject.config))} if subject.config else {})


def _header(option: Option, target: Target, missing: Sequence[str]) -> str:
    found = option.found
    times = [digits(1e3 * s) for s in (found.seconds, found.low, found.high)]
    lines = [
        f"Proposed by `optimize plan` for {target.title}. Predicted, not measured: a batch of {found.batch} in "
        f"{times[0]} ms ({times[1]} to {times[2]}), {bytes_text(found.size_bytes)},",
        f"{found.nfe} network evaluations an image; {propose.loss_text(option.loss, option.worst, found.candidate.steps)}.",
    ]
    if found.candidate.steps:
        lines.append(
            f"It trains nothing: its fair search finds out whether {found.candidate.steps} steps of {FEWEST} pass the gates."
        )
    lines += [f"Fill in before it runs: {', '.join(missing)}."] if missing else []
    return "".join(f"# {line}\n" for line in lines)
