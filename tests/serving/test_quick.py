"""The small server, asked over real HTTP: the page, images as the library draws them, and errors that help."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch

from optimize.architectures.artifact import load_model, save_model
from optimize.diffusion.backend import open_runner
from optimize.diffusion.context import Context
from optimize.diffusion.sampling import Sampler
from optimize.errors import ArtifactError, EnvironmentLacks, UserError
from optimize.exporters.onnx import Onnx
from optimize.hardware.environment import device_class
from optimize.serving import _drawing, quick
from optimize.serving._drawing import Abandoned, Drawing, candidates
from optimize.serving._pictures import pixels
from optimize.sources.diffusers import DiffusersSource
from optimize.storage.commit import commit


@pytest.fixture(scope="module")
def run(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder whose final artifact is exported."""
    folder, model = (
        tmp_path_factory.mktemp("served") / "tiny",
        DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=2)),
    )

    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        Onnx().export(model, temporary, Context())
        return {"id": "an id"}

    commit(folder / "final", write)
    return folder


@pytest.fixture(scope="module")
def url(run: Path) -> Iterator[str]:
    with Drawing(run, "onnxruntime") as drawing, quick.open_server(drawing, port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def get(url: str) -> tuple[int, str, bytes]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read()


def decoded(png: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png)))


def test_images_are_the_librarys_for_the_same_seeds(url: str, run: Path) -> None:
    status, kind, body = get(f"{url}/v1/images?seed=7&count=3")
    answer = json.loads(body)
    assert (status, kind) == (200, "application/json") and answer["latency_ms"] > 0
    assert [(i["seed"], i["class"]) for i in answer["images"]] == [(7, 7), (8, 8), (9, 9)]
    with open_runner(run / "final", "onnxruntime") as runner:
        expected = load_model(run / "final").with_network(runner).sample([7, 8, 9]).numpy()
    for image, wanted in zip(answer["images"], pixels(expected)):
        assert np.array_equal(decoded(base64.b64decode(image["png"])), wanted[:, :, 0])


def test_a_class_is_drawn_for_every_seed_and_all_images_come_as_one_picture(url: str) -> None:
    seven = json.loads(get(f"{url}/v1/images?seed=3&class=7")[2])["images"][0]
    own = json.loads(get(f"{url}/v1/images?seed=3")[2])["images"][0]
    assert (seven["class"], own["class"]) == (7, 3) and seven["png"] != own["png"]
    status, kind, body = get(f"{url}/v1/images?seed=3&count=3&class=7&format=png")
    sheet = decoded(body)
    assert (status, kind, sheet.shape) == (200, "image/png", (32, 32))
    assert np.abs(sheet[:16, :16].astype(int) - decoded(base64.b64decode(seven["png"]))).max() <= 1  # another batch
    assert (sheet[16:, 16:] == 255).all()


def test_the_page_and_what_is_served(url: str) -> None:
    status, kind, body = get(url + "/")
    assert status == 200 and kind.startswith("text/html") and b"/v1/images?" in body
    assert not re.search(rb"(src|href)=\"(https?:)?//", body)  # nothing is fetched from elsewhere
    about = json.loads(get(f"{url}/v1/model")[2])
    assert about["name"] == "tiny" and about["runner"] == "onnxruntime" and about["why"] == "as asked"
    assert (about["classes"], about["steps"], about["nfe"], about["shape"]) == (10, 2, 2, [1, 16, 16])


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v1/images?seed=-1", 400, 'seed: "-1" given, allowed whole numbers from 0'),
        ("/v1/images?seed=x", 400, 'seed: "x" given'),
        ("/v1/images?seed=" + "9" * 5000, 400, 'seed: "9999'),
        ("/v1/images?seed=%D9%A3", 400, 'seed: "٣" given, allowed whole numbers'),
        ("/v1/images?count=65", 400, 'count: "65" given, allowed whole numbers from 1 to 64'),
        ("/v1/images?count=0", 400, 'count: "0" given'),
        ("/v1/images?seed=9223372036854775807&count=2", 400, "seed:"),
        ("/v1/images?class=10", 400, "class: 10 given, allowed 0 to 9"),
        ("/v1/images?format=gif", 400, 'format: "gif" is not known. Allowed: json, png'),
        (
            "/v1/images?sed=1",
            400,
            'query: "sed" is not known. Allowed: class, count, format, seed. Did you mean "seed"?',
        ),
        ("/v2/images", 404, "/v2/images: no such page. Allowed: /, /v1/model, /v1/images"),
    ],
)
def test_bad_requests_are_errors_that_help_and_the_server_stays_up(url: str, path: str, status: int, said: str) -> None:
    got, kind, body = get(url + path)
    assert (got, kind) == (status, "application/json") and said in json.loads(body)["error"]
    assert get(f"{url}/v1/images?seed=1")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_other_methods_are_refused_as_json(url: str, method: str) -> None:
    request = urllib.request.Request(f"{url}/v1/images", b"{}", method=method)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=60)
    assert raised.value.code == 405
    assert json.loads(raised.value.read())["error"] == f"{method}: this server answers GET and HEAD alone."


def test_a_head_request_gets_the_headers_alone(url: str) -> None:
    request = urllib.request.Request(f"{url}/v1/images?count=2", method="HEAD")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200 and int(answer.headers["Content-Length"]) > 100 and answer.read() == b""


def test_what_a_runner_raises_is_told_to_the_one_who_asked(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Drawing, "draw", fail)
    status, kind, body = get(f"{url}/v1/images?seed=1")
    assert (status, kind) == (500, "application/json")
    assert json.loads(body)["error"] == "drawing failed: RuntimeError: no memory left"
    monkeypatch.undo()
    assert get(f"{url}/v1/images?seed=1")[0] == 200


def test_latents_are_scaled_to_be_seen_and_samples_of_two_dims_are_grey() -> None:
    latents = np.zeros((2, 4, 2, 2), np.float32)
    latents[0, 0, 0, 0], latents[1, 2, 1, 1] = -8.0, 0.5
    seen = pixels(latents, None)
    assert seen.shape == (2, 2, 2, 4) and seen[0, 0, 0, 0] == 0 and seen[1, 1, 1, 2] == 255 and seen[0, 1, 1, 1] == 128
    line = pixels(np.array([[[0.5, -0.5, 0.0]]], np.float32), 0.5)
    assert line.shape == (1, 1, 3, 1) and line[0, 0, :, 0].tolist() == [255, 0, 128]


def test_a_model_that_is_told_tensors_draws_with_its_own_conditions(tmp_path: Path) -> None:
    model = networks.model(networks.TINY["sd"], Sampler(steps=1))
    rows = {"encoder_hidden_states": torch.randn(2, 7, 32)}
    model = replace(model, conditions=rows)

    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        return {"id": "an id"}

    commit(tmp_path / "final", write)
    with Drawing(tmp_path / "final", "torch") as drawing:
        drawn = drawing.draw([0, 1])
        assert np.array_equal(drawn.images, model.sample([0, 1]).numpy()) and drawn.labels is None
        assert np.abs(drawn.images).max() > 1 and drawing.describe()["latents"] is True
        with pytest.raises(UserError, match="class: this model is not class-conditional"):
            drawing.draw([0], 3)


def test_concurrent_requests_get_their_own_images(url: str) -> None:
    found: dict[int, Any] = {}

    def ask(seed: int) -> None:
        found[seed] = json.loads(get(f"{url}/v1/images?seed={seed}")[2])["images"][0]["png"]

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, png in found.items():
        assert json.loads(get(f"{url}/v1/images?seed={seed}")[2])["images"][0]["png"] == png
    assert len(set(found.values())) == 6


class Slow:
    """A network that waits at its first call to be let go, and counts its calls."""

    def __init__(self, network: Any) -> None:
        self.network, self.inputs, self.calls = network, network.inputs, 0
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, **tensors: Any) -> Any:
        self.calls += 1
        self.begun.set()
        assert self.go.wait(20)
        return self.network(**tensors)


@pytest.fixture
def slow(run: Path) -> Iterator[tuple[Drawing, Slow, int]]:
    with Drawing(run, "onnxruntime") as drawing, quick.open_server(drawing, port=0) as server:
        network = Slow(drawing.model.denoiser.network)
        drawing.model = drawing.model.with_network(network)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield drawing, network, server.server_address[1]
        network.go.set()
        server.shutdown()
        thread.join()


def test_who_leaves_gives_up_the_drawing_and_the_place_in_the_queue(slow: tuple[Drawing, Slow, int]) -> None:
    """Two evaluations an image: the first is under way when the asker of 64 leaves, the second is not begun."""
    _, network, port = slow
    line = b"GET /v1/images?count=64 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    drawn = socket.create_connection(("127.0.0.1", port))
    drawn.sendall(line)
    assert network.begun.wait(20)
    waits = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
    for one in waits:
        one.sendall(line)
    for one in (drawn, *waits):
        one.close()
    assert get(f"http://127.0.0.1:{port}/v1/model")[0] == 200  # the loop has been round, and knows that they left
    network.go.set()
    assert get(f"http://127.0.0.1:{port}/v1/images?count=2")[0] == 200
    assert network.calls == 1 + 2


def test_a_server_that_is_being_stopped_begins_no_further_evaluation(slow: tuple[Drawing, Slow, int]) -> None:
    drawing, network, _ = slow
    raised: list[BaseException] = []

    def draw() -> None:
        try:
            drawing.draw([0])
        except Abandoned as error:
            raised.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    assert network.begun.wait(20)
    drawing.stop()
    network.go.set()
    thread.join(20)
    assert raised and network.calls == 1


def test_strangers_are_not_told_where_the_artifact_lies(url: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(run.parent) not in get(f"{url}/v1/model")[2].decode()

    def fail(self: Drawing, *arguments: Any) -> Any:
        raise OSError(f"cannot read {self.folder.resolve()}/onnx/model.onnx")

    monkeypatch.setattr(Drawing, "draw", fail)
    said = json.loads(get(f"{url}/v1/images")[2])["error"]
    assert said == "drawing failed: OSError: cannot read the artifact/onnx/model.onnx"


def test_a_port_in_use_or_a_bad_address_is_one_message(run: Path) -> None:
    with Drawing(run, "onnxruntime") as drawing, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=r"is in use\. Choose another, or 0 for any free one"):
            quick.open_server(drawing, port=taken.getsockname()[1])
        with pytest.raises(UserError, match="--port: 70000 given, allowed 0 to 65535"):
            quick.open_server(drawing, port=70000)
        with pytest.raises(UserError, match="--port: -1 given, allowed 0 to 65535"):
            quick.open_server(drawing, port=-1)
        with pytest.raises(UserError, match=r"--host: no\.such\.host\.invalid is no address of this machine"):
            quick.open_server(drawing, host="no.such.host.invalid")
        with pytest.raises(EnvironmentLacks, match=r"192.0.2.1:0 cannot be opened"):  # an address kept for documents
            quick.open_server(drawing, host="192.0.2.1", port=0)


def test_the_runner_is_the_one_the_run_measured_as_fastest(run: Path) -> None:
    identity = json.loads((run / "final" / "manifest.json").read_text())["id"]
    row = {"artifact_id": identity, "status": "done", "predicted": False}
    rows = [
        row | {"runner": "openvino", "image_latency_ms": {"p50": 2.0}},
        row | {"runner": "onnxruntime", "image_latency_ms": {"p50": 1.5}},
        row | {"runner": "gone", "image_latency_ms": {"p50": 0.1}},
        row | {"runner": "torch", "image_latency_ms": {"p50": 0.1}, "status": "failed"},
        row | {"runner": "torch", "image_latency_ms": {"p50": 0.1}, "artifact_id": "another"},
    ]
    summary = run / "summary.json"
    summary.write_text(json.dumps({"environment": {"device": device_class()}, "rows": rows}))
    try:
        first, second, *_ = candidates(run / "final")
        assert first == ("onnxruntime", "1.5 ms an image in the run's own measurement") and second[0] == "openvino"
        with Drawing(run) as drawing:
            assert drawing.runner == "onnxruntime"
        summary.write_text(json.dumps({"environment": {"device": "another"}, "rows": rows}))
        assert next(candidates(run / "final")) == ("openvino", "first of the installed runners")
    finally:
        summary.unlink()


def test_what_is_not_installed_is_passed_over_and_nothing_at_all_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _drawing.open_runner

    def without(missing: tuple[str, ...]) -> None:
        def open(folder: Path, name: str, **options: Any) -> Any:
            if name in missing:
                raise EnvironmentLacks(f"{name} is not installed.")
            return real(folder, name, **options)

        monkeypatch.setattr(_drawing, "open_runner", open)

    without(("openvino",))
    with Drawing(run) as drawing:
        assert drawing.runner == "onnxruntime"
    without(("openvino", "onnxruntime", "torch"))
    with pytest.raises(EnvironmentLacks, match=r"no runner opens .* openvino is not installed. onnxruntime is not"):
        Drawing(run)


@pytest.mark.parametrize("name", ["model.safetensors", "onnx/model.onnx", "sampler.json", "structure.json"])
def test_an_altered_artifact_is_not_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import shutil

    shutil.copytree(run / "final", tmp_path / "final")
    path = tmp_path / "final" / name
    found = path.read_bytes()
    path.write_bytes(found[:-9] + bytes([found[-9] ^ 1]) + found[-8:])
    monkeypatch.setattr(_drawing, "open_runner", lambda *a, **k: pytest.fail("it was opened"))
    with pytest.raises(ArtifactError, match=rf"{name} is changed: expected sha256"):
        Drawing(tmp_path / "final")


def test_the_command_serves_on_a_free_port_and_ends_when_told(run: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "optimize",
        "serve",
        str(run),
        "--port",
        "0",
        "--runner",
        "onnxruntime",
        "--allow-host",
        "box.example",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"final on onnxruntime \(as asked\): (http://127\.0\.0\.1:\d+)$", line)
        assert found, line
        assert len(json.loads(get(found[1] + "/v1/images?count=2")[2])["images"]) == 2
        asked = urllib.request.Request(found[1] + "/v1/model", headers={"Host": "box.example:80"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert answer.status == 200
        process.terminate()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.communicate()


def test_wrong_input_is_one_message_and_exit_code_2(tmp_path: Path) -> None:
    for arguments, said in (
        (("nowhere",), "is no folder"),
        ((".",), "neither an artifact nor a run"),
        (("nowhere", "--triton", "models"), "is no folder"),
        (("nowhere", "--allow-host", "http://x"), '--allow-host: "http://x" is no name or address'),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "optimize", "serve", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=60,
        )
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
