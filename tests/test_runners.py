"""Runners: the same numbers from every backend, honest descriptions, and errors that help."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch

from optimize.artifact import commit, save_model
from optimize.context import Context
from optimize.errors import ArtifactError, EnvironmentLacks, UserError
from optimize.exporters.onnx import Onnx
from optimize.model import Model
from optimize.network import Network, example_inputs
from optimize.parity import parity
from optimize.passes.quantize import Quantize
from optimize.runner import open_runner
from optimize.runners.openvino import chosen_precision
from optimize.runners.torch_compile import find_compiler
from optimize.sampling import Sampler
from optimize.sources.diffusers import DiffusersSource


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, Model]:
    plain = DiffusersSource(tiny_folder).load(Sampler(steps=2))
    return {"fp32": plain, "int8": Quantize(samples=8, batch=8).apply(plain, Context())[0]}


@pytest.fixture(scope="module")
def artifacts(models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    def write(folder: Path, model: Model) -> dict[str, Any]:
        save_model(folder, model)
        return {"id": "x", "export": Onnx().export(model, folder, Context())}

    root = tmp_path_factory.mktemp("artifacts")
    for name, model in models.items():
        commit(root / name, lambda t, m=model: write(t, m))
    return {name: root / name for name in models}


LIMITS = {"fp32": 1e-3, "int8": 5e-2}


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_a_runner_agrees_with_its_torch_network_at_every_noise_level(
    models: dict[str, Model], artifacts: dict[str, Path], kind: str, backend: str
) -> None:
    limit = 0.06 if (kind, backend) == ("int8", "onnxruntime") else LIMITS[kind]  # untrained: activations round by 5 %
    with open_runner(artifacts[kind], backend, threads=1) as runner:
        assert isinstance(runner, Network)
        found = parity(models[kind], runner, levels=6)
    assert all(level["relative_l2"] <= limit for level in found["levels"]), found


def test_as_is_runs_the_graph_as_the_file_says(models: dict[str, Model], artifacts: dict[str, Path]) -> None:
    with open_runner(artifacts["int8"], "onnxruntime", threads=1, int8="as_is") as runner:
        assert runner.describe()["lowered"] == []
        assert parity(models["int8"], runner, levels=4)["relative_l2"] < 5e-2


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_any_batch_size_runs_and_samples_do_not_depend_on_it(artifacts: dict[str, Path], backend: str) -> None:
    with open_runner(artifacts["fp32"], backend, threads=1) as runner:
        feed = example_inputs(runner.inputs, 5, classes=10)
        whole = runner(**feed)
        first = runner(**{k: v[:1] for k, v in feed.items()})
        kept = whole.clone()
        runner(**{k: v * 0 for k, v in feed.items()})
        large = runner(**{k: v[:1].expand(100, *v.shape[1:]) for k, v in feed.items()})
    assert large.shape[0] == 100 and torch.allclose(large, first.expand_as(large), atol=1e-4)
    assert whole.dtype == torch.float32 and whole.shape == (5, 1, 16, 16)
    assert torch.allclose(whole[:1], first, atol=1e-4)
    assert torch.equal(whole, kept)  # a result is the caller's own, not a buffer of the backend


def test_a_runner_samples_in_place_of_the_network(models: dict[str, Model], artifacts: dict[str, Path]) -> None:
    with open_runner(artifacts["fp32"], "openvino", threads=1) as runner:
        images = models["fp32"].with_network(runner).sample(range(3))
    assert torch.allclose(images, models["fp32"].sample(range(3)), atol=1e-3)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime", "openvino"])
def test_describe_says_what_runs_where(artifacts: dict[str, Path], backend: str) -> None:
    with open_runner(artifacts["int8"], backend, threads=1) as runner:
        about = runner.describe()
    assert about["backend"] == backend and about["version"] and about["threads"] == 1
    assert {"device", "precision", "lowered"} <= set(about)


def test_onnxruntime_says_that_it_widened_the_quantized_graph(artifacts: dict[str, Path]) -> None:
    with open_runner(artifacts["int8"], "onnxruntime", threads=1) as runner:
        assert "not rounded" in runner.describe()["lowered"][0]
    with open_runner(artifacts["fp32"], "onnxruntime", threads=1) as runner:
        assert runner.describe()["lowered"] == []


def test_openvino_really_runs_the_quantized_layers_in_int8(artifacts: dict[str, Path]) -> None:
    with open_runner(artifacts["int8"], "openvino", threads=1) as runner:
        runner(**example_inputs(runner.inputs, 2, classes=10))
        layers: list[dict[str, str]] = runner.executed(2)  # type: ignore[attr-defined]
    assert sum(x["type"] == "Convolution" and x["kernel"].endswith("I8") for x in layers) > 10, layers


class Core:
    """An OpenVINO core of a CPU with the given capabilities."""

    def __init__(self, *able: str) -> None:
        self.able = list(able)

    def get_property(self, device: str, name: str) -> Any:
        return self.able if name == "OPTIMIZATION_CAPABILITIES" else "Some CPU"


def test_bf16_is_taken_where_the_cpu_has_it_and_never_pretended() -> None:
    assert chosen_precision(Core("FP32", "BF16"), "bf16") == "bf16"
    assert chosen_precision(Core("FP32", "BF16"), "auto") == "bf16"
    assert chosen_precision(Core("FP32", "BF16"), "fp32") == "fp32"
    assert chosen_precision(Core("FP32"), "auto") == "fp32"
    with pytest.raises(EnvironmentLacks, match="Some CPU has no BF16"):
        chosen_precision(Core("FP32"), "bf16")


def test_a_closed_runner_says_so(artifacts: dict[str, Path]) -> None:
    with open_runner(artifacts["fp32"], "onnxruntime", threads=1) as runner:
        feed = example_inputs(runner.inputs, 1)
    with pytest.raises(RuntimeError, match="was closed"):
        runner(**feed)


def test_unknown_backends_and_options_are_named(artifacts: dict[str, Path]) -> None:
    with pytest.raises(UserError, match='Did you mean "openvino"'):
        open_runner(artifacts["fp32"], "openvin")
    with pytest.raises(UserError, match=r"thread.*Allowed options: threads"):
        open_runner(artifacts["fp32"], "openvino", thread=1)


def test_an_artifact_without_the_exported_file_is_refused(tmp_path: Path) -> None:
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(ArtifactError, match="Export the artifact first"):
            open_runner(tmp_path, backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_missing_backend_says_how_to_install_it(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any, **more: Any) -> Any:
        if name == backend:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(EnvironmentLacks, match=f"pip install {backend}"):
        open_runner(artifacts["fp32"], backend)


def test_a_provider_that_is_not_there_is_refused(artifacts: dict[str, Path]) -> None:
    with pytest.raises(EnvironmentLacks, match="NoSuchProvider is not in this build"):
        open_runner(artifacts["fp32"], "onnxruntime", provider="NoSuchProvider")


def test_compiling_without_a_compiler_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EnvironmentLacks, match="apt-get install g"):
        find_compiler()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_torch_compile_agrees_with_eager(models: dict[str, Model], artifacts: dict[str, Path], kind: str) -> None:
    with open_runner(artifacts[kind], "torch_compile", threads=1) as runner:
        assert parity(models[kind], runner, levels=3)["relative_l2"] <= LIMITS[kind]
