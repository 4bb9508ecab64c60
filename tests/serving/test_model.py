"""Triton's Python model with a server made up here: one batch an execution, and an error that leaves the others alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from optimize.architectures.artifact import sampler_json
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.exporters.onnx import Onnx
from optimize.serving import _model
from optimize.serving._loop import Loop


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


class Response:
    def __init__(self, output_tensors: list[Tensor], error: Any = None) -> None:
        self.outputs, self.error = {t.name: t.array for t in output_tensors}, error


class Backend(SimpleNamespace):
    Tensor, InferenceResponse, TritonError = Tensor, Response, str

    @staticmethod
    def get_input_tensor_by_name(request: dict[str, Any], name: str) -> Tensor | None:
        return Tensor(name, np.array(request[name]).reshape(-1, 1)) if name in request else None


@pytest.fixture
def served(tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _model.TritonPythonModel:
    """The model of a real ONNX file, as Triton would start it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", Backend())
    Onnx().export(tiny_model, tmp_path, Context())
    (tmp_path / "onnx").rename(tmp_path / "1")
    (tmp_path / "1" / "sampler.json").write_text(json.dumps(sampler_json(tiny_model)))
    options = {"over": "session", "device": "cpu", "threads": "1", "latents": "sample", "time": "timestep"}
    config = {"parameters": {k: {"string_value": v} for k, v in (options | {"pixels": "yes"}).items()}}
    made = _model.TritonPythonModel()
    made.initialize({"model_repository": str(tmp_path), "model_version": "1", "model_config": json.dumps(config)})
    return made


def counted(model: _model.TritonPythonModel) -> list[int]:
    """Batch sizes the network is called with from now on."""
    inner: Loop = model.loop
    network, calls = inner._network, []

    def call(feed: dict[str, np.ndarray]) -> np.ndarray:
        calls.append(len(feed["sample"]))
        return network(feed)

    inner._network = call
    return calls


def test_requests_of_an_execution_are_one_batch_and_get_their_own_images(served: _model.TritonPythonModel) -> None:
    calls = counted(served)
    answers = served.execute([{"seed": [5]}, {"seed": [1, 2]}, {"seed": [9], "label": [3]}])
    assert calls == [8] * 4  # four samples and their unconditional twins, four steps
    assert [a.outputs["images"].shape[0] for a in answers] == [1, 2, 1]
    alone = served.execute([{"seed": [2]}])[0].outputs["images"]
    assert np.allclose(answers[1].outputs["images"][1:], alone, atol=1e-5)
    assert not np.allclose(answers[0].outputs["images"], alone, atol=1e-2)


def test_pixels_are_the_images_as_bytes(served: _model.TritonPythonModel) -> None:
    out = served.execute([{"seed": [5, 6]}])[0].outputs
    assert out["pixels"].dtype == np.uint8 and out["pixels"].shape == (2, 16, 16, 1)
    back = out["pixels"].astype(np.float64).transpose(0, 3, 1, 2) / 127.5 - 1
    assert np.abs(back - out["images"]).max() <= 0.5 / 127.5 + 1e-6
    assert out["images"].flags.c_contiguous and out["pixels"].flags.c_contiguous


def test_a_bad_request_gets_an_error_and_the_others_their_images(served: _model.TritonPythonModel) -> None:
    good, bad, label, last = served.execute(
        [{"seed": [5]}, {"seed": [-3]}, {"seed": [4], "label": [10]}, {"seed": [6], "guidance": [0.0]}]
    )
    assert "seed: -3 given" in bad.error and "label: 10 given" in label.error
    assert good.error is None and good.outputs["images"].shape == (1, 1, 16, 16)
    assert np.array_equal(served.execute([{"seed": [5]}])[0].outputs["images"], good.outputs["images"])
    assert last.outputs["images"].shape == (1, 1, 16, 16)
    assert served.execute([{"seed": [-1]}])[0].error


def test_a_request_without_seeds_or_with_other_counts_is_refused_alone(served: _model.TritonPythonModel) -> None:
    """The server lets a request without its one obligatory input pass where others are optional."""
    none, uneven, good = served.execute([{"label": [3]}, {"seed": [1, 2], "label": [3]}, {"seed": [5]}])
    assert "seed: this model draws from seeds; give one an image" in none.error
    assert "label: 1 given for 2 seeds; give one each" in uneven.error
    assert good.error is None and good.outputs["images"].shape == (1, 1, 16, 16)


def test_images_that_are_not_finite_are_an_error_of_their_request(served: _model.TritonPythonModel) -> None:
    inner = served.loop._network

    def call(feed: dict[str, np.ndarray]) -> np.ndarray:
        raw = np.array(inner(feed))
        raw[feed["class_labels"] == 7] = np.nan
        return raw

    served.loop._network = call
    bad, good = served.execute([{"seed": [7]}, {"seed": [5]}])
    assert "the network's output is not finite" in bad.error
    assert good.error is None and np.isfinite(good.outputs["images"]).all()


def test_what_the_runtime_refuses_is_told_to_its_requests(served: _model.TritonPythonModel) -> None:
    def call(feed: dict[str, np.ndarray]) -> np.ndarray:
        raise RuntimeError("no memory")

    served.loop._network = call
    assert [a.error for a in served.execute([{"seed": [7]}, {"seed": [5]}])] == ["RuntimeError: no memory"] * 2


def test_falling_back_to_the_cpu_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *a, **k: session)
    with pytest.raises(RuntimeError, match="computes with CPUExecutionProvider, not with CUDAExecutionProvider"):
        _model.network(tmp_path / "model.onnx", "cuda", 0, 0)


class Exec(SimpleNamespace):
    """A request to another model of the server: adds 1, or fails."""

    def exec(self) -> Any:
        assert self.preferred_memory == ("cpu", 0) and self.requested_output_names == ["y"]
        sizes.append(len(self.inputs[0].array))
        shapes = [t.array.shape[1:] for t in self.inputs]
        bad = self.model_name != "net" or shapes != [(2,), (1,)]
        error = SimpleNamespace(message=lambda: "no such model")
        return SimpleNamespace(has_error=lambda: bad, error=lambda: error, out=self.inputs[0].array + 1)


sizes: list[int] = []


@pytest.mark.parametrize("latents", ["sample", "hidden_states"])  # of U-Nets and of transformers
def test_a_network_of_the_server_is_called_in_parts_and_its_error_is_named(
    latents: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = Backend(
        InferenceRequest=Exec,
        PreferredMemory=lambda kind, device: (kind, device),
        TRITONSERVER_MEMORY_CPU="cpu",
        TritonModelException=RuntimeError,
        get_output_tensor_by_name=lambda response, name: Tensor(name, response.out),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    sizes.clear()
    feed = {latents: np.arange(10.0).reshape(5, 2), "timestep": np.arange(5.0)}
    assert np.array_equal(_model.called("net", "y", 2)(feed), feed[latents] + 1)
    assert sizes == [2, 2, 1]
    with pytest.raises(RuntimeError, match="other: no such model"):
        _model.called("other", "y", 2)(feed)
