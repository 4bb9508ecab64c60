"""The builder over a module as a value: what it asks of TensorRT, and what it says when TensorRT refuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.engines import PROFILE, job
from support.fake_trt import FakeTrt

from optimize.engines.builder import EngineError, build


def test_networks_are_strongly_typed_on_10_and_without_the_flag_of_a_later_version() -> None:
    trt = FakeTrt(version="10.4.0")
    build(trt, job())
    assert trt.network_flags == 1 << 1
    trt = FakeTrt(version="12.0.0")
    trt.NetworkDefinitionCreationFlag = SimpleNamespace()
    build(trt, job())
    assert trt.network_flags == 0


def test_everything_asked_for_reaches_the_config() -> None:
    trt = FakeTrt()
    plan, facts = build(trt, job(flags=["stream_weights", "refit"], hardware_compatible=True, level=5))
    config = trt.config
    assert config.flags == {"WEIGHT_STREAMING", "REFIT"} and config.limits == {"workspace": 1000}
    assert config.builder_optimization_level == 5 and config.hardware_compatibility_level == "ampere+"
    assert config.profiles[0].shapes["sample"] == ((1, 1, 4, 4), (4, 1, 4, 4), (16, 1, 4, 4))
    assert plan and facts["layers"] == 7 and facts["timing_cache"] == "none"


def test_fp32_stays_fp32_unless_tf32_is_asked_for() -> None:
    trt = FakeTrt()
    build(trt, job(tf32=True))
    assert "TF32" in trt.config.flags
    build(trt, job())
    assert "TF32" not in trt.config.flags


def test_a_module_that_is_told_its_target_is_always_told_it() -> None:
    trt = FakeTrt("tensorrt_rtx", "1.7.1", targets={"SM86"})
    build(trt, job())
    assert trt.config.num_compute_capabilities == 1
    for sm in ([8, 0], [9, 0]):  # one refused by TensorRT, one without a name
        with pytest.raises(EngineError, match=rf"tensorrt_rtx 1.7.1 cannot build for SM {sm[0]}.{sm[1]}"):
            build(trt, job(sm=sm))


def test_the_parser_is_quoted_with_the_node_it_stopped_at() -> None:
    trt = FakeTrt()
    error = {"node": 3, "node_name": "Einsum_3", "node_operator": "Einsum", "desc": "not\n supported"}
    trt.parser_errors = [SimpleNamespace(**{k: lambda v=v: v for k, v in error.items()})]
    with pytest.raises(EngineError, match=r"does not take model.onnx: node Einsum_3 \(Einsum\): not supported"):
        build(trt, job())
    old = {"node": 3, "desc": "not supported"}  # before 10.0 names were not told
    trt.parser_errors = [SimpleNamespace(**{k: lambda v=v: v for k, v in old.items()})]
    with pytest.raises(EngineError, match=r"does not take model.onnx: node 3: not supported"):
        build(trt, job())


def test_a_build_without_a_plan_says_what_tensorrt_said_and_no_warnings() -> None:
    trt = FakeTrt()
    trt.refuses = "Error Code 2: OutOfMemory"
    with pytest.raises(EngineError, match=r"tensorrt 11.4.0 built no engine: Error Code 2: OutOfMemory$"):
        build(trt, job())


@pytest.mark.parametrize(
    ("profile", "said"),
    [
        ({"sampel": PROFILE["sample"]}, r"profile 0: the network has no input sampel; it has sample, timestep"),
        ({"timestep": [[4], [1], [16]]}, r"profile 0: timestep .*min <= opt <= max"),
    ],
)
def test_a_wrong_profile_is_named(profile: Any, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        build(FakeTrt(), job(profiles=[profile]))


def test_an_unknown_flag_of_the_module_is_named() -> None:
    with pytest.raises(EngineError, match=r"tensorrt 11.4.0 has no flag SPARSE_WEIGHTS \(sparse_weights\)"):
        build(FakeTrt(), job(flags=["sparse_weights"]))


def test_the_timing_cache_is_kept_and_one_of_another_version_replaced(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "t.cache"
    asked = job(timing_cache=str(path))
    assert build(FakeTrt(), asked)[1]["timing_cache"] == "empty"
    assert path.read_bytes() == b"kernels"
    assert build(FakeTrt(), asked)[1]["timing_cache"] == "used"
    path.write_bytes(b"of another version")
    assert build(FakeTrt(), asked)[1]["timing_cache"] == "new"
    assert [p.name for p in path.parent.iterdir()] == ["t.cache"]
