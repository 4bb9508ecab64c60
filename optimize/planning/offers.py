"""What this version can make and run of what a device class allows: found in the registries, never listed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from optimize.diffusion.backend import spec_parts
from optimize.hardware.feasibility import NARROW
from optimize.registry import EXPORTERS, PASSES, RUNNERS

HALVES = ("fp16", "bf16")  # what the ONNX exporter writes besides fp32
Spec = tuple[str, dict[str, Any]]  # a runner and its options


def runner_spec(way: str, format: str, on_gpu: bool) -> str | None:
    """The registered runner that computes this format this way, written `name[:precision][@device]`; the first of those
    that fit, None where there is none, or where no pass makes the format."""
    if format in NARROW and format not in made_formats():
        return None
    return next((_text(name, options) for name, options in _specs(way, format, on_gpu) if accepts(name, options)), None)


def exports_for(runner: str, format: str, batches: Sequence[int]) -> list[dict[str, Any]]:
    """The exporters, with their options, of what a runner reads to compute this format at these batch sizes, in order;
    `runner` is a spec."""
    name = spec_parts(runner)[0]
    made: list[dict[str, Any]] = [{"onnx": {"precision": format} if format in HALVES else {}}]
    return [*made, {name: {"batch": list(batches)}}] if name in EXPORTERS.names() else made


def made_formats() -> tuple[str, ...]:
    """Formats that the quantizing pass makes."""
    return get_args(PASSES.get("quantize").model_fields["format"].annotation)


def exporters() -> list[str]:
    """Registered exporters."""
    return EXPORTERS.names()


def accepts(name: str, options: dict[str, Any]) -> bool:
    """Whether a runner of this name is registered and has these options."""
    if name not in RUNNERS.names():
        return False
    try:
        RUNNERS.get(name)(**options)
    except ValidationError:
        return False
    return True


def _specs(way: str, format: str, on_gpu: bool) -> Iterator[Spec]:
    """What runners are or will be called, best first. A narrow format is in the graph, and 16 bits are in the exported
    file: the runner is told nothing."""
    device = {"device": "cuda"} if on_gpu else {}
    precision = {} if format in ("fp32", *NARROW) else {"precision": format}
    beyond_file = {} if format in HALVES else precision
    if way == "torch" and format not in NARROW:
        yield from (("torch_compile", precision | device), ("torch", precision | device))
    elif way == "onnxruntime-cuda":
        yield "onnxruntime", {"device": "cuda"} | beyond_file
    elif way == "onnxruntime-cpu":
        yield "onnxruntime", beyond_file
    elif way == "tensorrt":
        yield from (("tensorrt", beyond_file), ("onnxruntime", {"device": "tensorrt"} | beyond_file))
    elif way == "tensorrt-rtx":
        yield "tensorrt_rtx", beyond_file
    elif way == "openvino":
        yield "openvino", precision


def _text(name: str, options: dict[str, Any]) -> str:
    precision, device = options.get("precision"), options.get("device")
    return name + (f":{precision}" if precision else "") + (f"@{device}" if device else "")
