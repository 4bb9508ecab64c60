"""An engine's session over a fake TensorRT and driver: the right bytes at the right addresses, in the right order."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.engines import PROFILE, job
from support.fake_trt import FakeCuda, FakeTrt, RuntimeConfig, view

from optimize.engines.builder import EngineError, build
from optimize.engines.cuda import Cuda, CudaError
from optimize.engines.session import Session, choose

SMALL = {"sample": [[1, 1, 4, 4]] * 3, "timestep": [[1]] * 3}


def feed(batch: int) -> dict[str, np.ndarray]:
    return {"sample": np.arange(batch * 16, dtype=np.float32).reshape(batch, 1, 4, 4), "timestep": np.ones(batch, "f4")}


def session(graphs: bool = False, module: str = "tensorrt", **about: Any) -> Session:
    trt = FakeTrt(module)
    flags = list(about.get("flags", ()))
    return Session(trt, build(trt, job(profiles=[PROFILE, SMALL], flags=flags))[0], FakeCuda(), graphs, **about)


@pytest.mark.parametrize("graphs", [False, True])
def test_host_arrays_go_in_and_a_new_array_comes_out(graphs: bool) -> None:
    made = session(graphs)
    for batch in (1, 3, 1, 3):
        given = feed(batch)
        first = made.run(given)
        again = made.run({n: a * 2 for n, a in given.items()})
        assert np.array_equal(first, given["sample"] + 1) and np.array_equal(again, given["sample"] * 2 + 1)
    assert len(FakeTrt.now.contexts) == 2  # one for each batch size, used again


def test_a_graph_is_captured_once_and_then_only_launched() -> None:
    made = session(graphs=True)
    for _ in range(3):
        made.run(feed(2))
    assert FakeCuda.now.log.count("launch") == 3 and len(FakeCuda.now.graphs) == 1
    made.close()
    assert not FakeCuda.now.graphs and not FakeCuda.now.memory_held


@pytest.mark.parametrize("graphs", [False, True])
def test_tensors_on_the_gpu_are_read_and_written_where_they_lie(graphs: bool) -> None:
    made, cuda = session(graphs), FakeCuda.now
    given = feed(2)
    places = {n: cuda.allocate(a.nbytes) for n, a in given.items()}
    output = cuda.allocate(given["sample"].nbytes)
    for factor in (1, 5):
        for name, array in given.items():
            scaled = np.ascontiguousarray(array * factor)
            ctypes.memmove(places[name], scaled.ctypes.data, scaled.nbytes)
        made.run_on_gpu(places, {n: a.shape for n, a in given.items()}, output, stream=3)
        assert np.array_equal(view(output, (2, 1, 4, 4)), given["sample"] * factor + 1)


@pytest.mark.parametrize("graphs", [False, True])
def test_work_for_a_callers_stream_is_done_on_the_sessions_own_between_two_events(graphs: bool) -> None:
    made, cuda = session(graphs), FakeCuda.now
    given = feed(1)
    places = {n: cuda.allocate(a.nbytes) for n, a in given.items()}
    output = cuda.allocate(given["sample"].nbytes)
    for _ in range(2):
        cuda.log.clear()
        made.run_on_gpu(places, {n: a.shape for n, a in given.items()}, output, stream=0)
    said = [line for line in cuda.log if " on " in line]
    assert said[:2] == ["record on 0", "wait on 7"] and said[-2:] == ["record on 7", "wait on 0"]
    assert "enqueue on 0" not in said and made.stream == 7


def test_a_graph_that_cannot_be_captured_is_one_error_and_leaves_no_capture_open() -> None:
    made = session(graphs=True)
    FakeTrt.now.fails_in_capture = True
    with pytest.raises(EngineError, match="did not run the engine: cannot be captured"):
        made.run(feed(1))
    assert not FakeCuda.now.capturing and not FakeCuda.now.graphs
    made.close()


@pytest.mark.parametrize("graphs", [False, True])
def test_tensorrt_rtx_compiles_at_once_and_captures_its_graphs_itself(graphs: bool) -> None:
    made = session(graphs, "tensorrt_rtx")
    for factor in (1, 3):
        given = {n: a * factor for n, a in feed(2).items()}
        assert np.array_equal(made.run(given), given["sample"] + 1)
    made.run(feed(3))
    config, other = (c.config for c in FakeTrt.now.contexts)  # what is compiled for one is there for the next
    assert config is other and config.cache is not None
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert config.cuda_graph_strategy == ("whole" if graphs else "disabled")
    assert "launch" not in FakeCuda.now.log and not FakeCuda.now.graphs


def test_tensorrt_rtx_that_captures_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RuntimeConfig, "captures", False)
    with pytest.raises(
        EngineError, match=r"tensorrt_rtx .* does not capture CUDA graphs of this engine\. Run it without"
    ):
        session(True, "tensorrt_rtx").run(feed(1))


def test_code_for_the_cpu_is_run_for_version_compatible_engines_only() -> None:
    session(flags=["version_compatible"])
    plan = build(FakeTrt(), job(profiles=[PROFILE], flags=["version_compatible"]))[0]
    with pytest.raises(EngineError, match="plan contains host code"):
        Session(FakeTrt(), plan, FakeCuda())


@pytest.mark.parametrize(("asked", "kept"), [(None, 600), (0, 0), (250, 250), (10**9, 1000)])
def test_streamed_weights_stay_on_the_gpu_as_far_as_is_asked(asked: int | None, kept: int) -> None:
    made = session(flags=["stream_weights"], resident=asked)
    assert made.engine.weight_streaming_budget_v2 == kept == made.resident
    assert session(resident=asked).resident is None and FakeTrt.now.engines[0].weight_streaming_budget_v2 == 1000


def test_a_budget_that_is_not_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTrt()
    trt.streams = False
    plan = build(trt, job(profiles=[PROFILE], flags=["stream_weights"]))[0]
    with pytest.raises(EngineError, match="does not keep 300 bytes of streamed weights on the GPU"):
        Session(trt, plan, FakeCuda(), flags=["stream_weights"], resident=300)


def test_stripped_weights_come_back_from_the_onnx_file() -> None:
    session(flags=["strip_weights"], onnx="m.onnx")
    assert FakeTrt.now.engines[0].weights == "m.onnx"
    session()
    assert FakeTrt.now.engines[0].weights == ""


def test_weights_that_do_not_go_back_are_one_error_with_the_reason() -> None:
    trt = FakeTrt()
    plan = build(trt, job(profiles=[PROFILE], flags=["strip_weights"]))[0]
    trt.parser_errors = [SimpleNamespace(desc=lambda: "no weights w", node=lambda: 3)]
    with pytest.raises(EngineError, match=r"puts no weights of m\.onnx into the engine: node 3: no weights w"):
        Session(trt, plan, FakeCuda(), flags=["strip_weights"], onnx="m.onnx")
    trt.parser_errors, trt.refuses = [], "too few"
    with pytest.raises(EngineError, match=r"into the engine: it gave no reason"):
        Session(trt, plan, FakeCuda(), flags=["strip_weights"], onnx="m.onnx")


def test_the_nearest_fitting_profile_is_chosen() -> None:
    made = session()
    made.run(feed(1))
    made.run(feed(2))
    assert [c.profile for c in FakeTrt.now.contexts] == [1, 0]


def test_shapes_outside_every_profile_are_one_error_that_names_them_all() -> None:
    said = r"sample \[17, 1, 4, 4\].*outside every profile.*profile 0: sample \[1, 1, 4, 4\] to \[16, 1, 4, 4\].*profile 1: sample \[1, 1, 4, 4\]"
    with pytest.raises(EngineError, match=said):
        session().run(feed(17))
    with pytest.raises(EngineError, match="outside every profile"):
        choose([{"sample": ((1, 4), (1, 4), (2, 4))}], {"sample": (1, 4, 4)})


def test_a_tensor_that_numpy_has_no_type_for_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def nptype(self: FakeTrt, dtype: str) -> object:
        raise TypeError("Could not resolve TensorRT datatype to an equivalent numpy datatype.")

    monkeypatch.setattr(FakeTrt, "nptype", nptype)
    with pytest.raises(EngineError, match=r"sample is float32, which numpy has no type for\. Export .* in float32"):
        session()


def test_every_call_makes_the_gpu_current_first() -> None:
    made, cuda = session(), FakeCuda.now
    cuda.log.clear()
    made.run(feed(1))
    assert cuda.log[0] == "current"
    cuda.log.clear()
    made.close()
    assert cuda.log[0] == "current"


def test_memory_that_runs_out_halfway_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cuda = session(), FakeCuda.now
    given = cuda.allocate

    def allocate(size: int) -> int:
        if size > 100:
            raise CudaError("CUDA: cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY (2).")
        return given(size)

    monkeypatch.setattr(cuda, "allocate", allocate)
    with pytest.raises(CudaError, match="OUT_OF_MEMORY"):
        made.run(feed(8))
    assert not cuda.memory_held
    assert made.run(feed(1)).shape == (1, 1, 4, 4)  # what fits still runs


def test_a_truncated_plan_quotes_tensorrt() -> None:
    with pytest.raises(EngineError, match=r"tensorrt 11.4.0 does not load the engine: magicTag does not match"):
        Session(FakeTrt(), b"{half", FakeCuda())


class Library:
    """libcuda of a machine whose calls fail with a code, or succeed."""

    def __init__(self, fails: str = "") -> None:
        self.fails, self.calls = fails, []

    def __getattr__(self, name: str):  # type: ignore[no-untyped-def]
        def call(*arguments: object) -> int:
            self.calls.append((name, arguments))
            if name == "cuGetErrorName":
                arguments[1]._obj.value = b"CUDA_ERROR_NO_DEVICE"  # type: ignore[attr-defined]
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: 8, 76: 6}[arguments[1]]  # type: ignore[attr-defined,index]
            if name == "cuDriverGetVersion":
                arguments[0]._obj.value = 13020  # type: ignore[attr-defined]
            return 100 if name == self.fails else 0

        return call


def test_the_driver_is_asked_for_what_it_knows() -> None:
    device = Cuda(library=Library())
    assert device.sm() == (8, 6) and device.driver() == "13.2"


def test_streams_wait_for_events_and_events_are_let_go() -> None:
    library = Library()
    device = Cuda(library=library)
    device.wait(7, 9)
    device.destroy_event(9)
    assert [(name, [getattr(a, "value", a) for a in arguments]) for name, arguments in library.calls[-2:]] == [
        ("cuStreamWaitEvent", [7, 9, 0]),
        ("cuEventDestroy_v2", [9]),
    ]


def test_a_driver_that_refuses_is_quoted() -> None:
    with pytest.raises(CudaError, match=r"cuInit failed with CUDA_ERROR_NO_DEVICE \(100\)"):
        Cuda(library=Library("cuInit"))


def test_without_a_driver_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimize.engines.cuda.NAMES", ("libsurely-not-there.so",))
    with pytest.raises(CudaError, match="no NVIDIA driver is installed here"):
        Cuda()
