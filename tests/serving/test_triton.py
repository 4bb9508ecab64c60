"""A real Triton server: HTTP and gRPC, requests in batches, the library's images, and errors that it survives.

The server is the one of the wheel nvidia-pytriton, in an environment of its own below OPTIMIZE_TRITON_CACHE or the
user's cache folder, made on first use from the package index.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import networks
import numpy as np
import pytest
import torch

from optimize.architectures.artifact import save_model
from optimize.diffusion.backend import open_runner
from optimize.diffusion.context import Context
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.exporters.onnx import Onnx
from optimize.serving.triton import make_repository
from optimize.sources.diffusers import DiffusersSource
from optimize.storage.commit import commit

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
DELAY_US = 100_000  # long enough that requests of several clients always meet


@pytest.fixture(scope="module")
def programs() -> Iterator[tuple[ModuleType, ModuleType]]:
    """(triton_server, serving) of benchmarks/."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("triton_server"), importlib.import_module("serving")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def artifact(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = DiffusersSource(tiny_folder, null_class=10).load(
        Sampler(solver="dpmpp_2m", steps=3, guidance=Guidance(cfg=0.5))
    )

    def write(folder: Path) -> dict[str, Any]:
        save_model(folder, model)
        Onnx().export(model, folder, Context())
        return {"id": "an id"}

    final = tmp_path_factory.mktemp("run") / "tiny" / "final"
    commit(final, write)
    return final


@pytest.fixture(scope="module")
def python(programs: tuple[ModuleType, ModuleType]) -> Path:
    cache = os.environ.get("OPTIMIZE_TRITON_CACHE")
    return programs[0].environment(Path(cache)) if cache else programs[0].environment()


@pytest.fixture(scope="module")
def server(
    programs: tuple[ModuleType, ModuleType], python: Path, artifact: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    work = tmp_path_factory.mktemp("server")
    options = {"model": "served", "models": ("sampling",), "max_batch": 8, "queue_delay_us": DELAY_US, "threads": 1}
    make_repository(artifact, work / "models", **options)
    with programs[0].served(python, work / "models", work) as running:
        yield running
    assert running.process.poll() is not None


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_concurrent_requests_are_batched_and_get_the_librarys_images(
    programs: tuple[ModuleType, ModuleType], python: Path, server: Any, artifact: Path, tmp_path: Path, protocol: str
) -> None:
    before = server.counts("served")
    found = programs[1].load(python, server, protocol, tmp_path / "x.npz", requests=64, clients=8, warm_up=0)
    images, executions = (a - b for a, b in zip(server.counts("served"), before))
    assert images == 64 and executions <= 32, executions
    row = programs[1].judged(found, programs[1].library_images(artifact, 64))
    assert row["wrong"] == 0 and row["errors"] == [], row
    assert np.unique(found["images"]).size > 1000


def test_a_single_client_gets_the_librarys_images_bit_for_bit(
    programs: tuple[ModuleType, ModuleType], python: Path, server: Any, artifact: Path, tmp_path: Path
) -> None:
    found = programs[1].load(python, server, "grpc", tmp_path / "x.npz", requests=4, clients=1)
    assert programs[1].judged(found, programs[1].library_images(artifact, 4))["identical"] == 4


def infer(server: Any, output: str = "pixels", **inputs: tuple[str, Any]) -> tuple[int, dict[str, Any]]:
    """A request as JSON over plain HTTP; a list is a number a sample."""
    arrays = {k: (t, np.array(v).reshape(len(v), *np.shape(v)[1:] or (1,))) for k, (t, v) in inputs.items()}
    given = [{"name": k, "datatype": t, "shape": a.shape, "data": a.tolist()} for k, (t, a) in arrays.items()]
    body = json.dumps({"inputs": given, "outputs": [{"name": output}]}).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.http}/v2/models/served/infer", body)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def pixels(answer: dict[str, Any]) -> np.ndarray:
    (found,) = answer["outputs"]
    return np.array(found["data"], np.uint8).reshape(found["shape"])


def test_several_seeds_a_label_and_a_weight_go_in_one_request(server: Any) -> None:
    status, answer = infer(server, seed=("INT64", [4, 5]))
    assert status == 200 and pixels(answer).shape == (2, 16, 16, 1)
    own = pixels(infer(server, seed=("INT64", [4]), label=("INT64", [4]), guidance=("FP64", [0.5]))[1])
    assert np.abs(own[0].astype(int) - pixels(answer)[0]).max() <= 1
    other = pixels(infer(server, seed=("INT64", [4]), label=("INT64", [7]))[1])
    assert np.abs(own[0].astype(int) - other[0]).max() > 1
    unguided = pixels(infer(server, seed=("INT64", [4]), guidance=("FP64", [0.0]))[1])
    assert np.abs(own[0].astype(int) - unguided[0]).max() > 1


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"seed": ("INT64", [-1])}, "seed: -1 given, allowed 0 to"),
        ({"seed": ("INT64", [1]), "label": ("INT64", [10])}, "label: 10 given, allowed 0 to 9"),
        ({"seed": ("INT64", [1]), "guidance": ("FP64", [-2.0])}, "guidance: -2.0 given"),
        ({"seed": ("FP32", [1.5])}, "data-type"),
        ({"seed": ("INT64", list(range(9)))}, "batch-size must be <= 8"),
        ({"label": ("INT64", [1])}, "seed: this model draws from seeds"),
        ({"seed": ("INT64", [1, 2]), "label": ("INT64", [1])}, "batch size does not match other inputs"),
    ],
)
def test_a_bad_request_is_an_error_and_the_server_stays_up(server: Any, inputs: dict[str, Any], said: str) -> None:
    status, answer = infer(server, **inputs)
    assert status >= 400 and said in answer["error"], answer
    assert infer(server, seed=("INT64", [1]))[0] == 200 and server.process.poll() is None


def test_a_network_told_tensors_draws_the_librarys_latents(
    programs: tuple[ModuleType, ModuleType], python: Path, tmp_path: Path
) -> None:
    """A tiny Stable Diffusion U-Net, guided: text states from the client, the unconditional ones kept with the model."""
    model = networks.model(networks.TINY["sd"], Sampler(steps=2, guidance=Guidance(cfg=1.5)))
    text, null = torch.randn(2, 7, 32), torch.randn(1, 7, 32)
    name = "encoder_hidden_states"
    model = replace(model, conditions={name: text, f"null.{name}": null})

    def write(folder: Path) -> dict[str, Any]:
        save_model(folder, replace(model, conditions={f"null.{name}": null}))
        Onnx().export(model, folder, Context())
        return {"id": "an id"}

    commit(tmp_path / "final", write)
    make_repository(tmp_path / "final", tmp_path / "models", model="served", models=("sampling",), threads=1)
    with open_runner(tmp_path / "final", "onnxruntime", threads=1) as runner:
        expected = model.with_network(runner).sample([0, 1]).numpy()
    with programs[0].served(python, tmp_path / "models", tmp_path) as server:
        status, answer = infer(server, "images", seed=("INT64", [0, 1]), **{name: ("FP32", text.numpy())})
        assert status == 200, answer
        found = np.array(answer["outputs"][0]["data"], np.float32).reshape(expected.shape)
        assert np.array_equal(found, expected) and np.abs(expected).max() > 1
        status, answer = infer(server, "images", seed=("INT64", [0]))
        assert status >= 400 and f"missing required input(s) ['{name}']" in answer["error"]
        wrong = {name: ("FP32", text.numpy()[:1, :5])}
        status, answer = infer(server, "images", seed=("INT64", [0]), **wrong)
        assert status >= 400 and f"{name}: its shape is (5, 32)" in answer["error"]


NETWORK = """
import numpy as np, onnxruntime, os, triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        answers = []
        for request in requests:
            feed = {i.name: pb.get_input_tensor_by_name(request, i.name).as_numpy() for i in self.session.get_inputs()}
            name = self.session.get_outputs()[0].name
            answers.append(pb.InferenceResponse([pb.Tensor(name, self.session.run(None, feed)[0])]))
        return answers
"""


def test_the_loop_draws_over_another_model_of_the_server(
    programs: tuple[ModuleType, ModuleType], python: Path, artifact: Path, tmp_path: Path
) -> None:
    """The wheel has no ONNX backend, so a Python model stands in for it behind the same config.pbtxt."""
    make_repository(artifact, tmp_path / "models", model="served", over="onnxruntime", max_batch=4, threads=1)
    folder = tmp_path / "models" / "served-onnx"
    text = (folder / "config.pbtxt").read_text()
    written = 'platform: "onnxruntime_onnx"\nbackend: "onnxruntime"\ndefault_model_filename: "model.onnx"\n'
    assert written in text
    (folder / "config.pbtxt").write_text(text.replace(written, 'backend: "python"\n'))
    (folder / "1" / "model.py").write_text(NETWORK)
    with programs[0].served(python, tmp_path / "models", tmp_path) as server:
        found = programs[1].load(python, server, "grpc", tmp_path / "x.npz", requests=8, clients=4)
    row = programs[1].judged(found, programs[1].library_images(artifact, 8))
    assert row["wrong"] == 0 and len(found["seeds"]) == 8, row


def test_a_server_that_cannot_load_its_model_says_why(
    programs: tuple[ModuleType, ModuleType], python: Path, artifact: Path, tmp_path: Path
) -> None:
    make_repository(artifact, tmp_path / "models", model="served", models=("sampling",))
    (tmp_path / "models" / "served" / "1" / "sampler.json").unlink()
    with (
        pytest.raises(RuntimeError, match=r"(?s)did not come up.*sampler\.json"),
        programs[0].served(python, tmp_path / "models", tmp_path, ready_s=20),
    ):
        raise AssertionError("it came up")


def test_the_benchmark_prints_a_row_for_every_load(python: Path, artifact: Path, tmp_path: Path) -> None:
    cache = python.parents[2]
    command = [sys.executable, str(BENCHMARKS / "serving.py"), str(artifact), "--clients", "1,4", "--requests", "20"]
    command += ["--protocols", "grpc", "--cache", str(cache), "--out", str(tmp_path / "r.json"), "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = json.loads((tmp_path / "r.json").read_text())
    rows, said = record["rows"], record["command"]
    assert said.startswith("python benchmarks/serving.py") and record["id"] == "an id"
    assert [(r["clients"], r["wrong"], r["images"]) for r in rows] == [(1, 0, 20), (4, 0, 20)]
    assert all(r["latency_ms"]["p99"] >= r["latency_ms"]["p50"] > 0 and r["per_second"] > 0 for r in rows)
    assert "requests/s" in done.stdout
