"""From an artifact's ONNX file to engines in its folder: what both TensorRT exporters do.

`tensorrt/<sm>-<module>-<version>/` holds model.engine and its record, engine.json.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from optimize.architectures.artifact import CONDITIONS
from optimize.diffusion.context import Context
from optimize.diffusion.network import TensorSpec
from optimize.engines import libraries
from optimize.engines.graph import GraphFacts, read_graph
from optimize.engines.make import RECORD, Order, make
from optimize.engines.opened import FOLDER
from optimize.engines.profiles import Shapes, defaults, plan_profiles
from optimize.engines.settings import EngineSettings
from optimize.errors import EnvironmentLacks, UserError
from optimize.hardware.devices import here, resolve
from optimize.hardware.targets import RTX_SMS, Target
from optimize.onnx.vetted import onnx_file
from optimize.storage.weights import read_json, shapes

SM_NAME = re.compile(r"sm_?(\d+)\.?(\d)")  # sm86, sm_86, sm8.6


def export_engines(
    module: str, settings: EngineSettings, shape: Sequence[int], folder: Path, context: Context
) -> dict[str, Any]:
    """Engines of one module for every target, below `folder/tensorrt`; `shape` is a sample's own (C,H,W).

    Returns {engines: {folder's name: record}}. Everything is refused before anything is built."""
    facts = read_graph(onnx_file(folder))
    orders = [order_for(t, module, settings, facts, shape, folder) for t in classes(settings.targets)]
    for order in orders:
        order.refuse(libraries.gpu_sm())
    distinct = {order.name: order for order in orders}
    with context.progress(f"{libraries.TITLES[module]} engines", len(distinct)) as advance:
        found = {}
        for name, order in distinct.items():
            found[name] = place_engine(order, folder, context)
            advance(1, f"{name}: {found[name]['plan_bytes'] / 1e6:.1f} MB")
    return {"engines": found}


def classes(names: Sequence[str]) -> list[Target]:
    """The device classes of these names, among which a compute capability may stand, "sm120" or "sm12.0": all that an
    engine needs to know of a GPU of no listed class. UserError naming every unknown one (see `resolve`)."""
    bare = {name: _bare(*match.groups()) for name in names if (match := SM_NAME.fullmatch(name))}
    listed = [n for n in names if n not in bare]
    others = {t.name: t for t in resolve(listed)} if listed or not names else {}
    found = [bare[n] if n in bare else others[here()[0].name if n == "here" else n] for n in names]
    return list({t.name: t for t in found}.values())


def _bare(major: str, minor: str) -> Target:
    """A GPU of which the compute capability alone is known."""
    sm = (int(major), int(minor))
    newest = "current" if sm >= (7, 5) else "10.4" if sm >= (7, 0) else None
    title = f"SM {major}.{minor}"
    return Target(name=f"sm{major}{minor}", title=title, sm=sm, tensorrt=newest, tensorrt_rtx=sm in RTX_SMS)


def means_for(target: Target, module: str) -> tuple[libraries.SM, str]:
    """(compute capability, version of the module that is installed); UserError for a CPU, EnvironmentLacks without the
    module."""
    if target.sm is None:
        raise UserError(f"target {target.name}: engines are for NVIDIA GPUs. Export onnx for {target.title}.")
    installed = libraries.found_version(module)
    if installed is None:
        package = libraries.PACKAGES[module]
        wanted = f"'{package}=={target.tensorrt}.*'" if module == "tensorrt" and target.tensorrt == "10.4" else package
        raise EnvironmentLacks(
            f"{libraries.TITLES[module]} is not installed. pip install {wanted}, or make a build kit."
        )
    return target.sm, installed


def refuse_here(settings: EngineSettings, names: Sequence[str], module: str) -> None:
    """Raise for what keeps engines for these classes from being built on this machine, as far as is known before there
    is a graph."""
    for target in classes(names):
        sm, installed = means_for(target, module)
        wish = libraries.Wish(sm, frozenset(), settings.flags, settings.hardware_compatible)
        libraries.refuse(module, installed, wish, libraries.gpu_sm())


def order_for(
    target: Target, module: str, settings: EngineSettings, facts: GraphFacts, shape: Sequence[int], folder: Path
) -> Order:
    """What is wanted for one target; UserError for a CPU, EnvironmentLacks without the module."""
    sm, installed = means_for(target, module)
    profiles = profiles_for(settings, facts, shape, folder)
    return Order(onnx_file(folder), facts, module, installed, sm, profiles, settings)


def profiles_for(
    settings: EngineSettings, facts: GraphFacts, shape: Sequence[int], folder: Path | None = None
) -> list[Shapes]:
    """The settings' profiles of this network at `shape`, sizes of what it is told being those of the artifact in `folder`;
    UserError for sizes of a dimension that it does not have."""
    told = told_sizes(folder) if folder else {}
    sizes = defaults(facts.inputs, settings.batch, shape, told) | dict(settings.sizes)
    best = {"B": settings.best_batch} if settings.best_batch and "B" in sizes else {}
    return plan_profiles(facts.inputs, sizes, settings.exact, best)


def told_sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Sizes of symbols in the tensors that a model is told, such as text states: those of the artifact's own conditions,
    else of what stands in for them."""
    if not (folder / "sampler.json").is_file():
        return {}
    tensors = read_json(folder / "sampler.json").get("conditioning", {}).get("tensors", ())
    specs = [TensorSpec.from_json(t) for t in tensors]
    found: dict[str, tuple[int, ...]] = {symbol: (size,) for spec in specs for symbol, size in spec.sizes}
    kept = shapes(folder / CONDITIONS) if (folder / CONDITIONS).is_file() else {}
    for spec in specs:
        for symbol, size in list(zip(spec.dims, kept.get(spec.name, ())))[1:]:
            found |= {symbol: (size,)} if isinstance(symbol, str) and "/" not in symbol else {}
    return found


def place_engine(order: Order, folder: Path, context: Context) -> dict[str, Any]:
    """The engine in its place below `folder`: found by its content where results are kept, else built; its record. An
    earlier engine of the place stays until the new one is whole."""
    place = folder / FOLDER / order.name
    with tempfile.TemporaryDirectory(dir=folder, prefix=".tmp-engine-") as scratch:
        if context.keep is None:
            make(order, Path(scratch))
            made = Path(scratch)
        else:
            made = context.keep("engine", order.content, lambda kept: _into(order, kept))
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        for file in made.iterdir():
            if file.name != "manifest.json":
                link_or_copy(file, place / file.name)
    record: dict[str, Any] = read_json(place / RECORD)
    return record


def _into(order: Order, folder: Path) -> None:
    make(order, folder)


def link_or_copy(source: Path, target: Path) -> None:
    """The same bytes under another name, without a second copy where the file system allows; both are never written to."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
