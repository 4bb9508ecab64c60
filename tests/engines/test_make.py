"""Engines for SM 8.0 to 12.0, built by TensorRT-RTX without a GPU: what is in the plan, the record, and every failure."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from onnx import helper
from support.engines import half_file, installed, int8_file, order, save

from optimize.configs import digest
from optimize.engines.libraries import gpu_sm
from optimize.engines.make import BASE_BYTES, make
from optimize.engines.profiles import plan_profiles
from optimize.errors import EnvironmentLacks, OptimizeError, UserError
from optimize.storage.commit import commit


@installed
@pytest.mark.parametrize("sm", [(8, 0), (8, 6), (8, 9), (12, 0)])
def test_an_int8_engine_keeps_its_int8_layers_on_every_target(tmp_path: Path, sm: tuple[int, int]) -> None:
    record = make(order(int8_file(tmp_path / "m.onnx"), sm), tmp_path)
    assert record["expected"] == {"conv fp32": 1, "conv int8": 2} and record["found"] == record["expected"]
    assert record["problems"] == [] and record["sm"] == f"{sm[0]}.{sm[1]}" and record["targets"] == [f"{sm[0]}.{sm[1]}"]
    assert record["plan_bytes"] == (tmp_path / "model.engine").stat().st_size > 1000
    assert record["peak_memory_bytes"] > 10**8 and record["seconds"] > 0
    assert json.loads((tmp_path / "engine.json").read_text()) == record
    assert record["profiles"] == [{"x": {"min": [1, 4, 8, 8], "opt": [4, 4, 8, 8], "max": [4, 4, 8, 8]}}]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["engine.json", "m.onnx", "model.engine"]


@installed
def test_an_fp16_engine_computes_nothing_in_fp32(tmp_path: Path) -> None:
    record = make(order(half_file(tmp_path / "m.onnx")), tmp_path)
    assert record["found"] == {"conv fp16": 1} == record["expected"]


@installed
def test_an_engine_with_several_profiles_is_judged_by_its_layers_and_not_by_their_copies(tmp_path: Path) -> None:
    asked = order(int8_file(tmp_path / "m.onnx"))
    exact = replace(asked, profiles=plan_profiles(asked.facts.inputs, {"B": (1, 4)}, exact=True))
    record = make(exact, tmp_path)
    assert len(record["profiles"]) == 3 and record["found"] == record["expected"] == {"conv fp32": 1, "conv int8": 2}


@installed
def test_flags_that_work_without_a_gpu_do(tmp_path: Path) -> None:
    flags = ("refit_individual", "stream_weights", "sparse_weights")
    record = make(order(half_file(tmp_path / "m.onnx"), flags=flags), tmp_path)
    assert record["flags"] == sorted(flags)


@installed
def test_the_key_is_of_the_content_and_of_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, same = order(int8_file(tmp_path / "m.onnx")), order(int8_file(tmp_path / "other" / "m.onnx"))
    assert one.key == same.key == digest(one.content)
    others = [
        order(one.onnx, (8, 0)),
        order(one.onnx, batch=(1, 8)),
        order(one.onnx, level=1),
        order(one.onnx, flags=("stream_weights",)),
        order(one.onnx, tf32=True),
        replace(one, version="1.6"),
        replace(one, module="tensorrt"),
        order(half_file(tmp_path / "m.onnx")),
    ]
    assert len({one.key, *(o.key for o in others)}) == 9


def test_an_engine_whose_kernels_were_timed_is_of_the_very_card_and_one_of_tensorrt_rtx_of_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = order(half_file(tmp_path / "m.onnx"))
    keys: dict[str, list[str]] = {"tensorrt": [], "tensorrt_rtx": []}
    for card in ("NVIDIA A10", "NVIDIA GeForce RTX 3090", "NVIDIA A10"):  # both are of SM 8.6
        monkeypatch.setattr("optimize.engines.libraries.gpu_name", lambda card=card: card)
        for module, found in keys.items():
            found.append(replace(one, module=module).key)
    first, other, again = keys["tensorrt"]
    assert first == again != other and len(set(keys["tensorrt_rtx"])) == 1


@installed
def test_what_tensorrt_does_not_take_is_quoted_with_its_node(tmp_path: Path) -> None:
    nodes = [helper.make_node("Det", ["x"], ["y"], name="strange")]
    path = save(tmp_path / "m.onnx", nodes, {}, out=("B", 4))
    with pytest.raises(UserError, match=r"engine 8\.6-tensorrt_rtx.*does not take m\.onnx: .*Det"):
        make(order(path), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@installed
def test_an_engine_that_lost_its_precision_is_an_error_or_a_warning_in_the_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked = order(int8_file(tmp_path / "m.onnx"))
    wrong = replace(asked, facts=replace(asked.facts, layers={("Conv", "int8"): 3}))
    with pytest.raises(
        OptimizeError,
        match=r"3 convolutions of the graph are int8, the engine computes 2.*precision_lost: warn .--precision-lost warn. keeps",
    ):
        make(wrong, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    record = make(replace(wrong, settings=wrong.settings.model_copy(update={"precision_lost": "warn"})), tmp_path)
    assert record["problems"] and record["problems"][0] in caplog.text


@installed
def test_a_build_that_takes_too_much_memory_is_stopped_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = order(int8_file(tmp_path / "m.onnx"), memory_gb=0.03)
    with pytest.raises(EnvironmentLacks, match=r"estimated to take .* and 0\.0 GB may be taken"):
        make(asked, tmp_path)
    monkeypatch.setattr("optimize.engines.memory.check", lambda *rest: None)
    with pytest.raises(EnvironmentLacks, match=r"took more memory than it may.*nothing was written"):
        make(asked, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_without_a_limit_a_build_may_take_what_the_control_group_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimize.engines.make.available", lambda: 10**8)
    with pytest.raises(EnvironmentLacks, match=r"estimated to take 0\.7 GB, and 0\.1 GB may be taken here"):
        make(order(half_file(tmp_path / "m.onnx")), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@installed
def test_a_build_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentLacks,
        match=r"not done after 0.0001 minutes and stopped; nothing was written. Raise minutes .--minutes., or",
    ):
        make(order(int8_file(tmp_path / "m.onnx"), minutes=0.0001), tmp_path)


@installed
def test_a_failed_build_leaves_the_folder_it_was_for_as_it_was(tmp_path: Path) -> None:
    folder, path = tmp_path / "kept", int8_file(tmp_path / "m.onnx")

    def good(temporary: Path) -> dict[str, Any]:
        return make(order(path), temporary)

    def bad(temporary: Path) -> dict[str, Any]:
        return make(order(path, minutes=0.0001), temporary)

    commit(folder, good)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(EnvironmentLacks):
        commit(folder, bad)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept", "m.onnx"]


def test_the_estimate_grows_with_the_weights_and_the_profiles(tmp_path: Path) -> None:
    asked = order(half_file(tmp_path / "m.onnx"))
    large = replace(asked, facts=replace(asked.facts, weight_bytes=1_720_000_000))
    assert asked.estimate == pytest.approx(BASE_BYTES, rel=0.01)
    assert 6.1e9 < large.estimate < 7.5e9  # 6.1 GB were measured
    three = replace(large, profiles=large.profiles * 3)
    assert 7.36e9 < three.estimate < 9.0e9  # 7.36 GB were measured


def test_refusals_come_before_any_build(tmp_path: Path) -> None:
    if gpu_sm() is not None:
        pytest.skip("a GPU is here")
    with pytest.raises(UserError, match=r"SM 9.0: TensorRT-RTX cannot target it"):
        make(order(half_file(tmp_path / "m.onnx"), (9, 0)), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
