"""summary.json: one row a variant, runner and batch; gates and targets of the final row; its speed-up in factors."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from optimize.diffusion.backend import reads_weights, spec_parts
from optimize.hardware import environment
from optimize.measure.cost import Prices, load_prices
from optimize.measure.record import Measurement, device_class, policy_text, speedup
from optimize.recipes.schema import QualityConfig, Recipe
from optimize.runs.gates import check, hold, parity_gate, quality_gates, slack_notes
from optimize.runs.stages import Variant
from optimize.runs.suite import EAGER, fastest_fp32, fp32_runners, split_key
from optimize.storage.cache import Store

SCHEMA = 1
NARROWER = ("int8", "fp8", "tf32", "fp16", "bf16")  # than fp32, as a row's precision names them


@dataclass
class Findings:
    """All that a run found out. `quality` is keyed by (variant, runner spec that drew the images)."""

    recipe: Recipe
    variants: list[Variant]
    half_split: dict[str, Any]
    quality: dict[tuple[str, str], dict[str, Any]]
    measurements: list[Measurement]
    fair: dict[str, Any] | None = None  # {"sampler": …, "quality": …} of the chosen configuration
    fair_search: list[dict[str, Any]] = field(default_factory=list)
    layers: dict[str, list[dict[str, Any]]] = field(
        default_factory=dict
    )  # by variant, see `inspect.breakdown.by_layer`

    @property
    def batch(self) -> int:
        """The largest batch: where speed-ups are claimed."""
        return max(self.recipe.benchmark.batch)

    @cached_property
    def prices(self) -> Prices:
        """The recipe's price table, or the shipped one."""
        return load_prices(self.recipe.prices)

    def measured(self, name: str, spec: str, batch: int | None = None, policy: str = "") -> Measurement | None:
        """A finished measurement by its key; inputs and outputs on the host, without CUDA graphs, where not said."""
        key = f"{name}/{spec}/{batch or self.batch}{policy}"
        return next((m for m in self.measurements if m.key == key and m.done), None)


def summarize(found: Findings, store: Store) -> dict[str, Any]:
    """The whole summary (see DESIGN: on disk)."""
    rows = [_row(found, m) for m in found.measurements if not m.key.startswith("factor:")]
    rows += [_refused(found, v, s) for v in found.variants for s in v.parity if s not in v.runners]
    final = _final(found, rows)
    rows += [final] if final else []
    gates, targets = (final["gates"], final["targets"]) if final else ({}, {})
    done = final is not None and final["status"] == "done"
    path = _path(found, final) if final is not None and done else []
    factors = _factors(path) if path else {}
    return {
        "schema": SCHEMA,
        "recipe": found.recipe.name,
        "environment": environment.environment(),
        "gates_passed": done and hold(gates),
        "targets_met": done and hold(targets),
        "gates": gates,
        "targets": targets,
        "half_split_fd": found.half_split,
        "notes": slack_notes(found.recipe.gates, _baseline_quality(found), found.half_split),
        "judges": judges(found.recipe.quality),
        "factors": factors,
        "factor_intervals": _factor_intervals(path, factors),
        "rows": rows,
        "fair_search": found.fair_search,
        "layers": found.layers,
        "stages": [_stage(s) for s in store.done if s.name in {"source", *(p.name for p in found.recipe.passes)}],
    }


def judges(quality: QualityConfig) -> dict[str, Any]:
    """What judged: each feature network with how images reach it, the classifier, and how many images there were."""
    networks = {"features": quality.features, **quality.further} | ({"clip": quality.clip} if quality.clip else {})
    found: dict[str, Any] = {k: {"network": n.to_json(), "about": n.about} for k, n in networks.items()}
    others = {"classifier": quality.classifier, "lpips": quality.lpips}
    return found | {k: {"network": str(v)} for k, v in others.items() if v} | {"images": quality.images}


def _stage(stage: Any) -> dict[str, Any]:
    passes = stage.manifest.get("passes") or []
    record = passes[-1]["record"] if passes else {}
    about = {k: stage.manifest.get(k) for k in ("parent", "seconds")}
    return {"name": stage.name, "id": stage.id, **about, "record": record}


def _refused(found: Findings, variant: Variant, spec: str) -> dict[str, Any]:
    """A row that says why this machine cannot run it."""
    about = _about(found, variant.name, variant, spec)
    return about | {
        "batch": found.batch,
        "status": "refused",
        "reason": variant.parity[spec]["refused"],
        "predicted": False,
    }


def _row(found: Findings, m: Measurement) -> dict[str, Any]:
    name, spec, batch = split_key(m.key)
    variant = found.variants[0] if name == "fair" else next(v for v in found.variants if v.name == name)
    quality, parity = _quality(found, name, spec), variant.parity[spec]
    broken = (quality or {}).get("failed") or parity.get("not_finite", "")
    row = {
        **_about(found, name, variant, spec),
        "device": device_class(m),
        "runner_options": m.variant.options,
        "batch": batch,
        "status": "failed" if broken else m.status,
        "reason": broken or m.reason,
        "predicted": False,
        "quality": None if broken else quality,
        "parity": {k: parity[k] for k in ("max_abs", "relative_l2")},
        "lowered": parity["runner"]["lowered"],
        "gates": {},
        "targets": {},
    } | ({"not_finite": broken} if broken else {})
    return row | _times(found, m) if m.done and not broken else row


def _about(found: Findings, name: str, variant: Variant, spec: str) -> dict[str, Any]:
    """What a row is about, measured or refused."""
    return {
        "variant": name,
        "stage": variant.stage,
        "artifact_id": variant.id,
        "target": found.recipe.target,
        "runner": spec_parts(spec)[0],
        "device": "cpu",
        "precision": _precision(variant, spec),
        "head": variant.sampling["parameterization"]["prediction"],
        **_sampler(found, name, variant),
        **variant.artifact.manifest["count"],
        "size_bytes": _size(variant, spec),
    }


def _times(found: Findings, m: Measurement) -> dict[str, Any]:
    """Latencies in ms: of one call at this batch, and an image (a batch's time divided by its images)."""
    call, image = m.call_latency(), m.image_latency()
    return {
        "call_latency_ms": _ms(call, 1),
        "image_latency_ms": _ms(image, m.variant.batch),
        "images_per_s": m.images_per_s().value,
        "peak_memory_bytes": m.peak_memory_bytes,
        "device_peak_bytes": m.device_peak_bytes,
        "energy_j": m.energy_j,
        "throttled": m.throttled,
        "io": m.variant.io,
        "cuda_graphs": m.variant.cuda_graphs,
        "cold": m.cold,
        "noisy": m.noisy,
        "speedup": _speedups(found, m),
        **_cost(found, m),
    }


def _cost(found: Findings, m: Measurement) -> dict[str, Any]:
    """`cost_per_1000` images {value, low, high, currency, source, date}, or `cost_missing`: how to add the price."""
    device, cores = device_class(m), m.variant.threads or m.environment.get("cores", 1)
    cost = found.prices.per_1000(device, m.images_per_s(), cores)
    return {"cost_per_1000": cost} if cost else {"cost_missing": found.prices.missing(device)}


def _ms(latency: dict[str, Any], per: int) -> dict[str, Any]:
    """Percentiles, and the 95 % interval [low, high] of the median."""
    return {k: latency[k] * 1e3 / per for k in ("p50", "p90", "p95", "p99", "low", "high")} | {"n": latency["n"]}


def _speedups(found: Findings, m: Measurement) -> dict[str, Any]:
    """Images a second against the baseline (torch eager) and against fair (its fastest runner), at the same batch."""
    against = {
        "vs_baseline": found.measured("baseline", EAGER, m.variant.batch),
        "vs_fair": _fair(found, m.variant.batch),
    }
    return {k: _interval(speedup(other, m)) for k, other in against.items() if other is not None}


def _interval(value: Any) -> dict[str, Any]:
    return {"ratio": value.value, "low": value.low, "high": value.high}


def _fair(found: Findings, batch: int | None = None) -> Measurement | None:
    """The fair sampler on the FP32 runner and policy that is fastest at this batch, among those whose parity holds."""
    source, limit = found.variants[0], found.recipe.gates.parity.fp32
    right = [s for s in fp32_runners(source) if source.parity[s]["relative_l2"] <= limit]
    keys = {("fair", s, batch or found.batch) for s in right}
    measured = [m for m in found.measurements if m.done and split_key(m.key) in keys]
    return max(measured, key=lambda m: m.images_per_s().value, default=None)


def _quality(found: Findings, name: str, spec: str) -> dict[str, Any] | None:
    """Quality of the images this runner drew, or of those the FP32 runner drew of the same network (parity is gated)."""
    if name == "fair":
        return found.fair["quality"] if found.fair else None
    return found.quality.get((name, spec)) or (
        None if ":" in spec else found.quality.get((name, fastest_fp32(found.recipe)))
    )


def _sampler(found: Findings, name: str, variant: Variant) -> dict[str, Any]:
    if name == "fair" and found.fair:
        return {k: found.fair[k] for k in ("solver", "steps", "nfe")}
    sampler = variant.sampling["sampler"]
    return {"solver": sampler["solver"], "steps": sampler["steps"], "nfe": variant.sampling["nfe"]}


def _precision(variant: Variant, spec: str) -> str:
    """fp32, or all that is narrower, joined as in int8+bf16: the artifact's format, the exported file's, the runner's."""
    runner = variant.parity.get(spec, {}).get("runner", {})
    computed = runner.get("precision") or spec_parts(spec)[1].get("precision", "fp32")
    stored = "fp32" if reads_weights(spec) else variant.exported_precision
    found = {variant.precision, stored, *computed.split("+")}
    return "+".join(p for p in NARROWER if p in found) or "fp32"


def _size(variant: Variant, spec: str) -> int:
    """Bytes of the file this runner loads: its engine, ONNX where there is one, else the weights."""
    engine = variant.parity.get(spec, {}).get("runner", {}).get("engine")
    if engine:
        return int(engine["plan_bytes"])
    files = variant.artifact.manifest["files"]
    onnx = sum(f["bytes"] for n, f in files.items() if n.startswith("onnx/"))
    return onnx if onnx and not reads_weights(spec) else files["model.safetensors"]["bytes"]


def _final(found: Findings, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The last variant on its fastest runner at the largest batch, among the rows whose gates hold (else the fastest); one
    that gives NaN, with the gates that says so, where no row is judged."""
    mine = [r for r in rows if r["variant"] == found.variants[-1].name and r["batch"] == found.batch]
    judged = [_judged(found, r) for r in mine if r["status"] == "done" and r["quality"]]
    if not judged:
        return next((_judged(found, r) for r in mine if "not_finite" in r), None)
    best = max(judged, key=lambda r: (hold(r["gates"]), r["images_per_s"]))
    return best | {"targets": _targets(found, best)}


def _judged(found: Findings, row: dict[str, Any]) -> dict[str, Any]:
    return row | {"variant": "final", "gates": _gates(found, row)}


def _gates(found: Findings, row: dict[str, Any]) -> dict[str, Any]:
    """Quality of this row, and the parity of every export of every variant on every runner."""
    quality = row["quality"] or {"failed": row["reason"]}
    gates = quality_gates(found.recipe.gates, quality, _baseline_quality(found), found.half_split)
    for variant in found.variants:
        for spec in variant.runners:
            parity = variant.parity[spec]
            precision = _precision(variant, spec)
            gates[f"parity {variant.name} {spec}"] = parity_gate(found.recipe.gates, parity, precision)
    return gates


def _baseline_quality(found: Findings) -> dict[str, Any]:
    return found.quality["baseline", fastest_fp32(found.recipe)]


def _targets(found: Findings, row: dict[str, Any]) -> dict[str, Any]:
    """Targets that the recipe asks for; a figure that was not measured is a miss."""
    asked, speed = found.recipe.targets, row["speedup"]
    values = {
        "speedup_vs_baseline": (speed.get("vs_baseline", {}).get("ratio"), False),
        "speedup_vs_fair": (speed.get("vs_fair", {}).get("ratio"), False),
        "size_ratio": (
            _onnx_bytes(found.variants[-1]) / found.variants[0].artifact.manifest["source"]["weights_bytes"],
            True,
        ),
        "int8_speedup": (_int8_speedup(found, row), False),
    }
    limits = asked.to_json()
    return {n: check(v, limits[n], at_most) for n, (v, at_most) in values.items() if limits[n] is not None}


def _onnx_bytes(variant: Variant) -> int:
    return sum(f["bytes"] for n, f in variant.artifact.manifest["files"].items() if n.startswith("onnx/"))


def _int8_speedup(found: Findings, row: dict[str, Any]) -> float | None:
    """Call time of the same network before quantization in FP32, over the final row's, on the same runner and policy."""
    policy = policy_text(row["io"], row["cuda_graphs"])
    before = found.measured(found.variants[-2].name, row["runner"], policy=policy) if len(found.variants) > 1 else None
    return before.call_latency()["p50"] * 1e3 / row["call_latency_ms"]["p50"] if before else None


def _timed_as(found: Findings, name: str, row: dict[str, Any]) -> Measurement | None:
    """The measurement of variant `name` that was made as this row says: runner, options, batch and policy."""
    keys = ("runner", "runner_options", "batch", "io", "cuda_graphs")
    mine = [m for m in found.measurements if m.done and split_key(m.key)[0] == name]
    return next((m for m in mine if [row[k] for k in keys] == _made(m)), None)


def _made(m: Measurement) -> list[Any]:
    v = m.variant
    return [v.runner, v.options, v.batch, v.io, v.cuda_graphs]


def _path(found: Findings, final: dict[str, Any]) -> list[tuple[str, Measurement]]:
    """The measurements on the way from the baseline to the final row, each named by what it changes to the one before."""
    source, last = found.variants[0].name, found.variants[-2].name if len(found.variants) > 1 else ""
    spec = fastest_fp32(found.recipe)
    alike = final["runner"] == spec and not policy_text(final["io"], final["cuda_graphs"])
    path = [
        ("", found.measured(source, EAGER)),
        ("runner", found.measured(source, spec)),
        ("guidance", found.measured("factor:guidance", spec)),
        ("solver", found.measured("fair", spec)),
        ("distillation", found.measured("factor:distillation", spec)),
        ("pruning", found.measured(last, spec)),
        (
            "precision" if alike else "precision and runner",
            _timed_as(found, found.variants[-1].name, final),
        ),
    ]
    return [(n, m) for n, m in path if m is not None]


def _factors(path: list[tuple[str, Measurement]]) -> dict[str, float]:
    """How much each step from the baseline to the final row adds to the speed-up over the baseline; their product is the
    whole."""
    whole = [(name, speedup(path[0][1], m).value) for name, m in path]
    return {name: b / a for (_, a), (name, b) in pairwise(whole)}


def _factor_intervals(path: list[tuple[str, Measurement]], factors: dict[str, float]) -> dict[str, dict[str, float]]:
    """The factors as {ratio, low, high}: the 95 % interval of each step's own ratio, of the rounds that its two rows were
    timed in. A step's own ratio differs a little from its factor, which is made so that the factors multiply to the
    whole, so the interval is moved to the factor."""
    found = {}
    for (_, before), (name, after) in pairwise(path):
        own, factor = speedup(before, after), factors[name]
        found[name] = {"ratio": factor, "low": own.low * factor / own.value, "high": own.high * factor / own.value}
    return found
