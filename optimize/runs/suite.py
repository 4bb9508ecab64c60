"""What a run times: variants x runners x batches, the fair configuration, and the steps that split the speed-up.

Keys are `variant/runner/batch`, followed by a policy other than the usual (`+device`, `+graphs`); those of the split are
`factor:<name>/runner/batch`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from optimize.diffusion.backend import reads_weights, spec_parts
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.measure.record import Measurement, policy_text
from optimize.measure.record import Variant as Timed
from optimize.recipes.schema import Recipe
from optimize.registry import RUNNERS
from optimize.runs.stages import Variant

EAGER = "torch"


def suite(recipe: Recipe, variants: list[Variant], fair: Sampler | None) -> list[Timed]:
    """Everything to time in one interleaved bench. Stages between the first and the last but one run on one runner, at
    the largest batch."""
    bench, timed = recipe.benchmark, []
    for i, variant in enumerate(variants):
        batches = bench.batch if _in_full(i, len(variants)) else (max(bench.batch),)
        for spec in [r for r in variant.runners if r not in bench.source_runners]:
            timed += [t for b in batches for t in _policies(recipe, _timed(recipe, variant, spec, b))]
    if fair is not None:
        for spec in fp32_runners(variants[0]):
            batches = bench.batch if spec in bench.runners and spec != EAGER else (max(bench.batch),)
            fairly = [_timed(recipe, variants[0], spec, b, "fair", fair) for b in batches]
            timed += [t for row in fairly for t in _policies(recipe, row)]
    return timed + _split(recipe, variants)


def runners_of(recipe: Recipe, index: int, count: int) -> tuple[str, ...]:
    """Runner specs of variant number `index`: all for the source and the last two, one for stages in between.

    A quantized network is only simulated in torch, so it has no torch row.
    """
    runners = recipe.benchmark.runners
    if index == 0:
        return (*runners, *recipe.benchmark.source_runners)
    if any("quantized" in p.provides for p in recipe.passes[:index]):
        return tuple(r for r in runners if not r.startswith(EAGER)) or runners
    return runners if _in_full(index, count) else (fastest_fp32(recipe),)


def _in_full(index: int, count: int) -> bool:
    """Whether variant number `index` is timed in every way: the source and the last two are."""
    return index == 0 or index >= count - 2


def fastest_fp32(recipe: Recipe) -> str:
    """The runner that draws the images of FP32 variants: the first of openvino, onnxruntime and torch that is asked for."""
    asked, stored = recipe.benchmark.runners, {e.precision for e in recipe.exports if e.name == "onnx"}
    files = ("openvino", "onnxruntime") if stored <= {"fp32"} else ()  # 16 bits in the file are not FP32 anywhere
    return next((r for r in (*files, EAGER) if r in asked), asked[0])


def fp32_runners(source: Variant) -> list[str]:
    """Runner specs that compute the uncompressed network in FP32 here."""
    stored = source.exported_precision == "fp32"
    return [spec for spec in source.runners if ":" not in spec and (stored or reads_weights(spec))]


def _split(recipe: Recipe, variants: list[Variant]) -> list[Timed]:
    """The baseline network on the FP32 runner, largest batch, without its guidance, and with the student's sampler; that
    with the fair sampler, between the two, is a row already."""
    base, spec = variants[0], fastest_fp32(recipe)
    if spec not in base.runners or len(variants) < 2:
        return []
    steps = {
        "guidance": Sampler(**base.sampling["sampler"]).model_copy(update={"guidance": Guidance()}),
        "distillation": Sampler(**variants[-1].sampling["sampler"]),
    }
    return [_timed(recipe, base, spec, max(recipe.benchmark.batch), f"factor:{n}", s) for n, s in steps.items()]


def _timed(
    recipe: Recipe, variant: Variant, spec: str, batch: int, name: str = "", sampler: Sampler | None = None
) -> Timed:
    runner, options = spec_parts(spec)
    return Timed(
        key=f"{name or variant.name}/{spec}/{batch}",
        folder=str(variant.folder),
        runner=runner,
        options=options,
        batch=batch,
        sampler=sampler,
        threads=recipe.benchmark.threads,
    )


def _policies(recipe: Recipe, timed: Timed) -> Iterator[Timed]:
    """The row once for every policy of the recipe, where its runner computes on a GPU and has them; else as it is."""
    takes, bench = RUNNERS.get(timed.runner).model_fields, recipe.benchmark
    device = timed.options.get("device", takes["device"].default if "device" in takes else "cpu")
    if device == "cpu" or "io" not in takes:
        yield timed
        return
    for io, graphs in product(bench.io, bench.cuda_graphs):
        yield timed.model_copy(update={"key": timed.key + policy_text(io, graphs), "io": io, "cuda_graphs": graphs})


def split_key(key: str) -> tuple[str, str, int]:
    """(variant, runner spec, batch) of a key."""
    name, spec, batch = key.rsplit("/", 2)
    return name, spec, int(batch.partition("+")[0])


def time_all(recipe: Recipe, timed: list[Timed], progress: Any) -> list[Measurement]:
    """Run the bench of `suite`."""
    from optimize.measure.turns import bench

    config = recipe.benchmark
    return bench(
        timed,
        rounds=config.rounds,
        turn_s=config.seconds,
        warm_s=config.warm_up,
        seed=recipe.seed,
        progress=progress,
    )
