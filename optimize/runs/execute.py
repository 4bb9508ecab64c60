"""The whole way of a run on one page: source, passes, exports, quality, fair search, benchmark, summary, report.

Every step is a stage of the store, found again by content; nothing is computed twice, and a killed run goes on where
it stopped when the same command is given again.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from optimize.configs import digest
from optimize.diffusion.sampling import Sampler
from optimize.diffusion.schedule import Schedule
from optimize.errors import GateFailed
from optimize.hardware import environment
from optimize.measure.record import Measurement
from optimize.plain.text import yaml_text
from optimize.planning import refusals
from optimize.progress import Progress, silent
from optimize.recipes.schema import Recipe
from optimize.runs import fair, given, place, stages, summary
from optimize.runs.gates import quality_gates
from optimize.runs.stages import Variant
from optimize.runs.suite import fastest_fp32, runners_of, suite, time_all
from optimize.runs.summary import Findings
from optimize.storage import ledger
from optimize.storage.cache import CACHE, Stage, Store, code_hash
from optimize.storage.weights import file_sha256

log = logging.getLogger(__name__)


def run(recipe: Recipe, exported: Path = Path("exported"), progress: Progress = silent) -> dict[str, Any]:
    """Carry out a recipe; results go to `exported/<name>/`. Returns the summary, also written as summary.json.

    Raises UserError for what cannot work, before anything is computed. A gate that fails is in the summary.
    """
    refusals.check(recipe)
    data = given.samples_of(recipe)
    out = exported / recipe.name
    place.check(recipe, out)
    with Store(exported / CACHE) as store:
        return _carried_out(_Run(recipe, store, progress), data, out)


def _carried_out(here: _Run, data: given.Given, out: Path) -> dict[str, Any]:
    recipe, progress = here.recipe, here.progress
    source = stages.source_stage(here.store, recipe, progress)
    given.check_fit(recipe, data, source)
    half_split = here.half_split()
    made = list(accumulate(range(len(recipe.passes)), lambda parent, i: here.apply(i, parent, source), initial=source))
    variants = here.export(made)
    quality = here.qualities(variants)
    chosen, searched = here.fair(variants[0], quality, half_split)
    measurements = here.measure(variants, chosen)
    layers = here.layers(variants)
    found = Findings(recipe, variants, half_split, quality, measurements, chosen, searched, layers)
    result = summary.summarize(found, here.store)
    for note in result["notes"]:
        log.warning("%s", note)
    return here.publish(result, found, out)


@dataclass(frozen=True)
class _Run:
    """What every step of one run shares."""

    recipe: Recipe
    store: Store
    progress: Progress
    evaluators: dict[int, Any] = field(default_factory=dict)
    judged: dict[str, Any] = field(default_factory=dict)
    judges: dict[str, Any] = field(default_factory=dict)

    def apply(self, index: int, parent: Stage, source: Stage) -> Stage:
        """One pass."""
        return stages.pass_stage(self.store, self.recipe, index, parent, source, self.progress)

    def export(self, made: list[Stage]) -> list[Variant]:
        """Export every stage; the source's is the baseline."""
        names = place.variant_names(self.recipe)
        return [
            stages.export_stage(
                self.store, self.recipe, name, stage, runners_of(self.recipe, i, len(made)), self.progress
            )
            for i, (name, stage) in enumerate(zip(names, made))
        ]

    def qualities(self, variants: list[Variant]) -> dict[tuple[str, str], dict[str, Any]]:
        """Quality of the baseline, of every stage through the FP32 runner, and of the last two through every runner;
        `{"failed": why}` where what is drawn is not finite, or would not be where NaN survives."""
        found = {}
        for i, variant in enumerate(variants):
            first = fastest_fp32(self.recipe)
            for spec in variant.runners if i and variant.sampling["nfe"] <= 8 else (first,):
                found[variant.name, spec] = self._quality(variant, spec, _sampler(variant), variants[0])
        return found

    def fair(
        self, baseline: Variant, quality: dict[tuple[str, str], dict[str, Any]], half_split: dict[str, Any]
    ) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """The fair configuration and every candidate that was tried."""
        spec, schedule = fastest_fp32(self.recipe), Schedule.from_json(baseline.sampling["schedule"])
        reference = quality["baseline", spec]
        if self.recipe.fair is None or "failed" in reference:
            return None, []

        def judge(sampler: Sampler) -> tuple[dict[str, Any], dict[str, Any]]:
            found = self._quality(baseline, spec, sampler, baseline, replicates=20, purpose="fair search")
            return found, quality_gates(self.recipe.gates, found, reference, half_split)

        chosen, rows = fair.search(self.recipe.fair, _sampler(baseline), schedule, judge)
        if chosen is None:
            return None, rows
        about = {"solver": chosen.solver, "steps": chosen.steps, "nfe": chosen.nfe(schedule)}
        return about | {"sampler": chosen.to_json(), "quality": self._quality(baseline, spec, chosen, baseline)}, rows

    def measure(self, variants: list[Variant], chosen: dict[str, Any] | None) -> list[Measurement]:
        """The interleaved benchmark."""
        timed = suite(self.recipe, variants, Sampler(**chosen["sampler"]) if chosen else None)
        key = {
            "artifacts": [v.id for v in variants],
            "timed": [t.model_dump(mode="json", exclude={"folder"}) for t in timed],
            "config": self.recipe.benchmark.to_json(),
            "environment": environment.key(),
            "code": [code_hash(f"optimize.measure.{name}") for name in ("worker", "turns")],
        }

        def compute() -> Any:
            return [m.to_json() for m in time_all(self.recipe, timed, self.progress)]

        return [Measurement.from_json(m) for m in stages.json_stage(self.store, "benchmark", key, compute)]

    def layers(self, variants: list[Variant]) -> dict[str, list[dict[str, Any]]]:
        """Layers of the source and of the last float variant, timed in eager torch at the largest batch."""
        last = [v for v in variants if v.precision == "fp32"][-1]
        batch = max(self.recipe.benchmark.batch)
        return {v.name: self._layers(v, batch) for v in (variants[0], last)}

    def _layers(self, variant: Variant, batch: int) -> list[dict[str, Any]]:
        def compute() -> Any:
            from optimize.inspect.breakdown import by_layer

            return by_layer(variant.model, batch)

        key = {"artifact": variant.id, "batch": batch, "environment": environment.key()}
        return stages.json_stage(self.store, "layers", key | {"code": code_hash("optimize.inspect.breakdown")}, compute)

    def half_split(self) -> dict[str, Any]:
        """FD between two halves of the real scans: the noise floor of the measure."""
        key = {"judges": self._judges(), "seed": self.recipe.seed}
        return stages.json_stage(self.store, "half_split", key, lambda: self._evaluator().half_split(self.recipe.seed))

    def _quality(
        self,
        variant: Variant,
        spec: str,
        sampler: Sampler,
        baseline: Variant,
        replicates: int | None = None,
        purpose: str = "images",
    ) -> dict[str, Any]:
        """Quality of `sampler` on one runner, with its paired difference to the baseline; `{"failed": why}` for images
        that are not judged, since the network gives NaN or infinities."""
        try:
            return self._figures(variant, spec, sampler, baseline, replicates, purpose)
        except GateFailed as error:
            log.error("%s", error)
            return {"failed": str(error)}

    def _figures(
        self, variant: Variant, spec: str, sampler: Sampler, baseline: Variant, replicates: int | None, purpose: str
    ) -> dict[str, Any]:
        config = self.recipe.quality
        replicates = replicates or config.replicates
        first = fastest_fp32(self.recipe)
        today = _sampler(baseline)
        ends = today.model_copy(update={"steps": config.endpoint_steps})
        drawn = self._images(variant, spec, sampler, config.images, purpose)
        reference = self._images(baseline, first, today, config.images)
        endpoint = self._images(baseline, first, ends, config.endpoint_images, "endpoints")
        key = {
            "images": [drawn.id, reference.id, endpoint.id],
            "judges": self._judges(),
            "replicates": replicates,
            "seed": self.recipe.seed,
        }

        def compute() -> dict[str, Any]:
            labels = baseline.model.labels(range(config.images))
            own, other = (self._judge(stage, labels) for stage in (drawn, reference))
            ends = stages.images(endpoint)
            return self._evaluator(replicates).measure(own, baseline=other, endpoint=ends, seed=self.recipe.seed)

        return stages.json_stage(self.store, "quality", key, compute)

    def _images(self, variant: Variant, spec: str, sampler: Sampler, count: int, purpose: str = "images") -> Stage:
        q = self.recipe.quality
        about = (sampler, count, q.batch, self.progress, q.processes, purpose)
        return stages.images_stage(self.store, variant, spec, *about)

    def _judge(self, drawn: Stage, labels: Any) -> Any:
        """Images with their features and classes; kept, since the baseline's are compared with again and again."""
        if drawn.id not in self.judged:
            self.judged[drawn.id] = self._evaluator().judge(stages.images(drawn), labels)
        return self.judged[drawn.id]

    def _evaluator(self, replicates: int | None = None) -> Any:
        """The evaluator with this many bootstrap replicates; kept, since it holds the scans' features."""
        from optimize.quality.evaluate import Evaluator

        replicates = replicates or self.recipe.quality.replicates
        if replicates not in self.evaluators:
            q, data = self.recipe.quality, self.recipe.data
            paths = (q.features, q.classifier, data.held_out, data.training)
            more: dict[str, Any] = {
                "metrics": q.metrics,
                "further": q.further,
                "lpips": q.lpips,
                "clip": q.clip,
                "wording": q.prompts,
            }
            self.evaluators[replicates] = Evaluator(*paths, replicates=replicates, **more)
        return self.evaluators[replicates]

    def _judges(self) -> dict[str, Any]:
        """Content of everything that judges: networks, scans, figures asked for, code."""
        if "content" not in self.judges:
            from optimize.quality.features import judged_by

            q, data = self.recipe.quality, self.recipe.data
            scans = {"training": file_sha256(data.training), "held_out": file_sha256(data.held_out)}
            self.judges["content"] = scans | judged_by(q) | {"code": code_hash("optimize.quality.evaluate")}
        return self.judges["content"]

    def publish(self, result: dict[str, Any], found: Findings, out: Path) -> dict[str, Any]:
        """Write variants, samples, measurements, summary and report below `out`; one run at a time does."""
        with ledger.opened(out, place.FILES, place.earlier) as put:
            for variant in found.variants:
                stages.publish(variant, variant.name, out)
            stages.publish(found.variants[-1], place.FINAL, out)
            result["samples"] = self._samples(found, out, put)
            anywhere = self.recipe.moved(Path.absolute)  # the file lies in another folder than the recipe did
            said = self.recipe.sampler.model_dump(mode="json", exclude_unset=True)  # the rest is the scheduler's to say
            text = yaml_text(_plain(anywhere.to_json() | {"sampler": said}))
            put("recipe.resolved.yaml", text.encode())
            lines = [m.to_json() for m in found.measurements]
            put("measurements.jsonl", "".join(f"{_json_line(m)}\n" for m in lines).encode())
            put("summary.json", (json.dumps(result, indent=1, allow_nan=False) + "\n").encode())
            _write_reports(result, out, put)
        return result

    def _samples(self, found: Findings, out: Path, put: ledger.Put) -> list[str]:
        """Grids of the same seeds side by side."""
        first = fastest_fp32(self.recipe)
        rows = {v.name: (v, first, _sampler(v)) for v in found.variants}
        if found.fair:
            fair = {"fair": (found.variants[0], first, Sampler(**found.fair["sampler"]))}
            rows = {"baseline": rows["baseline"]} | fair | rows
        broken = {name for (name, spec), quality in found.quality.items() if spec == first and "failed" in quality}
        rows = {n: row for n, row in rows.items() if n not in broken}
        if not rows:
            return []
        drawn = {n: self._images(v, s, sampler, self.recipe.quality.images) for n, (v, s, sampler) in rows.items()}
        target, stamp = out / place.GRID, out / place.STAMP
        identity = digest({n: s.id for n, s in drawn.items()})
        if not (target.exists() and stamp.exists() and stamp.read_text() == identity):
            from optimize.quality.grid import grid_png

            put(place.GRID, grid_png({n: stages.images(s)[:20] for n, s in drawn.items()}))
            put(place.STAMP, identity.encode())
        return [place.GRID]


def write_reports(result: dict[str, Any], out: Path) -> None:
    """report.md and report.html of a run's folder from its summary; ArtifactError where somebody else wrote one."""
    with ledger.opened(out, place.REPORTS, place.earlier) as put:
        _write_reports(result, out, put)


def _write_reports(result: dict[str, Any], out: Path, put: ledger.Put) -> None:
    from optimize.report.html import render_html
    from optimize.report.markdown import render_markdown

    for name, text in zip(place.REPORTS, (render_markdown(result), render_html(result, out))):
        put(name, text.encode())


def _json_line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """JSON values only (paths become text), so that YAML needs no tags."""
    return json.loads(json.dumps(value, default=str))


def _sampler(variant: Variant) -> Sampler:
    """How a variant is sampled."""
    return Sampler(**variant.sampling["sampler"])
