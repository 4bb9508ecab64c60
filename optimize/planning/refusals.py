"""The check before any work: what cannot work is refused here, by name, with the nearest thing that works."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from optimize.diffusion import parameterization
from optimize.diffusion.backend import reads_weights
from optimize.diffusion.followed import clip_of, followed
from optimize.diffusion.schedule import from_diffusers
from optimize.errors import EnvironmentLacks, OptimizeError, UserError, cut
from optimize.hardware import environment
from optimize.hardware.devices import here
from optimize.hardware.feasibility import Choice, Facts, Judgement, Verdict, judge
from optimize.hardware.targets import Target, targets
from optimize.measure.cost import load_prices
from optimize.planning.subject import DENOISERS
from optimize.quality.features import imported
from optimize.recipes.paths import RELATIVE
from optimize.recipes.schema import Recipe
from optimize.storage.weights import file_sha256, read_json
from optimize.training.reread import blind_up_to, wide_up_to

log = logging.getLogger(__name__)
EXPORTED_FOR = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # exporter -> the way that runs its files


def check(recipe: Recipe) -> None:
    """UserError naming every problem of paths, of the passes, of the target and of engines, or EnvironmentLacks where this
    machine lacks what engines need and nothing else is wrong; what will not pay is logged."""
    problems = [*_paths(recipe), *_imports(recipe), *_pinned(recipe), *_prices(recipe)]
    found = here()[0].name
    elsewhere = recipe.target not in ("here", "cpu", found)
    if elsewhere:
        allowed = ", ".join(dict.fromkeys(("here", "cpu", found)))
        problems.append(f'target: "{recipe.target}" cannot be measured on this device. Allowed here: {allowed}.')
    impossible = _judged(recipe, "impossible")
    problems += [f"{where}: {judged.text}" for where, judged in impossible]
    wrong, lacking = _engines(recipe, {where for where, _ in impossible})
    problems += wrong
    lacking = [] if elsewhere else lacking  # the run is for another machine
    if not recipe.exports and any(not reads_weights(s) for s in recipe.benchmark.runners):
        problems.append("exports: none, but benchmark.runners asks for runners of exported files. Add `- onnx: {}`.")
    if problems or lacking:
        kind = UserError if problems else EnvironmentLacks
        raise kind("\n".join([f"recipe {recipe.name}:", *(f"  {p}" for p in [*problems, *lacking])]))
    for line in will_not_pay(recipe):
        log.warning("%s", line)


def _engines(recipe: Recipe, known: set[str]) -> tuple[list[str], list[str]]:
    """Why engines cannot be built here, or nothing is there to build them from: what the recipe asks wrongly, and what this
    machine lacks. `known` are places in the recipe that were judged already."""
    from optimize.engines.place import refuse_here

    wrong, lacking = [], []
    for i, export in enumerate(recipe.exports):
        where = f"exports[{i}].{export.name}"
        if export.name in (*EXPORTED_FOR, "triton") and "onnx" not in [e.name for e in recipe.exports[:i]]:
            wrong.append(f"{where}: it is made from onnx, which is not before it. Add `- onnx: {{}}` above it.")
        if export.name not in EXPORTED_FOR or where in known:
            continue
        names = [recipe.target if name == "here" else name for name in export.targets]
        try:
            refuse_here(export, names, export.name)
        except EnvironmentLacks as error:
            kit = "Or take it out: optimize export makes a build kit of what the run makes."
            lacking.append(f"{where}: {error} {kit}")
        except UserError as error:
            wrong.append(f"{where}: {error}")
    return wrong, lacking


def will_not_pay(recipe: Recipe) -> list[str]:
    """A line for everything that works on the recipe's target and is not worth it."""
    return [f"{where} will not pay: {judged.text}" for where, judged in _judged(recipe, "will not pay")]


def _judged(recipe: Recipe, verdict: Verdict) -> list[tuple[str, Judgement]]:
    target = here()[0] if recipe.target == "here" else targets()[recipe.target]
    return [(where, judged) for where, judged in verdicts(recipe, target) if judged.verdict == verdict]


def verdicts(recipe: Recipe, target: Target, facts: Facts | None = None) -> Iterator[tuple[str, Judgement]]:
    """(place in the recipe, judgement) of the source, every pass in its order, and every exporter, on a target."""
    facts = facts or facts_of(recipe)
    about = context_of(target)
    yield "sampler.guidance.folded", judge(Choice(target=target, step="source", facts=facts, **about))
    provided = {"trained", "data"}
    for i, step in enumerate(recipe.passes):
        choice = Choice(target=target, facts=facts, provided=frozenset(provided), **_about(recipe, i), **about)
        yield f"passes[{i}].{step.name}", judge(choice)
        provided |= step.provides | ({"folded"} if folds(step, facts) else set())
    for i, export in enumerate(recipe.exports):
        way = EXPORTED_FOR.get(export.name, "")
        for meant in _meant(export, target):  # engines are built for other classes than this machine's, too
            yield f"exports[{i}].{export.name}", judge(Choice(target=meant, way=way, facts=facts, **context_of(meant)))


def _meant(export: Any, target: Target) -> list[Target]:
    """The device classes an exporter builds for: those it names, `here` being the recipe's target."""
    names = getattr(export, "targets", ("here",))
    return [target if name == "here" else targets()[name] for name in names if name == "here" or name in targets()]


def context_of(target: Target) -> dict[str, Any]:
    """What is known of the machine where it is of this class: instruction sets of the CPU, installed versions."""
    is_here = target.name == here()[0].name
    instructions = frozenset(environment.instructions()) if not target.cuda else frozenset()
    return {"instructions": instructions, "installed": environment.versions() if is_here else {}}


def facts_of(recipe: Recipe) -> Facts:
    """What the recipe and the configs of its source say of the model."""
    guidance, folder = recipe.sampler.guidance, recipe.source.config or recipe.source.path
    found: dict[str, Any] = {"guided": bool(guidance.cfg), "folded": guidance.folded}
    try:
        noise = read_json(folder / "scheduler" / "scheduler_config.json")
        schedule = from_diffusers(noise)
        sampler = followed(recipe.sampler, schedule)[0]
        found["nfe"] = sampler.nfe(schedule)
        found["blind_nfe"] = blind_up_to(parameterization.from_diffusers(noise).prediction, schedule)
        found["wide_steps"] = wide_up_to(parameterization.from_diffusers(noise).prediction, schedule)
        found["preserving"] = schedule.kind == "vp"
        found["clipped"] = clip_of(sampler, schedule) is not None
        network = next((folder / d for d in DENOISERS if (folder / d).is_dir()), folder / DENOISERS[0])
        size = read_json(network / "config.json").get("sample_size")
        found["positions"] = size**2 if isinstance(size, int) else None
    except OptimizeError as error:  # loading the source will say what is wrong with it
        log.debug("%s: nothing is known of the model before it is loaded (%s)", folder, error)
    return Facts(**found, batch=max(recipe.benchmark.batch))


def folds(step: Any, facts: Facts) -> bool:
    """Whether a pass trains the guidance into the network."""
    if step.name != "distill":
        return False
    return facts.guided if step.guidance is None else bool(step.guidance)


def _about(recipe: Recipe, index: int) -> dict[str, Any]:
    """A pass as a choice: its fields, what it declares, its format and the one that the network ends in."""
    step = recipe.passes[index]
    later = next((p.format for p in recipe.passes[index:] if "quantized" in p.provides), "")
    declared = {"requires": step.requires, "refuses_after": step.refuses_after}
    format = later if "quantized" in step.provides else ""
    return {"step": step.name, "config": step.to_json(), "format": format, "later": later, **declared}


def _paths(recipe: Recipe) -> list[str]:
    paths = {
        "source.path": recipe.source.path,
        **({"source.config": recipe.source.config} if recipe.source.config else {}),
        "data.training": recipe.data.training,
        "data.held_out": recipe.data.held_out,
        **_judges(recipe),
    }
    return [
        f"{field}: {cut(str(path))} does not exist. {RELATIVE}"
        for field, path in paths.items()
        if not os.path.exists(path)
    ]


def _prices(recipe: Recipe) -> list[str]:
    """What is wrong with the price table; found out now, not after the work."""
    try:
        load_prices(recipe.prices)
    except UserError as error:
        return [str(error)]
    return []


def _judges(recipe: Recipe) -> dict[str, Path]:
    """Paths of what judges, as far as they are local; hub ids are fetched when they are needed."""
    networks = recipe.quality.networks().items()
    found = {f: Path(n.source) for f, n in networks if n.kind != "import" and not n.on_hub}
    return found | ({"quality.classifier": recipe.quality.classifier} if recipe.quality.classifier else {})


def _imports(recipe: Recipe) -> list[str]:
    """Import paths that lead to no callable."""
    problems = []
    for field, network in recipe.quality.networks().items():
        if network.kind == "import":
            try:
                imported(network.source)
            except UserError as error:
                problems.append(f"{field}: {error}")
    return problems


def _pinned(recipe: Recipe) -> list[str]:
    problems: list[str] = []
    for name, expected in recipe.pinned.items():
        path = Path(name)
        if not os.path.isfile(path):
            problems.append(f"pinned: {cut(name)} is no file. {RELATIVE}")
        elif (found := file_sha256(path)) != expected:
            problems.append(
                f"pinned: {path} has hash {found}, the recipe expects {expected}. Restore it, or pin the new."
            )
    return problems
