"""Runners: the same numbers from every backend, honest descriptions, and errors that help."""

from __future__ import annotations

import builtins
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optimize.architectures.artifact import save_model
from optimize.diffusion.backend import open_runner, spec_parts
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.network import Network, example_inputs
from optimize.diffusion.parity import parity
from optimize.diffusion.sampling import Sampler
from optimize.errors import ArtifactError, EnvironmentLacks, OptimizeError, UserError
from optimize.exporters.onnx import Onnx
from optimize.passes.quantize import Quantize
from optimize.runners._onnxruntime_cuda import PROVIDERS, BoundCalls, output_shape, provider_list, refuse_fallback
from optimize.runners.openvino import chosen_precision
from optimize.runners.torch_compile import TorchCompile, find_compiler
from optimize.sources.diffusers import DiffusersSource
from optimize.storage.commit import commit


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, Model]:
    plain = DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=2))
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


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_calls_inside_and_outside_inference_mode_may_follow_each_other(
    artifacts: dict[str, Path], backend: str
) -> None:
    with open_runner(artifacts["fp32"], backend, threads=1) as runner:
        feed = example_inputs(runner.inputs, 2, classes=10)
        with torch.inference_mode():
            inside = runner(**feed).clone()
        assert torch.equal(runner(**feed), inside) and torch.equal(runner(**feed), inside)


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


def test_onnxruntime_says_which_shapes_a_graph_takes(
    artifacts: dict[str, Path], models: dict[str, Model], capfd: pytest.CaptureFixture[str]
) -> None:
    feed = example_inputs(models["fp32"].inputs, 2)
    with open_runner(artifacts["fp32"], "onnxruntime", threads=1) as runner:
        with pytest.raises(UserError, match=r"given sample \[2, 1, 7, 16\].*allowed is sample \[B, 1, 16, 16\]"):
            runner(**{**feed, "sample": feed["sample"][:, :, :7]})
        assert runner(**feed).shape == (2, 1, 16, 16)  # and goes on
    assert "onnxruntime" not in capfd.readouterr().err


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
@pytest.mark.parametrize(("kind", "autotune"), [("fp32", False), ("int8", False), ("fp32", True)])
def test_torch_compile_agrees_with_eager(
    models: dict[str, Model], artifacts: dict[str, Path], kind: str, autotune: bool
) -> None:
    with open_runner(artifacts[kind], "torch_compile", threads=1, autotune=autotune) as runner:
        assert parity(models[kind], runner, levels=3)["relative_l2"] <= LIMITS[kind]


MODES = [(False, False, "default"), (False, True, "reduce-overhead")]
MODES += [(True, False, "max-autotune-no-cudagraphs"), (True, True, "max-autotune")]


@pytest.mark.parametrize(("autotune", "graphs", "mode"), MODES)
def test_autotune_and_cuda_graphs_choose_inductors_mode(autotune: bool, graphs: bool, mode: str) -> None:
    from torch._inductor import list_mode_options

    assert TorchCompile(autotune=autotune, cuda_graphs=graphs, device="cuda").mode == mode
    assert mode == "default" or mode in list_mode_options()
    told = {} if mode == "default" else list_mode_options()[mode]
    assert told.get("max_autotune", False) is autotune and told.get("triton.cudagraphs", False) is graphs


@pytest.mark.parametrize(("autotune", "mode"), [(False, "default"), (True, "max-autotune-no-cudagraphs")])
def test_the_mode_asked_for_is_the_one_that_is_compiled_with_and_described(
    artifacts: dict[str, Path], autotune: bool, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def compile(module: Any, **options: Any) -> Any:
        asked.append(options)
        return module

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("optimize.runners.torch_compile.find_compiler", lambda: "g++")
    with open_runner(artifacts["fp32"], "torch_compile", threads=1, autotune=autotune) as runner:
        assert runner.describe()["mode"] == mode
    assert asked == [{"dynamic": False, "mode": mode}]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_eager_torch_casts_the_module_and_gives_float32_back(
    models: dict[str, Model], artifacts: dict[str, Path], precision: str
) -> None:
    with open_runner(artifacts["fp32"], "torch", threads=1, precision=precision) as runner:
        feed = example_inputs(runner.inputs, 2, classes=10)
        assert runner(**feed).dtype == torch.float32
        found = parity(models["fp32"], runner, levels=3)
        assert runner.describe()["precision"] == precision
    assert 1e-5 < found["relative_l2"] < 5e-2  # rounded, and not by more than that


POLICIES = [({"io": "device"}, "io device"), ({"cuda_graphs": True}, "CUDA graphs")]


@pytest.mark.parametrize("backend", ["torch", "torch_compile", "onnxruntime"])
@pytest.mark.parametrize(("policy", "words"), POLICIES)
def test_on_the_cpu_only_host_io_without_graphs_exists(
    artifacts: dict[str, Path], backend: str, policy: dict[str, Any], words: str
) -> None:
    said = f"runner {backend}: {words}: on the CPU only io host without CUDA graphs exists.*Use device cuda"
    with pytest.raises(EnvironmentLacks, match=said):
        open_runner(artifacts["fp32"], backend, **policy)


def test_tf32_on_a_cpu_and_cuda_without_a_gpu_are_refused(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvironmentLacks, match=r"the CPU has no TF32 arithmetic. Use precision fp32 or bf16"):
        open_runner(artifacts["fp32"], "torch", precision="tf32")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentLacks, match=r"device cuda: torch .* sees no CUDA device. Install a CUDA build"):
        open_runner(artifacts["fp32"], "torch", device="cuda")


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_arithmetic_that_a_gpu_lacks_is_refused_by_its_name(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    for name, value in {
        "is_available": True,
        "current_device": 0,
        "get_device_capability": (7, 0),
        "get_device_name": "Tesla V100",
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    with pytest.raises(EnvironmentLacks, match=rf"Tesla V100 \(SM 7.0\) has no {precision.upper()} arithmetic"):
        open_runner(artifacts["fp32"], "torch", device="cuda", precision=precision)


def test_a_spec_names_runner_precision_and_device() -> None:
    assert spec_parts("torch") == ("torch", {})
    assert spec_parts("torch:fp16@cuda") == ("torch", {"precision": "fp16", "device": "cuda"})
    assert spec_parts("onnxruntime@tensorrt") == ("onnxruntime", {"device": "tensorrt"})


class Part:
    """What a session says of the nodes of one provider."""

    def __init__(self, ep_name: str, *types: str) -> None:
        self.ep_name, self._types = ep_name, types

    def get_nodes(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name=f"n{i}", op_type=t) for i, t in enumerate(self._types)]


class Session:
    """An ONNX Runtime session on providers it was not asked for, or was; it doubles its one input."""

    def __init__(self, providers: list[str], *parts: Part) -> None:
        self.providers, self.parts = providers, parts
        self.ran: list[Any] = []

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> tuple[Part, ...]:
        return self.parts

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="sample", shape=["B", 3])]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="out", shape=["B", 3])]

    def io_binding(self) -> Any:
        bound: dict[str, Any] = {}
        return SimpleNamespace(
            bound=bound,
            bind_cpu_input=bound.__setitem__,
            bind_output=lambda name, device: bound.__setitem__(name, device),
            copy_outputs_to_cpu=lambda: [bound["sample"] * 2],
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self.ran.append(binding.bound)


CUDA, CPU = PROVIDERS["cuda"], PROVIDERS["cpu"]


def test_a_provider_that_silently_fell_back_fails_the_row() -> None:
    with pytest.raises(OptimizeError, match=f"{CUDA} silently fell back to {CPU}; nothing was measured") as caught:
        refuse_fallback(Session([CPU]), CUDA)
    assert not isinstance(caught.value, EnvironmentLacks)  # failed, not refused


def test_layers_that_fell_back_to_the_cpu_fail_the_row_and_shapes_there_do_not() -> None:
    shapes = Session([CUDA, CPU], Part(CUDA, "Conv", "Mul"), Part(CPU, "Shape", "Gather"))
    assert refuse_fallback(shapes, CUDA) == {CUDA: 2, CPU: 2}
    strayed = Session([CUDA, CPU], Part(CUDA, "Mul"), Part(CPU, "Shape", "Conv", "MatMul"))
    with pytest.raises(OptimizeError, match=rf"2 layers silently fell back from {CUDA} to the CPU: n1 \(Conv\)"):
        refuse_fallback(strayed, CUDA)


def test_a_session_opened_on_the_cpu_says_which_provider_computes_its_nodes(artifacts: dict[str, Path]) -> None:
    with open_runner(artifacts["fp32"], "onnxruntime", threads=1) as runner:
        about = runner.describe()
    assert set(about["nodes"]) == {CPU} and about["nodes"][CPU] > 20
    assert (about["provider"], about["io"], about["cuda_graphs"]) == (CPU, "host", False)


def test_a_session_that_falls_back_at_opening_is_no_runner(
    artifacts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ONNX Runtime does where CUDA's libraries are missing: the build has the provider, the session does not."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.raises(OptimizeError, match=f"{CUDA} silently fell back to {CPU}"):
        open_runner(artifacts["fp32"], "onnxruntime", device="cuda")


def test_providers_are_asked_for_with_their_graph_options() -> None:
    assert provider_list(CPU, False) == [CPU]
    ((name, options),) = provider_list(CUDA, True)
    assert name == CUDA and options["enable_cuda_graph"] == "1" and options["use_tf32"] == "0"
    tensorrt, behind = provider_list(PROVIDERS["tensorrt"], True)
    assert tensorrt[1] == {"trt_cuda_graph_enable": "True"} and behind[0] == CUDA


def test_host_tensors_are_bound_where_they_lie_and_come_back_to_the_host() -> None:
    session = Session([CUDA])
    bound = BoundCalls(session, None, cuda_graphs=False)
    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(bound({"sample": x, "unused": x}), x * 2)
    assert session.ran[0]["out"] == "cpu" and set(session.ran[0]) == {"sample", "out"}


def test_the_output_has_the_sizes_of_the_inputs_symbols() -> None:
    dims = {"sample": ("B", 4, "H", "W"), "encoder_hidden_states": ("B", "L", 8)}
    fed = {"sample": (2, 4, 16, 24), "encoder_hidden_states": (2, 7, 8)}
    assert output_shape(dims, ("B", 4, "H", "W"), fed) == (2, 4, 16, 24)
    with pytest.raises(OptimizeError, match=r"output's size 2\*H is none of the inputs' \(B, H, W, L\).*Use io host"):
        output_shape(dims, ("B", 4, "2*H", "W"), fed)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", ["torch", "torch_compile"])
def test_torch_on_a_gpu_agrees_from_host_and_from_device(
    models: dict[str, Model], artifacts: dict[str, Path], backend: str, precision: str, graphs: bool
) -> None:
    options: dict[str, Any] = {"device": "cuda", "precision": precision, "cuda_graphs": graphs}
    with open_runner(artifacts["fp32"], backend, **options) as runner:
        assert parity(models["fp32"], runner, levels=3)["relative_l2"] < (1e-3 if precision == "fp32" else 2e-2)
        host = example_inputs(runner.inputs, 3, classes=10)
        device = {k: v.cuda() for k, v in host.items()}
        from_host, from_device = runner(**host), runner(**device)
        kept = from_device.clone()
        runner(**{k: v * 0 for k, v in device.items()})
    assert from_host.device.type == "cpu" and from_device.device.type == "cuda"
    assert torch.equal(from_device, kept) and torch.allclose(from_host, from_device.cpu(), atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_kernels_that_inductor_timed_on_a_gpu_agree(
    models: dict[str, Model], artifacts: dict[str, Path], graphs: bool
) -> None:
    options: dict[str, Any] = {"device": "cuda", "precision": "fp16", "cuda_graphs": graphs, "autotune": True}
    with open_runner(artifacts["fp32"], "torch_compile", **options) as runner:
        assert parity(models["fp32"], runner, levels=3)["relative_l2"] < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_onnxruntime_on_a_gpu_agrees_from_host_and_from_device(
    models: dict[str, Model], artifacts: dict[str, Path], graphs: bool
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no CUDA provider")
    with open_runner(artifacts["fp32"], "onnxruntime", device="cuda", cuda_graphs=graphs) as runner:
        assert parity(models["fp32"], runner, levels=3)["relative_l2"] < 1e-3
        host = example_inputs(runner.inputs, 3, classes=10)
        from_host = runner(**host)
        from_device = runner(**{k: v.cuda() for k, v in host.items()})
    assert from_device.device.type == "cuda" and torch.allclose(from_host, from_device.cpu(), atol=1e-4)
