"""The CUDA driver through ctypes: the few calls an engine's memory, streams, events and graphs need, and no more.

Standard library only; `libcuda` comes with NVIDIA's driver, so that neither a CUDA toolkit nor torch is needed.
"""

from __future__ import annotations

import ctypes
from typing import Any

NAMES = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: TensorRT may allocate while it is captured
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING


class CudaError(Exception):
    """The driver refused a call, or there is none."""


class Cuda:
    """The primary context of one GPU. Pointers, streams, events and graphs are plain integers."""

    def __init__(self, index: int = 0, library: Any = None) -> None:
        """Open GPU `index`; CudaError without a driver or such a GPU. `library` stands in for libcuda in tests."""
        self._library = library or load()
        self._do("cuInit", 0)
        self.device = self._out("cuDeviceGet", ctypes.c_int(), index)
        self._context = self._pointer("cuDevicePrimaryCtxRetain", self.device)
        self.make_current()

    def make_current(self) -> None:
        """Let the calling thread use this GPU; a new thread has no context of its own."""
        self._do("cuCtxSetCurrent", _p(self._context))

    def name(self) -> str:
        """The GPU's name."""
        text = ctypes.create_string_buffer(128)
        self._do("cuDeviceGetName", text, 128, self.device)
        return text.value.decode()

    def sm(self) -> tuple[int, int]:
        """Its compute capability."""
        asked = [self._out("cuDeviceGetAttribute", ctypes.c_int(), a, self.device) for a in (MAJOR, MINOR)]
        return asked[0], asked[1]

    def driver(self) -> str:
        """The newest CUDA version the driver runs, "13.0"."""
        version = self._out("cuDriverGetVersion", ctypes.c_int())
        return f"{version // 1000}.{version % 1000 // 10}"

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the GPU's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._do("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Device memory of at least one byte."""
        pointer = ctypes.c_uint64()
        self._do("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(size, 1)))
        return int(pointer.value)

    def free(self, pointer: int) -> None:
        """Give device memory back."""
        self._do("cuMemFree_v2", ctypes.c_uint64(pointer))

    def to_device(self, pointer: int, address: int, size: int, stream: int) -> None:
        """Copy from host memory at `address`, in the stream's order."""
        self._do("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(pointer), _p(address), ctypes.c_size_t(size), _p(stream))

    def to_host(self, address: int, pointer: int, size: int, stream: int) -> None:
        """Copy to host memory at `address`, in the stream's order."""
        self._do("cuMemcpyDtoHAsync_v2", _p(address), ctypes.c_uint64(pointer), ctypes.c_size_t(size), _p(stream))

    def within(self, target: int, source: int, size: int, stream: int) -> None:
        """Copy from device memory to device memory, in the stream's order."""
        about = (ctypes.c_uint64(target), ctypes.c_uint64(source), ctypes.c_size_t(size))
        self._do("cuMemcpyDtoDAsync_v2", *about, _p(stream))

    def stream(self) -> int:
        """A stream of its own, that does not wait for the default one."""
        return self._pointer("cuStreamCreate", NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until the stream is done."""
        self._do("cuStreamSynchronize", _p(stream))

    def event(self) -> int:
        """An event that takes the time."""
        return self._pointer("cuEventCreate", 0)

    def record(self, event: int, stream: int) -> None:
        """Let the stream mark the event when it gets there."""
        self._do("cuEventRecord", _p(event), _p(stream))

    def wait(self, stream: int, event: int) -> None:
        """Let the stream wait until the event is marked; the CPU goes on."""
        self._do("cuStreamWaitEvent", _p(stream), _p(event), 0)

    def milliseconds(self, begin: int, end: int) -> float:
        """Time between two marked events."""
        return float(self._out("cuEventElapsedTime", ctypes.c_float(), _p(begin), _p(end)))

    def begin_capture(self, stream: int) -> None:
        """Note what the stream is given from here on, instead of doing it."""
        self._do("cuStreamBeginCapture_v2", _p(stream), RELAXED)

    def end_capture(self, stream: int) -> int:
        """The graph of what was noted, ready to be launched."""
        graph = ctypes.c_void_p()
        self._do("cuStreamEndCapture", _p(stream), ctypes.byref(graph))
        ready = ctypes.c_void_p()
        self._do("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        self._do("cuGraphDestroy", graph)
        return int(ready.value or 0)

    def launch(self, graph: int, stream: int) -> None:
        """Do what a graph holds."""
        self._do("cuGraphLaunch", _p(graph), _p(stream))

    def destroy(self, graph: int) -> None:
        """Let a launched graph go."""
        self._do("cuGraphExecDestroy", _p(graph))

    def destroy_stream(self, stream: int) -> None:
        """Let a stream go."""
        self._do("cuStreamDestroy_v2", _p(stream))

    def destroy_event(self, event: int) -> None:
        """Let an event go."""
        self._do("cuEventDestroy_v2", _p(event))

    def _do(self, call: str, *arguments: Any) -> None:
        code = getattr(self._library, call)(*arguments)
        if code:
            raise CudaError(f"CUDA: {call} failed with {self._error(code)}.")

    def _out(self, call: str, value: Any, *arguments: Any) -> Any:
        self._do(call, ctypes.byref(value), *arguments)
        return value.value

    def _pointer(self, call: str, *arguments: Any) -> int:
        value = ctypes.c_void_p()
        self._do(call, ctypes.byref(value), *arguments)
        return int(value.value or 0)

    def _error(self, code: int) -> str:
        text = ctypes.c_char_p()
        known = self._library.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value
        return f"{text.value.decode()} ({code})" if known and text.value else f"error {code}"


def load() -> Any:
    """libcuda; CudaError where no driver is installed."""
    for name in NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudaError(f"CUDA: no NVIDIA driver is installed here ({', '.join(NAMES)} not found).")


def gpu(index: int = 0) -> Cuda | None:
    """GPU `index`, or None where there is no driver or no GPU."""
    try:
        return Cuda(index)
    except CudaError:
        return None


def _p(value: int) -> Any:
    return ctypes.c_void_p(value)
