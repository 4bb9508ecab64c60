"""The TensorRT runners: which engine is taken, what is refused before deserializing, and calls through a fake module."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.engines import PROFILE, job
from support.fake_trt import FakeCuda, FakeTrt

from optimize.diffusion.backend import open_runner
from optimize.diffusion.network import Network
from optimize.engines.builder import build
from optimize.engines.cuda import CudaError
from optimize.errors import ArtifactError, EnvironmentLacks, UserError
from optimize.storage.commit import commit, write_json
from optimize.storage.trust import verify
from optimize.storage.weights import file_sha256


def artifact(folder: Path, *engines: dict[str, Any], plan: bytes | None = None) -> Path:
    """An artifact with an engine for each record."""
    trt = FakeTrt()
    made = build(trt, job(profiles=[PROFILE]))[0] if plan is None else plan

    def write(temporary: Path) -> dict[str, Any]:
        for about in engines:
            about = {"module": "tensorrt", "version": "11.4.0", "sm": "8.6", "flags": [], **about}
            about = {"hardware_compatible": False, "key": "k", "profiles": [], "problems": [], **about}
            place = temporary / "tensorrt" / f"{about['sm']}-{about['module']}-{about['version']}"
            place.mkdir(parents=True)
            (place / "model.engine").write_bytes(made)
            sha = {"sha256": file_sha256(place / "model.engine"), "plan_bytes": len(made)}
            write_json(
                place / "engine.json",
                about | sha | {"expected": {"conv fp16": 1}, "found": {"conv int8": 2, "conv fp16": 1}},
            )
        return {"id": "x"}

    commit(folder, write)
    return folder


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> FakeTrt:
    """A machine with an SM 8.6 GPU and TensorRT 11.4."""
    trt = FakeTrt()
    monkeypatch.setattr("optimize.engines.libraries.found_version", lambda module: "11.4.0")
    monkeypatch.setattr("optimize.engines.libraries.load_module", lambda module: trt)
    monkeypatch.setattr("optimize.engines.cuda.Cuda", FakeCuda)
    return trt


@pytest.mark.parametrize("graphs", [False, True])
def test_a_runner_is_a_network(here: FakeTrt, tmp_path: Path, graphs: bool) -> None:
    folder = artifact(tmp_path / "a", {}, {"sm": "8.0"})
    with open_runner(folder, "tensorrt", cuda_graphs=graphs) as runner:
        assert isinstance(runner, Network) and runner.inputs[0].dims == ("B", 1, 4, 4)
        sample = torch.arange(32.0).reshape(2, 1, 4, 4)
        kept = runner(sample=sample, timestep=torch.zeros(2))
        runner(sample=sample * 0, timestep=torch.zeros(2))
        about = runner.describe()
    assert torch.equal(kept, sample + 1) and kept.dtype == torch.float32
    assert about["precision"] == "fp16+int8" and about["gpu"]["sm"] == "8.6" and about["cuda_graphs"] is graphs
    json.dumps(about)
    with pytest.raises(RuntimeError, match="was closed"):
        runner(sample=sample, timestep=torch.zeros(2))
    assert not FakeCuda.now.memory_held


def test_the_size_of_what_is_loaded_is_the_engines_and_not_the_onnx_files(here: FakeTrt, tmp_path: Path) -> None:
    from optimize.measure import worker
    from optimize.runs import summary

    folder = with_onnx(tmp_path / "a")
    plan = next(folder.glob("tensorrt/*/model.engine")).stat().st_size
    with open_runner(folder, "tensorrt") as runner:
        about = runner.describe()
    assert worker._on_disk(folder, "tensorrt", about) == ("x", {"file_bytes": plan})
    onnx = (folder / "onnx" / "model.onnx").stat().st_size
    assert worker._on_disk(folder, "onnxruntime", {}) == ("x", {"file_bytes": onnx}) and onnx != plan
    parity = {"tensorrt": {"runner": about}, "onnxruntime": {"runner": {}}, "openvino": {"refused": "not here"}}
    variant: Any = SimpleNamespace(parity=parity, artifact=SimpleNamespace(manifest=verify(folder)))
    assert [summary._size(variant, spec) for spec in parity] == [plan, onnx, onnx]


def test_a_shape_outside_every_profile_is_one_error(here: FakeTrt, tmp_path: Path) -> None:
    with open_runner(artifact(tmp_path / "a", {}), "tensorrt") as runner, pytest.raises(UserError) as caught:
        runner(sample=torch.zeros(17, 1, 4, 4), timestep=torch.zeros(17))
    assert "outside every profile" in str(caught.value) and "profile 0: sample [1, 1, 4, 4] to" in str(caught.value)


@pytest.mark.parametrize("record", [{"sm": "8.0"}, {"version": "11.3.0"}, {"version": "10.4.0"}])
def test_an_engine_of_another_gpu_or_version_is_refused_before_it_is_deserialized(
    here: FakeTrt, tmp_path: Path, record: dict[str, Any]
) -> None:
    with pytest.raises(
        EnvironmentLacks, match=r"engines are for SM 8\.[06] by tensorrt .*here is SM 8\.6 with tensorrt 11\.4\.0"
    ):
        open_runner(artifact(tmp_path / "a", record), "tensorrt")
    assert FakeTrt.now.deserialized == 0


def test_compatible_engines_run_on_what_they_are_compatible_with(here: FakeTrt, tmp_path: Path) -> None:
    for number, record in enumerate(
        ({"sm": "8.0", "hardware_compatible": True}, {"version": "11.2.0", "flags": ["version_compatible"]})
    ):
        with open_runner(artifact(tmp_path / str(number), record), "tensorrt") as runner:
            assert runner.describe()["engine"]["key"] == "k"
    with open_runner(artifact(tmp_path / "any", {"sm": "8.0"}), "tensorrt", any_gpu=True) as runner:
        assert runner.describe()["engine"]["sm"] == "8.0"


def with_onnx(folder: Path, **record: Any) -> Path:
    """An artifact with an engine and the ONNX file that it names."""
    model = tiny_onnx(folder.with_suffix(".onnx"))
    given = {"onnx": {"model.onnx": file_sha256(model)}, **record}

    def write(temporary: Path) -> dict[str, Any]:
        shutil.copytree(artifact(folder.with_suffix(".engine"), given) / "tensorrt", temporary / "tensorrt")
        (temporary / "onnx").mkdir()
        shutil.copy(model, temporary / "onnx" / "model.onnx")
        return {"id": "x"}

    commit(folder, write)
    return folder


def tiny_onnx(path: Path) -> Path:
    """y = x + 1."""
    from onnx import TensorProto, helper, save

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    one = helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0])
    save(
        helper.make_model(helper.make_graph([helper.make_node("Add", ["x", "one"], ["y"])], "g", [x], [y], [one])), path
    )
    return path


def test_an_engine_without_weights_gets_them_from_the_file_it_was_built_from(here: FakeTrt, tmp_path: Path) -> None:
    folder = with_onnx(tmp_path / "a", flags=["strip_weights"])
    with open_runner(folder, "tensorrt") as runner:
        assert runner(sample=torch.zeros(1, 1, 4, 4), timestep=torch.zeros(1)).shape == (1, 1, 4, 4)
    assert FakeTrt.now.engines[0].weights == str(folder / "onnx" / "model.onnx")
    with open_runner(with_onnx(tmp_path / "b"), "tensorrt"):
        assert FakeTrt.now.engines[-1].weights == ""


def test_an_engine_without_weights_gets_none_of_another_file(here: FakeTrt, tmp_path: Path) -> None:
    folder = with_onnx(tmp_path / "a", flags=["strip_weights"], onnx={"model.onnx": "0" * 64})
    with pytest.raises(ArtifactError, match=r"it holds no weights, and model\.onnx is not the file it was built from"):
        open_runner(folder, "tensorrt")
    assert FakeTrt.now.deserialized == 0


def test_streamed_weights_stay_on_the_gpu_as_far_as_the_option_says(here: FakeTrt, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a", {"flags": ["stream_weights"]})
    for asked, kept in ((None, 600), (2e-7, 200), (0, 0)):
        FakeTrt.now.contexts.clear()
        with open_runner(folder, "tensorrt", weights_gb=asked) as runner:
            assert runner.describe()["resident_weight_bytes"] == kept
    with pytest.raises(
        UserError, match=r"weights_gb 2 given, and the engine was built to keep all weights.*Build it with"
    ):
        open_runner(artifact(tmp_path / "b", {}), "tensorrt", weights_gb=2.0)


def test_bytes_that_are_not_the_manifests_are_never_deserialized(here: FakeTrt, tmp_path: Path) -> None:
    for name in ("model.engine", "engine.json"):
        folder = artifact(tmp_path / name, {})
        file = next(folder.rglob(name))
        file.write_bytes(file.read_bytes() + b" ")
        with pytest.raises(ArtifactError, match=rf"tensorrt/.*{name} is changed: expected sha256 .* It is not read"):
            open_runner(folder, "tensorrt")
    assert FakeTrt.now.deserialized == 0


def test_an_engine_beside_the_manifest_is_not_read(here: FakeTrt, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "a", {})
    place = next((folder / "tensorrt").iterdir())
    place.rename(place.with_name("8.9-tensorrt-11.4.0"))
    with pytest.raises(ArtifactError, match=r"engine\.json is missing: expected sha256"):
        open_runner(folder, "tensorrt")
    assert FakeTrt.now.deserialized == 0


def test_a_gpu_without_enough_memory_is_one_error_and_smaller_batches_still_run(
    here: FakeTrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(self: FakeCuda, size: int, given: Any = FakeCuda.allocate) -> int:
        if size > 100:
            raise CudaError("CUDA: cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY (2).")
        return int(given(self, size))

    monkeypatch.setattr(FakeCuda, "allocate", allocate)
    with open_runner(artifact(tmp_path / "a", {}), "tensorrt") as runner:
        with pytest.raises(EnvironmentLacks, match=r"memory is not enough: CUDA: cuMemAlloc_v2 .* Use a smaller batch"):
            runner(sample=torch.zeros(8, 1, 4, 4), timestep=torch.zeros(8))
        assert runner(sample=torch.zeros(1, 1, 4, 4), timestep=torch.zeros(1)).shape == (1, 1, 4, 4)
    monkeypatch.setattr(FakeTrt, "nptype", lambda *a: (_ for _ in ()).throw(CudaError("CUDA: out of memory")))
    with pytest.raises(EnvironmentLacks, match="memory is not enough"):
        open_runner(artifact(tmp_path / "b", {}), "tensorrt")


def test_a_plan_that_tensorrt_does_not_load_is_one_error(here: FakeTrt, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model\.engine: .*magicTag does not match Build it again"):
        open_runner(artifact(tmp_path / "a", {}, plan=b"{half"), "tensorrt")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactError, match=r"no engine of TensorRT-RTX\. Build one first: optimize export"):
        open_runner(artifact(tmp_path / "a", {}), "tensorrt_rtx")
    monkeypatch.setattr("optimize.engines.libraries.found_version", lambda module: "11.4.0")
    monkeypatch.setattr("optimize.engines.cuda.NAMES", ("libsurely-not-there.so",))
    with pytest.raises(EnvironmentLacks, match=r"no NVIDIA driver is installed here.*Engines run on NVIDIA GPUs alone"):
        open_runner(artifact(tmp_path / "b", {}), "tensorrt")


def test_a_missing_module_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimize.engines.libraries.found_version", lambda module: None)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(EnvironmentLacks, match="pip install tensorrt"):
        open_runner(artifact(tmp_path / "a", {}), "tensorrt")


def test_device_tensors_want_a_torch_that_sees_the_gpu(here: FakeTrt, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU here")
    with pytest.raises(EnvironmentLacks, match="io device takes torch's CUDA tensors"):
        open_runner(artifact(tmp_path / "a", {}), "tensorrt", io="device")
