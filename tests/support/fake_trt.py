"""A TensorRT module and a CUDA driver that only keep books: what is asked of them, in which order, and what they refuse.

The "engine" adds 1 to its first input. Device memory is host memory, so that copies and addresses are real.
"""

from __future__ import annotations

import ctypes
import json
from types import SimpleNamespace
from typing import Any

import numpy as np


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3)

    def __init__(self) -> None:
        self.made = True


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return b"kernels"


class Config:
    def __init__(self, module: FakeTrt) -> None:
        self.module, self.flags, self.limits = module, set(), {}
        self.num_compute_capabilities = 0
        self.cache: Any = None
        self.profiles: list[Any] = []
        if module.targets is not None:
            self.set_compute_capability = lambda sm, index: sm in module.targets

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool] = size

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile)
        return -1 if profile.shapes.get("bad") else len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Cache:
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False
        if cache.data == b"of another version":
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        return self.cache


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        if not all(a <= b <= c for a, b, c in zip(low, best, high)):
            raise ValueError("min <= opt <= max does not hold")
        self.shapes[name] = (low, best, high)


class Builder:
    def __init__(self, logger: Any) -> None:
        self.logger, self.module = logger, FakeTrt.now

    def create_network(self, flags: int) -> Any:
        self.module.network_flags = flags
        tensors = [SimpleNamespace(name=n, shape=s) for n, s in self.module.inputs.items()]
        return SimpleNamespace(num_inputs=len(tensors), get_input=lambda i: tensors[i], num_outputs=1, num_layers=7)

    def create_builder_config(self) -> Config:
        self.module.config = Config(self.module)
        return self.module.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Any, config: Config) -> bytes | None:
        if self.module.refuses:
            self.logger.log(ILogger.Severity.WARNING, "not this")
            self.logger.log(ILogger.Severity.ERROR, self.module.refuses)
            return None
        profiles = [{n: [list(x) for x in s] for n, s in p.shapes.items()} for p in config.profiles]
        about = {"version": self.module.__version__, "profiles": profiles, "flags": sorted(config.flags)}
        return json.dumps(about).encode()


class OnnxParser:
    def __init__(self, network: Any, logger: Any) -> None:
        self.errors = FakeTrt.now.parser_errors
        self.num_errors = len(self.errors)

    def parse_from_file(self, path: str) -> bool:
        return not self.errors

    def get_error(self, index: int) -> Any:
        return self.errors[index]


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.shapes, self.addresses, self.profile = engine, {}, {}, -1
        self.config: Any = None
        engine.module.contexts.append(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return True

    def set_input_shape(self, name: str, shape: Any) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes["sample"]

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shape = self.shapes["sample"]
        work = lambda: np.copyto(view(self.addresses["output"], shape), view(self.addresses["sample"], shape) + 1)  # noqa: E731
        if FakeTrt.now.fails_in_capture and stream in FakeCuda.now.capturing:
            self.engine.logger.log(ILogger.Severity.ERROR, "cannot be captured")
            return False
        FakeCuda.now.log.append(f"enqueue on {stream}")
        FakeCuda.now.do(stream, work)
        return True


class Engine:
    def __init__(self, module: FakeTrt, plan: dict[str, Any]) -> None:
        self.module, self.plan = module, plan
        self.names = [*module.inputs, "output"]
        self.num_io_tensors, self.num_optimization_profiles = len(self.names), len(plan["profiles"])
        self.weights, self.streamable_weights_size, self._resident = "", 1000, 1000
        module.engines.append(self)

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self._resident

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, value: int) -> None:
        assert not self.module.contexts  # TensorRT takes it before the first context alone
        self._resident = value if self.module.streams else self._resident

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "out" if name == "output" else "in"

    def get_tensor_dtype(self, name: str) -> str:
        return "float32"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.module.inputs.get(name, (-1,))

    def get_tensor_profile_shape(self, name: str, index: int) -> Any:
        own = self.module.inputs[name]
        return self.plan["profiles"][index].get(name, [own, own, own])

    def create_runtime_config(self) -> Any:
        return RuntimeConfig()

    def create_execution_context(self, config: Any = None) -> Context:
        made = Context(self)
        made.config = config
        return made

    def get_weight_streaming_automatic_budget(self) -> int:
        return 600

    def create_engine_inspector(self) -> Any:
        return Inspector(self)


class RuntimeConfig:
    """Of TensorRT-RTX; `captures` False: it takes no strategy for CUDA graphs."""

    captures = True

    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy, self._graphs = "lazy", "disabled"

    def create_runtime_cache(self) -> object:
        return object()

    def set_runtime_cache(self, cache: object) -> bool:
        self.cache = cache
        return True

    @property
    def cuda_graph_strategy(self) -> str:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, value: str) -> None:
        self._graphs = value if self.captures else self._graphs


class Inspector:
    """Tells formats only where a context has every input's shape, as TensorRT's does for symbolic sizes."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.execution_context = engine, None

    def get_engine_information(self, format: str) -> str:
        assert format == "json"
        known = self.execution_context is not None and set(self.execution_context.shapes) == set(
            self.engine.module.inputs
        )
        given = "Row major Int8 format" if known else "N/A due to dynamic shapes"
        return json.dumps({"Layers": [{"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": given}]}]})


class Refitter:
    """Puts weights from a file back; what it does not take it says as the parser does."""

    def __init__(self, engine: Engine, logger: Any) -> None:
        self.engine, self.logger = engine, logger

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = self.file
        return not FakeTrt.now.refuses


class OnnxParserRefitter:
    def __init__(self, refitter: Refitter, logger: Any) -> None:
        self.refitter, self.errors = refitter, FakeTrt.now.parser_errors
        self.num_errors = len(self.errors)

    def refit_from_file(self, path: str) -> bool:
        self.refitter.file = path
        return not self.errors

    def get_error(self, index: int) -> Any:
        return self.errors[index]


class Runtime:
    def __init__(self, logger: Any) -> None:
        self.logger, self.module, self.engine_host_code_allowed = logger, FakeTrt.now, False

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        self.module.deserialized += 1
        try:
            about = json.loads(plan)
            if "VERSION_COMPATIBLE" in about.get("flags", ()) and not self.engine_host_code_allowed:
                self.logger.log(ILogger.Severity.ERROR, "plan contains host code")
                return None
            engine = Engine(self.module, about)
            engine.logger = self.logger
            return engine
        except ValueError:
            self.logger.log(ILogger.Severity.ERROR, "magicTag does not match")
            return None


class FakeTrt:
    """The module; make a new one for every test. `targets`: SMs it can be told, None as TensorRT is (never told)."""

    now: FakeTrt

    def __init__(self, name: str = "tensorrt", version: str = "11.4.0", targets: Any = None) -> None:
        FakeTrt.now = self
        self.__name__, self.__version__, self.targets = name, version, targets
        self.inputs: dict[str, tuple[int, ...]] = {"sample": (-1, 1, 4, 4), "timestep": (-1,)}
        self.refuses, self.parser_errors, self.deserialized = "", [], 0
        self.contexts: list[Context] = []
        self.engines: list[Engine] = []
        self.fails_in_capture = False
        self.streams = True  # it takes a budget of streamed weights
        self.config: Any = None
        self.Refitter, self.OnnxParserRefitter = Refitter, OnnxParserRefitter
        self.LayerInformationFormat = SimpleNamespace(JSON="json")
        if name == "tensorrt_rtx":
            self.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
            self.CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")
        self.network_flags = -1
        self.ILogger, self.Builder, self.OnnxParser, self.Runtime = ILogger, Builder, OnnxParser, Runtime
        self.NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
        self.MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
        self.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
        self.TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
        self.HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="ampere+")
        self.ComputeCapability = SimpleNamespace(SM75="SM75", SM80="SM80", SM86="SM86", SM89="SM89", SM120="SM120")
        names = ("TF32", "REFIT", "REFIT_IDENTICAL", "REFIT_INDIVIDUAL", "STRIP_PLAN", "WEIGHT_STREAMING")
        names += ("VERSION_COMPATIBLE",)
        self.BuilderFlag = SimpleNamespace(**{n: n for n in names})

    def nptype(self, dtype: str) -> Any:
        return np.dtype(dtype).type


class FakeCuda:
    """The driver's calls as `optimize.engines.cuda.Cuda` has them; `log` holds their names in order."""

    now: FakeCuda

    def __init__(self, sm: tuple[int, int] = (8, 6)) -> None:
        FakeCuda.now = self
        self._sm, self.log, self.memory_held = sm, [], {}
        self.capturing: dict[int, list[Any]] = {}
        self.graphs: dict[int, list[Any]] = {}
        self.clock = 0.0

    def do(self, stream: int, work: Any) -> None:
        self.clock += 1.0
        if stream in self.capturing:
            self.capturing[stream].append(work)
        else:
            self.log.append("work")
            work()

    def make_current(self) -> None:
        self.log.append("current")

    def name(self) -> str:
        return "Some GPU"

    def sm(self) -> tuple[int, int]:
        return self._sm

    def driver(self) -> str:
        return "13.0"

    def memory(self) -> tuple[int, int]:
        return 1, 2

    def allocate(self, size: int) -> int:
        held = ctypes.create_string_buffer(max(size, 1))
        self.memory_held[ctypes.addressof(held)] = held
        return ctypes.addressof(held)

    def free(self, pointer: int) -> None:
        del self.memory_held[pointer]

    def to_device(self, pointer: int, address: int, size: int, stream: int) -> None:
        self.do(stream, lambda: ctypes.memmove(pointer, address, size))

    to_host = to_device  # (target, source, size)

    def within(self, target: int, source: int, size: int, stream: int) -> None:
        self.do(stream, lambda: ctypes.memmove(target, source, size))

    def stream(self) -> int:
        return 7

    def synchronize(self, stream: int) -> None:
        self.log.append("synchronize")

    def event(self) -> int:
        self.log.append("event")
        return len(self.log)

    def record(self, event: int, stream: int) -> None:
        self.memory_held[-event] = self.clock

        self.log.append(f"record on {stream}")

    def wait(self, stream: int, event: int) -> None:
        self.log.append(f"wait on {stream}")

    def destroy_event(self, event: int) -> None:
        self.memory_held.pop(-event, None)

    def milliseconds(self, begin: int, end: int) -> float:
        return self.memory_held[-end] - self.memory_held[-begin]

    def begin_capture(self, stream: int) -> None:
        self.capturing[stream] = []

    def end_capture(self, stream: int) -> int:
        self.graphs[len(self.graphs) + 1] = self.capturing.pop(stream)
        return len(self.graphs)

    def launch(self, graph: int, stream: int) -> None:
        self.log.append("launch")
        for work in self.graphs[graph]:
            self.clock += 1.0
            work()

    def destroy(self, graph: int) -> None:
        del self.graphs[graph]

    def destroy_stream(self, stream: int) -> None:
        self.log.append("destroy_stream")


def view(address: int, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 numbers at an address."""
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(address)).reshape(shape)
