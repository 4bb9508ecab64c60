"""Building one engine: an ONNX file in, a plan out, over a TensorRT module given as a value (`tensorrt` from 10.4 on,
or `tensorrt_rtx`). Networks are strongly typed, quantization is the graph's own Q/DQ, and every return is checked.

Standard library only: a build kit's script is made of this file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

FLAGS = {  # as this library calls them -> as TensorRT does
    "refit": "REFIT",
    "refit_identical": "REFIT_IDENTICAL",
    "refit_individual": "REFIT_INDIVIDUAL",
    "strip_weights": "STRIP_PLAN",
    "stream_weights": "WEIGHT_STREAMING",
    "version_compatible": "VERSION_COMPATIBLE",
    "sparse_weights": "SPARSE_WEIGHTS",
}
Shapes = dict[str, list[list[int]]]  # input -> [smallest, best, largest] shape


class Job(TypedDict):
    """What is built; plain JSON values."""

    onnx: str  # path of the file
    sm: list[int]  # compute capability the engine is for; empty: TensorRT-RTX is not told, as a probe wants it
    profiles: list[Shapes]  # of the inputs with symbolic sizes; empty where there are none
    flags: list[str]  # keys of FLAGS
    hardware_compatible: bool  # one plan for every GPU from Ampere on, at some cost
    tf32: bool  # FP32 layers may round their inputs to TF32
    level: int  # how long TensorRT looks for faster kernels, 0 to 5
    workspace_bytes: int  # largest scratch memory of a kernel on the GPU
    timing_cache: str  # file that measured kernels are kept in, "" for none


class EngineError(Exception):
    """TensorRT refused something; the message quotes it."""


def build(trt: Any, job: Job) -> tuple[bytes, dict[str, Any]]:
    """The plan and facts of how it was made: {seconds, layers, timing_cache}. EngineError where TensorRT refuses."""
    messages = logger(trt)
    start = time.perf_counter()
    builder = trt.Builder(messages)
    network = create_network(trt, builder)
    parse(trt, network, job["onnx"], messages)
    config = configure(trt, builder, network, job, messages)
    cache = use_timing_cache(config, job["timing_cache"])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{module_name(trt)} built no engine: {messages.said()}")
    if not keep_timing_cache(config, job["timing_cache"]):
        cache += ", not kept"
    facts = {"seconds": round(time.perf_counter() - start, 3), "layers": network.num_layers, "timing_cache": cache}
    return bytes(plan), facts


def module_name(trt: Any) -> str:
    """Name and version of the module, "tensorrt_rtx 1.7.1"."""
    return f"{trt.__name__.partition('.')[0]} {trt.__version__}"


def logger(trt: Any) -> Any:
    """A TensorRT logger that keeps warnings and errors instead of printing them; `said()` is the errors as one line."""

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings.append(" ".join(message.split()))

        def said(self) -> str:
            return " | ".join(dict.fromkeys(self.errors[:5])) or "it gave no reason"

    return Messages()


def load_engine(trt: Any, plan: bytes, messages: Any, flags: Iterable[str] = ()) -> tuple[Any, Any]:
    """(runtime, engine) of a plan built with these flags; EngineError quoting TensorRT where the plan does not fit this
    GPU or module, or is truncated. Code for the CPU in it is run for version-compatible engines only, which bring some."""
    runtime = trt.Runtime(messages)
    if "version_compatible" in flags:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(f"{module_name(trt)} does not load the engine: {messages.said()}")
    return runtime, engine


def create_network(trt: Any, builder: Any) -> Any:
    """An empty strongly typed network. From 11 on every network is one, and the flag says nothing any more."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    if network is None:
        raise EngineError(f"{module_name(trt)} made no network.")
    return network


def parse(trt: Any, network: Any, path: str, messages: Any) -> None:
    """Read the ONNX file (and its external data) into the network; EngineError with every complaint of the parser."""
    parser = trt.OnnxParser(network, messages)
    if parser.parse_from_file(path) and network.num_outputs:
        return
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    said = "; ".join(complaint(e) for e in found) or messages.said()
    raise EngineError(f"{module_name(trt)} does not take {Path(path).name}: {said}")


def complaint(error: Any) -> str:
    """A parser's error as "node NAME (OPERATOR): what", as far as this version tells."""

    def ask(name: str) -> str:
        answer: Callable[[], Any] | None = getattr(error, name, None)
        return str(answer()).strip() if answer else ""

    node, operator, what = ask("node_name"), ask("node_operator"), ask("desc")
    where = f"node {node}" + (f" ({operator})" if operator else "") if node else f"node {ask('node')}"
    return f"{where}: {' '.join(what.split())}"


def configure(trt: Any, builder: Any, network: Any, job: Job, messages: Any) -> Any:
    """A builder's config: target, memory, level, flags and profiles. EngineError for what this module refuses."""
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    config.builder_optimization_level = job["level"]
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    (config.set_flag if job["tf32"] else config.clear_flag)(trt.BuilderFlag.TF32)
    set_target(trt, config, job)
    for name in job["flags"]:
        flag = getattr(trt.BuilderFlag, FLAGS[name], None)
        if flag is None:
            raise EngineError(f"{module_name(trt)} has no flag {FLAGS[name]} ({name}).")
        config.set_flag(flag)
    for number, shapes in enumerate(job["profiles"]):
        add_profile(builder, network, config, shapes, f"profile {number}", messages)
    return config


def set_target(trt: Any, config: Any, job: Job) -> None:
    """Build for the SM asked for. TensorRT-RTX is told it; TensorRT builds for the GPU it finds."""
    if job["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if not hasattr(config, "set_compute_capability") or not job["sm"]:
        return
    major, minor = job["sm"]
    capability = getattr(trt.ComputeCapability, f"SM{major}{minor}", None)
    config.num_compute_capabilities = 1
    if capability is None or not config.set_compute_capability(capability, 0):
        raise EngineError(f"{module_name(trt)} cannot build for SM {major}.{minor}.")


def add_profile(builder: Any, network: Any, config: Any, shapes: Shapes, name: str, messages: Any) -> None:
    """One optimization profile; EngineError naming what is wrong with it."""
    profile = builder.create_optimization_profile()
    known = {network.get_input(i).name for i in range(network.num_inputs)}
    for tensor, three in shapes.items():
        if tensor not in known:
            raise EngineError(f"{name}: the network has no input {tensor}; it has {', '.join(sorted(known))}.")
        try:
            profile.set_shape(tensor, *(tuple(shape) for shape in three))
        except (ValueError, RuntimeError) as error:
            raise EngineError(f"{name}: {tensor} {three}: {error}") from error
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{name} was refused: {messages.said()}")


def use_timing_cache(config: Any, path: str) -> str:
    """Start from the kernels measured before; returns used, new (an older one does not fit), empty or none."""
    if not path:
        return "none"
    held = Path(path).read_bytes() if os.path.isfile(path) else b""
    cache = config.create_timing_cache(held)
    if cache is not None and config.set_timing_cache(cache, False):
        return "used" if held else "empty"
    fresh = config.create_timing_cache(b"")
    return "new" if fresh is not None and config.set_timing_cache(fresh, False) else "none"


def keep_timing_cache(config: Any, path: str) -> bool:
    """Write what was measured, whole or not at all; False where the disk does not take it, for which no engine is lost."""
    cache = config.get_timing_cache() if path else None
    data = cache.serialize() if cache is not None else None
    if data is not None:
        temporary = Path(f"{path}.tmp-{os.getpid()}")
        try:
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(bytes(data))
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
    return True
