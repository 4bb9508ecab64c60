"""An engine that runs: bindings, profiles chosen by shape, and CUDA graphs, over a TensorRT module and a driver given as
values. Inputs and outputs lie in host memory (numpy) or on the GPU (pointers).

numpy and the standard library only: a build kit's script is made of this file. Never run on a GPU so far: unverified.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optimize.engines.builder import EngineError, logger, module_name
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

    def __init__(self, trt: Any, plan: bytes, cuda: Any, graphs: bool = False) -> None:
        """Deserialize; EngineError quoting TensorRT where the plan does not fit this GPU or module, or is truncated."""
        self._trt, self._cuda, self._graphs = trt, cuda, graphs
        self._messages = logger(trt)
        self._runtime = trt.Runtime(self._messages)
        self.engine = self._runtime.deserialize_cuda_engine(plan)
        if self.engine is None:
            raise EngineError(f"{module_name(trt)} does not load the engine: {self._messages.said()}")
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.inputs = [n for n in names if self.engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self.output = next(n for n in names if n not in self.inputs)
        self.dtypes = {n: self._dtype(n) for n in names}
        self.profiles = [self._profile(i) for i in range(self.engine.num_optimization_profiles)]
        self._bound: dict[Any, Bound] = {}
        self.stream = cuda.stream()

    def run(self, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """The output for arrays in host memory, as a new array. Any thread may call, one at a time."""
        self._cuda.make_current()
        fed = {n: np.ascontiguousarray(arrays[n], self.dtypes[n]) for n in self.inputs}
        bound = self.bind({n: a.shape for n, a in fed.items()})
        for name, array in fed.items():
            self._cuda.to_device(bound.buffers[name], array.ctypes.data, array.nbytes, self.stream)
        self.execute(bound, self.stream)
        made = np.empty(bound.output_shape, self.dtypes[self.output])
        self._cuda.to_host(made.ctypes.data, bound.buffers[self.output], made.nbytes, self.stream)
        self._cuda.synchronize(self.stream)
        return made

    def run_on_gpu(self, pointers: dict[str, int], shapes: dict[str, Dims], output: int, stream: int) -> None:
        """Put the output of tensors that lie on the GPU at `output`, in the order of `stream`."""
        self._cuda.make_current()
        bound = self.bind(shapes)
        if self._graphs:  # a graph has fixed addresses: copy in and out
            for name in self.inputs:
                self._cuda.within(bound.buffers[name], pointers[name], self._bytes(name, shapes[name]), stream)
            self.execute(bound, stream)
            size = self._bytes(self.output, bound.output_shape)
            self._cuda.within(output, bound.buffers[self.output], size, stream)
            return
        self._enqueue(bound, pointers | {self.output: output}, stream)

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

    def execute(self, bound: Bound, stream: int) -> None:
        """One call on the fixed buffers: replayed where graphs are asked for."""
        if not self._graphs:
            self._enqueue(bound, bound.buffers, stream)
            return
        if not bound.graph:
            self._enqueue(bound, bound.buffers, stream)  # the first call may allocate, which cannot be captured
            self._cuda.synchronize(stream)
            self._cuda.begin_capture(self.stream)
            self._enqueue(bound, bound.buffers, self.stream)
            bound.graph = self._cuda.end_capture(self.stream)
        self._cuda.launch(bound.graph, stream)

    def close(self) -> None:
        """Give memory, graphs and the stream back."""
        self._cuda.make_current()
        self._cuda.synchronize(self.stream)
        for bound in self._bound.values():
            self._free(bound)
            if bound.graph:
                self._cuda.destroy(bound.graph)
        self._bound.clear()
        self._cuda.destroy_stream(self.stream)
        self.engine = self._runtime = None

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
        context = self.engine.create_execution_context()
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

    def _enqueue(self, bound: Bound, pointers: dict[str, int], stream: int) -> None:
        for name, pointer in pointers.items():
            if not bound.context.set_tensor_address(name, pointer):
                raise EngineError(f"{name}: the address was refused: {self._messages.said()}")
        if not bound.context.execute_async_v3(stream):
            raise EngineError(f"{module_name(self._trt)} did not run the engine: {self._messages.said()}")

    def _bytes(self, name: str, shape: Dims) -> int:
        return int(np.prod(shape, dtype=np.int64)) * self.dtypes[name].itemsize


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
