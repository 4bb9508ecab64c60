"""Triton's Python backend: requests with seeds in, images out; all requests of an execution are one sampling batch.

A copy of this file is `model.py` of a served model. It needs numpy, and onnxruntime where it evaluates the network
itself; neither torch nor this library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from optimize.serving._loop import NULL, Asked, Loop, joined

KEPT = "conditions.npz"  # the conditions that lie with the model, by name of the network's input
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class TritonPythonModel:
    """The sampling loop of one artifact over an ONNX Runtime session, or over another model of the server."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session of this version's folder, or name the server's model that evaluates the network;
        RuntimeError where a session's provider is not the one asked for."""
        folder = Path(args["model_repository"]) / args["model_version"]
        options = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        about = json.loads((folder / "sampler.json").read_text())
        kept = dict(np.load(folder / KEPT, allow_pickle=False)) if (folder / KEPT).is_file() else {}
        if options["over"] == "session":
            gpu = int(args.get("model_instance_device_id") or 0)
            call = network(folder / "model.onnx", options["device"], int(options["threads"]), gpu)
        else:
            call = called(options["over"], options["output"], int(options["largest"]))
        self.loop = Loop(about, call, (options["latents"], options["time"]), kept)
        told = [tensor["name"] for tensor in about["conditioning"].get("tensors", ())]
        self.tensors = [*told, *(NULL + name for name in told)]
        self.own = [name for name in ("seed", "label", "guidance") if name not in told]
        self.seen = options["pixels"] == "yes"

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request: its images, or an error that leaves the others alone."""
        import triton_python_backend_utils as pb

        answers: list[Any] = [None] * len(requests)
        batches: dict[Any, list[tuple[int, Asked]]] = {}
        for i, request in enumerate(requests):
            asked, why = self._asked(pb, request)
            if asked is None or why is not None:
                answers[i] = _error(pb, str(why))
            else:
                shapes = tuple((name, value.shape[1:]) for name, value in asked.tensors.items())
                batches.setdefault(shapes, []).append((i, asked))
        for together in batches.values():
            made = self._answers(pb, [asked for _, asked in together])
            for (i, _), answer in zip(together, made):
                answers[i] = answer
        return answers

    def _answers(self, pb: Any, asked: list[Asked]) -> list[Any]:
        """A response a request, drawn together; where that fails, the reason to each of them."""
        try:
            images = _shares(self.loop, asked)
        except Exception as error:  # noqa: BLE001 - the runtime's own errors; requests of other shapes go on
            return [_error(pb, f"{type(error).__name__}: {error}") for _ in asked]
        return [_response(pb, each, self.seen) for each in images]

    def _asked(self, pb: Any, request: Any) -> tuple[Asked | None, str | None]:
        """A request with all that it left out, or why it is refused."""
        found = {n: pb.get_input_tensor_by_name(request, n) for n in (*self.own, *self.tensors)}
        given = {name: tensor.as_numpy() for name, tensor in found.items() if tensor is not None}
        if "seed" not in given:  # the server lets it pass where another input is optional
            return None, "seed: this model draws from seeds; give one an image"
        count = len(given["seed"])
        for name, value in given.items():
            if len(value) != count:
                return None, f"{name}: {len(value)} given for {count} seeds; give one each"
        flat = {name: given.pop(name).reshape(-1) for name in self.own if name in given}
        asked = Asked(flat["seed"], flat.get("label"), flat.get("guidance"), given)
        why = self.loop.refusal(asked)
        return (None, why) if why else (self.loop.complete(asked), None)


def network(path: Path, device: str, threads: int, gpu: int) -> Any:
    """The exported network as a function from named arrays to its raw output; 0 threads is one for each core."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the server's own threads want the cores
    if device == "cpu":  # fused INT8 products saturate on CPUs without VNNI
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    wanted: Any = (PROVIDERS[device], {"device_id": gpu}) if device == "cuda" else PROVIDERS[device]
    session = onnxruntime.InferenceSession(str(path), settings, providers=[wanted])
    found = session.get_providers()[0]
    if found != PROVIDERS[device]:  # ONNX Runtime falls back to the CPU without a word
        raise RuntimeError(f"ONNX Runtime computes with {found}, not with {PROVIDERS[device]}: install onnxruntime-gpu")
    return lambda feed: session.run(None, feed)[0]


def called(model: str, output: str, largest: int) -> Any:
    """The network as the server's own model of that name, called with at most `largest` samples at a time."""
    import triton_python_backend_utils as pb

    def part(feed: dict[str, np.ndarray]) -> np.ndarray:
        inputs = [pb.Tensor(n, np.ascontiguousarray(v if v.ndim > 1 else v[:, None])) for n, v in feed.items()]
        memory = pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0)
        request = pb.InferenceRequest(
            model_name=model, requested_output_names=[output], inputs=inputs, preferred_memory=memory
        )
        response = request.exec()
        if response.has_error():
            raise pb.TritonModelException(f"{model}: {response.error().message()}")
        return pb.get_output_tensor_by_name(response, output).as_numpy()

    def call(feed: dict[str, np.ndarray]) -> np.ndarray:
        cuts = range(0, len(next(iter(feed.values()))), largest)
        return np.concatenate([part({n: v[i : i + largest] for n, v in feed.items()}) for i in cuts])

    return call


def _shares(loop: Loop, asked: list[Asked]) -> list[np.ndarray]:
    """The images of each request, drawn together."""
    images = loop.draw(joined(asked))
    return np.split(images, np.cumsum([len(a.seeds) for a in asked])[:-1])


def _response(pb: Any, images: np.ndarray, seen: bool) -> Any:
    """`images` (n, ...) float32 as drawn, and of pictures `pixels` (n,H,W,C) uint8, rounded; an error where the network
    gave numbers that are not finite."""
    if not np.isfinite(images).all():
        return _error(pb, "the network's output is not finite for this request")
    made = {"images": images}
    if seen:
        made["pixels"] = np.rint((images.astype(np.float64) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    return pb.InferenceResponse([pb.Tensor(n, np.ascontiguousarray(v)) for n, v in made.items()])


def _error(pb: Any, why: str) -> Any:
    return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(why))
