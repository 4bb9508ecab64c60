"""An engine that runs: bindings, profiles chosen by shape, and CUDA graphs, over a TensorRT module and a driver given as
values. Inputs and outputs lie in host memory (numpy) or on the GPU (pointers).

numpy and the standard library only: a build kit's script is made of this file. Never run on a GPU so far: unverified.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimize.engines.builder import EngineError, complaint, load_engine, logger, module_name
from optimize.engines.cuda import CudaError

Dims = tuple[int, ...]


@dataclass
class Bound:
    """One set of input shapes: its context, fixed buffers on the GPU and, where asked for, the captured graph."""

    context: Any
    shapes: dict[str, Dims]
    output_shape: Dims
    buffers: dict[str, int] = field(default_factory=dict)
    graph: int = 0


class Session:
    """A deserialized engine with one output. Call `run` with numpy arrays, or `run_on_gpu` with pointers."""

    def __init__(
        self,
        trt: Any,
        plan: bytes,
        cuda: Any,
        graphs: bool = False,
        *,
        flags: Iterable[str] = (),
        onnx: str = "",
        resident: int | None = None,
    ) -> None:
        """Deserialize. `flags` are those the engine was built with: stripped weights are put back from the file `onnx`,
        and of streamed ones `resident` bytes stay on the GPU (None: as many as TensorRT thinks fit).

        EngineError quoting TensorRT where the plan does not fit this GPU or module, is truncated, or gets no weights."""
        self._trt, self._cuda, self._graphs = trt, cuda, graphs
        self._messages = logger(trt)
        self._runtime, self.engine = load_engine(trt, plan, self._messages, flags)
        if "strip_weights" in flags:
            put_weights_back(trt, self.engine, onnx, self._messages)
        self.resident = keep_resident(trt, self.engine, resident) if "stream_weights" in flags else None
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.output = next(n for n in names if n not in self.inputs)
        self.dtypes = {n: self._dtype(n) for n in names}
        self.profiles = [self._profile(i) for i in range(self.engine.num_optimization_profiles)]
        self._config = runtime_config(trt, self.engine, graphs)
        self._bound: dict[Any, Bound] = {}
        self.stream, self._ready, self._done = cuda.stream(), cuda.event(), cuda.event()

    def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """The output for arrays in host memory, as a new array. Any thread may call, one at a time."""
        self._cuda.make_current()
        fed = {n: np.ascontiguousarray(arrays[n], self.dtypes[n]) for n in self.inputs}
        bound = self.bind({n: a.shape for n, a in fed.items()})
        for name, array in fed.items():
            self._cuda.to_device(bound.buffers[name], array.ctypes.data, array.nbytes, self.stream)
        self.execute(bound)
        made = np.empty(bound.output_shape, self.dtypes[self.output])
        self._cuda.to_host(made.ctypes.data, bound.buffers[self.output], made.nbytes, self.stream)
        self._cuda.synchronize(self.stream)
        return made

    def run_on_gpu(self, pointers: dict[str, int], shapes: dict[str, Dims], output: int, stream: int) -> None:
        """Put the output of tensors that lie on the GPU at `output`, in the order of `stream`. The work is done on a
        stream of this session, since TensorRT waits for the whole GPU on the default one, and cannot capture it."""
        self._cuda.make_current()
        bound = self.bind(shapes)
        self._cuda.record(self._ready, stream)
        self._cuda.wait(self.stream, self._ready)
        if self._graphs:  # a graph has fixed addresses: copy in and out
            for name in self.inputs:
                self._cuda.within(bound.buffers[name], pointers[name], self._bytes(name, shapes[name]), self.stream)
            self.execute(bound)
            size = self._bytes(self.output, bound.output_shape)
            self._cuda.within(output, bound.buffers[self.output], size, self.stream)
        else:
            self._enqueue(bound, pointers | {self.output: output})
        self._cuda.record(self._done, self.stream)
        self._cuda.wait(stream, self._done)

    def output_shape(self, shapes: dict[str, Dims]) -> Dims:
        """Shape of the output for these input shapes."""
        self._cuda.make_current()
        return self.bind(shapes).output_shape

    def bind(self, shapes: dict[str, Dims]) -> Bound:
        """Context and buffers of these input shapes, made at their first use."""
        key = tuple(shapes[n] for n in self.inputs)
        if key not in self._bound:
            self._bound[key] = self._new({n: tuple(shapes[n]) for n in self.inputs})
        return self._bound[key]

    def execute(self, bound: Bound) -> None:
        """One call on the fixed buffers: replayed where graphs are asked for. TensorRT-RTX captures by itself, since it
        alone knows when its kernels are compiled (see `runtime_config`)."""
        if not self._graphs or told_at_runtime(self._trt):
            self._enqueue(bound, bound.buffers)
            return
        if not bound.graph:
            bound.graph = self._capture(bound)
        self._cuda.launch(bound.graph, self.stream)

    def _capture(self, bound: Bound) -> int:
        self._enqueue(bound, bound.buffers)  # the first call may allocate, which cannot be captured
        self._cuda.synchronize(self.stream)
        self._cuda.begin_capture(self.stream)
        try:
            self._enqueue(bound, bound.buffers)
        except EngineError:
            with suppress(CudaError):  # a capture that failed has no graph
                self._cuda.destroy(self._cuda.end_capture(self.stream))
            raise
        return int(self._cuda.end_capture(self.stream))

    def close(self) -> None:
        """Give memory, graphs and the stream back."""
        self._cuda.make_current()
        self._cuda.synchronize(self.stream)
        for bound in self._bound.values():
            self._free(bound)
            if bound.graph:
                self._cuda.destroy(bound.graph)
        self._bound.clear()
        self._cuda.destroy_event(self._ready)
        self._cuda.destroy_event(self._done)
        self._cuda.destroy_stream(self.stream)
        self._config = self.engine = self._runtime = None

    def _dtype(self, name: str) -> np.dtype[Any]:
        kind = self.engine.get_tensor_dtype(name)
        try:
            return np.dtype(self._trt.nptype(kind))
        except TypeError as error:  # BF16, FP8
            raise EngineError(
                f"{name} is {kind}, which numpy has no type for. Export the network with inputs and outputs in float32."
            ) from error

    def _profile(self, index: int) -> dict[str, tuple[Dims, Dims, Dims]]:
        found = {}
        for name in self.inputs:
            low, best, high = (tuple(s) for s in self.engine.get_tensor_profile_shape(name, index))
            found[name] = (low, best, high)
        return found

    def _new(self, shapes: dict[str, Dims]) -> Bound:
        index = choose(self.profiles, shapes)
        asked = () if self._config is None else (self._config,)
        context = self.engine.create_execution_context(*asked)
        if context is None:
            raise EngineError(f"{module_name(self._trt)} made no execution context: {self._messages.said()}")
        if not context.set_optimization_profile_async(index, self.stream):
            raise EngineError(f"profile {index} was refused: {self._messages.said()}")
        self._cuda.synchronize(self.stream)
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"{name} {shape} was refused: {self._messages.said()}")
        output = tuple(context.get_tensor_shape(self.output))
        bound = Bound(context, shapes, output)
        try:
            for name, shape in (shapes | {self.output: output}).items():
                bound.buffers[name] = self._cuda.allocate(self._bytes(name, shape))
        except CudaError:
            self._free(bound)
            raise
        return bound

    def _free(self, bound: Bound) -> None:
        for pointer in bound.buffers.values():
            self._cuda.free(pointer)

    def _enqueue(self, bound: Bound, pointers: dict[str, int]) -> None:
        for name, pointer in pointers.items():
            if not bound.context.set_tensor_address(name, pointer):
                raise EngineError(f"{name}: the address was refused: {self._messages.said()}")
        if not bound.context.execute_async_v3(self.stream):
            raise EngineError(f"{module_name(self._trt)} did not run the engine: {self._messages.said()}")

    def _bytes(self, name: str, shape: Dims) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self.dtypes[name].itemsize


def told_at_runtime(trt: Any) -> bool:
    """Whether the module compiles kernels when a context meets its shapes, as TensorRT-RTX does."""
    return hasattr(trt, "DynamicShapesKernelSpecializationStrategy")


def runtime_config(trt: Any, engine: Any, graphs: bool) -> Any:
    """How TensorRT-RTX makes contexts; None for TensorRT. It is to compile the kernels for a context's shapes at once,
    where it would else run slower ones until others are ready, to keep what it compiled for the next context, and, for
    `graphs`, to capture and replay them itself: a graph captured around it could hold the slower ones. Source:
    TensorRT-RTX, Working with RTX CUDA Graphs."""
    if not told_at_runtime(trt):
        return None
    config = engine.create_runtime_config()
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    config.set_runtime_cache(config.create_runtime_cache())
    if graphs:
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if config.cuda_graph_strategy != trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE:
            raise EngineError(f"{module_name(trt)} does not capture CUDA graphs of this engine. Run it without them.")
    return config


def put_weights_back(trt: Any, engine: Any, onnx: str, messages: Any) -> None:
    """Fill an engine without weights from the ONNX file it was built from; EngineError where that fails."""
    refitter = trt.Refitter(engine, messages)
    parser = trt.OnnxParserRefitter(refitter, messages)
    if not parser.refit_from_file(onnx) or not refitter.refit_cuda_engine():
        found = "; ".join(complaint(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{module_name(trt)} puts no weights of {onnx} into the engine: {found or messages.said()}")


def keep_resident(trt: Any, engine: Any, asked: int | None) -> int:
    """Let an engine with streamed weights keep this many bytes of them on the GPU, all being the most; unasked it would
    keep all, and stream nothing. Returns how many. EngineError where it refuses."""
    budget = engine.get_weight_streaming_automatic_budget() if asked is None else asked
    budget = int(min(budget, engine.streamable_weights_size))
    engine.weight_streaming_budget_v2 = budget
    if engine.weight_streaming_budget_v2 != budget:
        raise EngineError(f"{module_name(trt)} does not keep {budget} bytes of streamed weights on the GPU.")
    return budget


def choose(profiles: list[dict[str, tuple[Dims, Dims, Dims]]], shapes: dict[str, Dims]) -> int:
    """The profile whose best shapes are nearest to these among those that take them; EngineError naming all profiles."""
    fitting = [i for i, profile in enumerate(profiles) if takes(profile, shapes)]
    if not fitting:
        asked = ", ".join(f"{n} {list(s)}" for n, s in shapes.items())
        raise EngineError(f"{asked}: outside every profile of the engine. {describe(profiles)}")
    return min(fitting, key=lambda i: distance(profiles[i], shapes))


def takes(profile: dict[str, tuple[Dims, Dims, Dims]], shapes: dict[str, Dims]) -> bool:
    """Whether every dimension lies in the profile's range."""
    for name, (low, _, high) in profile.items():
        shape = shapes[name]
        if len(shape) != len(low) or not all(a <= d <= b for a, d, b in zip(low, shape, high)):
            return False
    return True


def distance(profile: dict[str, tuple[Dims, Dims, Dims]], shapes: dict[str, Dims]) -> float:
    """How far shapes are from the profile's best ones: sum of |ln| of the ratios of their dimensions."""
    ratios = [(d, b) for name, (_, best, _) in profile.items() for d, b in zip(shapes[name], best)]
    return float(sum(abs(np.log(max(d, 1) / max(b, 1))) for d, b in ratios))


def describe(profiles: list[dict[str, tuple[Dims, Dims, Dims]]]) -> str:
    """All profiles as a line: what each takes, by input."""
    texts = []
    for number, profile in enumerate(profiles):
        ranges = ", ".join(
            f"{n} {list(low)} to {list(high)}" if low != high else f"{n} {list(low)}"
            for n, (low, _, high) in profile.items()
        )
        texts.append(f"profile {number}: {ranges}")
    return "; ".join(texts) + "."
