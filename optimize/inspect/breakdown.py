"""What a model costs and where: parameters, MACs, bytes, predicted and measured time of every part, module by module."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from optimize.errors import UserError
from optimize.inspect.parts import Part, parts
from optimize.roofline.layers import Layer, layers, macs, params

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from optimize.diffusion.model import Model
    from optimize.hardware.targets import Target
    from optimize.roofline.predict import Prediction
    from optimize.roofline.rates import Rates

Report = dict[str, Any]
ROOT = "(root)"  # operators of the network outside every module of it


def inspect(
    path: Path,
    *,
    batch: int = 1,
    target: str = "here",
    format: str | None = None,
    depth: int = 2,
    measure: bool = True,
    rounds: int = 5,
    cache: Path | None = None,
    config: Path | None = None,
) -> Report:
    """JSON report of the model in `path` (see `optimize.inspect.parts`) at a batch of images, grouped to `depth` module names.

    `{model, batch, target, format, rates, predicted: true, measured_on, parts: [{name, role, class, params, macs, size_bytes,
    memory_bytes, predicted_s, low_s, high_s, measured_s, layers: [{path, params, macs, bytes, predicted_s, bound,
    measured_s}], note}], balance}`; `measured_s` is None where nothing was measured. `format`: fp16 on a GPU and fp32
    on the CPU where not given. `cache`: folder that keeps this CPU's rates. `config`: of a checkpoint in one file. Raises UserError for bad input.
    """
    if batch < 1 or depth < 1:
        raise UserError(f"inspect: batch {batch} and depth {depth} must be at least 1.")
    found = parts(path, config)
    device, rates = _device(target, cache)
    asked = format or ("fp16" if device.cuda else "fp32")
    described = [_described(part, batch, depth, device, asked, rates, rounds if measure else 0) for part in found]
    return {
        "model": str(path), "batch": batch, "target": device.name, "format": asked, "predicted": True,
        "rates": rates.name, "measured_on": _measured_on(described), "parts": described, "balance": balance(described),
    }  # fmt: skip


def _measured_on(described: list[dict[str, Any]]) -> str | None:
    """Where the measured times come from: the CPU, whatever the target; None where nothing was measured."""
    import torch

    if all(part["measured_s"] is None for part in described):
        return None
    threads = torch.get_num_threads()
    return f"torch eager on the CPU, {threads} thread{'s' * (threads > 1)}, FP32"


def cache_folder() -> Path:
    """Where measured rates of this machine are kept: `$XDG_CACHE_HOME/optimize`, else `~/.cache/optimize`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "optimize"


def _device(name: str, cache: Path | None) -> tuple[Target, Rates]:
    """The target and its rates; `here` is the GPU found if its peak rates are known, else the CPU, which is calibrated."""
    from optimize.hardware.devices import here
    from optimize.hardware.targets import target
    from optimize.roofline.probe import calibrate
    from optimize.roofline.published import gpu_rates

    device = here()[0] if name == "here" else target(name)
    device = device if device.peak_tflops or not device.cuda else target("cpu")
    if device.cuda:
        return device, gpu_rates(device)
    import torch

    return device, calibrate(cache, torch.get_num_threads())


def _described(
    part: Part, batch: int, depth: int, device: Target, format: str, rates: Rates, rounds: int
) -> dict[str, Any]:
    """One part's entry of the report."""
    from optimize.diffusion.network import example_inputs
    from optimize.roofline.predict import predict

    entry: dict[str, Any] = {"name": part.name, "role": part.role, "class": part.class_name, "note": part.note}
    if part.skeleton is None:
        unknown = ("macs", "size_bytes", "memory_bytes", "predicted_s", "low_s", "high_s", "measured_s")
        return {**entry, "params": part.params, **dict.fromkeys(unknown), "layers": []}
    feed = example_inputs(part.inputs, batch)
    operators = layers(part.skeleton(), feed=feed, formats=part.formats)
    prediction = predict(operators, device, format, rates)
    measured = measured_modules(part.load(), feed, rounds) if part.load and rounds else None
    return {
        **entry, "params": params(operators), "macs": macs(operators), "size_bytes": prediction.size_bytes,
        "memory_bytes": prediction.memory_bytes, "predicted_s": prediction.seconds, "low_s": prediction.low,
        "high_s": prediction.high, "measured_s": measured[0] if measured else None,
        "layers": grouped(operators, prediction, measured[1] if measured else None, depth),
    }  # fmt: skip


def grouped(
    operators: list[Layer], prediction: Prediction, measured: Mapping[str, float] | None, depth: int
) -> list[dict[str, Any]]:
    """Operators summed by the first `depth` names of their path, the longest first (measured where it was, else
    predicted). `bytes`: weights and activations an operator moves, FP32; `bound`: of most of the predicted time."""
    rows: dict[str, dict[str, Any]] = {}
    bounds: dict[str, dict[str, float]] = {}

    def row_of(path: str) -> dict[str, Any]:
        key, nothing = short(path, depth), 0.0 if measured is not None else None
        zeros = {"path": key, "params": 0, "macs": 0, "bytes": 0, "predicted_s": 0.0, "measured_s": nothing}
        return rows.setdefault(key, zeros)

    for layer, share in zip(operators, prediction.by_layer):
        row = row_of(layer.path)
        _add(row, layer)
        row["predicted_s"] += share.seconds
        of_row = bounds.setdefault(row["path"], {})
        of_row[share.bound] = of_row.get(share.bound, 0.0) + share.seconds
    for path, seconds in (measured or {}).items():
        row_of(path)["measured_s"] += seconds
    for key, row in rows.items():
        of_row = bounds.get(key, {"overhead": 0.0})  # a module without operators
        row["bound"] = max(of_row, key=lambda b: of_row[b])
    by = "predicted_s" if measured is None else "measured_s"
    return sorted(rows.values(), key=lambda row: -row[by])


def by_layer(model: Model, batch: int, rounds: int = 5) -> list[dict[str, Any]]:
    """A row for every module that computes: `{path, kind, params, macs, bytes, time_ms, share_time}`, the longest first.

    Times are torch eager's, of one network call at `batch` (see `measured_modules`); `kind` is that of most of its MACs,
    or of its first operator where it has none; `bytes` are those of `grouped`.
    """
    from optimize.diffusion.network import example_inputs

    rows: dict[str, dict[str, Any]] = {}
    kinds: dict[str, dict[str, int]] = {}
    for layer in layers(model, batch):
        row = rows.setdefault(layer.path, {"path": layer.path or ROOT, "kind": "", "params": 0, "macs": 0, "bytes": 0})
        _add(row, layer)
        of_row = kinds.setdefault(layer.path, {})
        of_row[layer.kind] = of_row.get(layer.kind, 0) + layer.macs
    total, own = measured_modules(model.module, example_inputs(model.inputs, batch), rounds)
    for path, row in rows.items():
        row["kind"] = max(kinds[path], key=lambda k: kinds[path][k])
        row |= {"time_ms": 1e3 * own.get(path, 0.0), "share_time": own.get(path, 0.0) / total}
    return sorted(rows.values(), key=lambda row: -row["share_time"])


def _add(row: dict[str, Any], layer: Layer) -> None:
    """Count an operator in a row; its bytes are the weights and activations that it moves, FP32."""
    row["params"] += layer.weights
    row["macs"] += layer.macs
    row["bytes"] += 4 * (layer.inputs + layer.outputs + (layer.weights if layer.kind != "unused" else 0))


def short(path: str, depth: int) -> str:
    """The first `depth` names of a module path."""
    return ".".join(path.split(".")[:depth]) or ROOT


def measured_modules(module: nn.Module, feed: Mapping[str, Any], rounds: int) -> tuple[float, dict[str, float]]:
    """(median seconds of a call in torch eager, seconds of each module's own operators by path).

    Plain calls and calls with a clock at every module take turns, after one of warm-up. The modules' medians are scaled
    to add up to the plain call; a module of many small children keeps a little of their clocks' time. The clock is that of `measure.calibrate`.
    """
    import torch

    from optimize.diffusion.network import nested
    from optimize.measure.timing import no_garbage_collection
    from optimize.roofline.probe import clock

    arguments, plain, now = nested(feed), [], clock(torch.get_num_threads())
    clocked: dict[str, list[float]] = {}
    with torch.inference_mode(), no_garbage_collection():
        module(**arguments)
        for _ in range(rounds):
            start = now()
            module(**arguments)
            plain.append(now() - start)
            with _clocks(module, now) as own:
                module(**arguments)
            for path, seconds in own.items():
                clocked.setdefault(path, []).append(seconds)
    total, of_each = median(plain), {path: median(seconds) for path, seconds in clocked.items()}
    scale = total / sum(of_each.values())
    return total, {path: seconds * scale for path, seconds in of_each.items()}


@contextmanager
def _clocks(module: nn.Module, now: Callable[[], float]) -> Iterator[dict[str, float]]:
    """Inside the block every call of a module adds the seconds it spent outside its children to the dictionary."""
    own: dict[str, float] = {}
    stack: list[list[float]] = []  # [start, seconds of children]
    handles = []

    def enter(*_: Any) -> None:
        stack.append([now(), 0.0])

    def leave(path: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            start, children = stack.pop()
            seconds = now() - start
            own[path] = own.get(path, 0.0) + seconds - children
            if stack:
                stack[-1][1] += seconds

        return hook

    for path, child in module.named_modules():
        handles += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave(path))]
    try:
        yield own
    finally:
        for handle in handles:
            handle.remove()


def balance(described: list[dict[str, Any]]) -> dict[str, Any] | None:
    """How one image divides between the denoiser's calls and the rest, which runs once: `{denoiser_s, rest_s,
    measured, calls}`; up to `calls` denoiser calls the rest takes at least half. None for a lone network."""
    known = [d for d in described if d["predicted_s"] is not None]
    measured = all(d["measured_s"] is not None for d in known)
    key = "measured_s" if measured else "predicted_s"
    denoiser = sum(d[key] for d in known if d["role"] == "denoiser")
    rest = sum(d[key] for d in known if d["role"] != "denoiser")
    if not denoiser or not rest:
        return None
    return {"denoiser_s": denoiser, "rest_s": rest, "measured": measured, "calls": math.floor(rest / denoiser)}
