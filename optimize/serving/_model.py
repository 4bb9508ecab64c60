"""Triton's Python backend: requests with seeds in, images out; all requests of an execution are one sampling batch.

A copy of this file is `model.py` of a served model. It needs numpy, and onnxruntime where it evaluates the network
itself; neither torch nor this library.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from optimize.serving._loop import Loop

Asked = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class TritonPythonModel:
    """The sampling loop of one artifact over an ONNX Runtime session, or over another model of the server."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the session of this version's folder, or name the server's model that evaluates the network;
        RuntimeError where a session's provider is not the one asked for."""
        folder = Path(args["model_repository"]) / args["model_version"]
        options = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        about = json.loads((folder / "sampler.json").read_text())
        if options["over"] == "session":
            gpu = int(args.get("model_instance_device_id") or 0)
            call = network(folder / "model.onnx", options["device"], int(options["threads"]), gpu)
        else:
            call = called(options["over"], options["output"], int(options["largest"]))
        self.loop = Loop(about, call)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response a request: its images, or an error that leaves the others alone."""
        import triton_python_backend_utils as pb

        asked = [_inputs(pb, request) for request in requests]
        refused = [self.loop.refusal(*a) for a in asked]
        good = [a for a, why in zip(asked, refused) if why is None]
        drawn = iter(_shares(self.loop, good))
        return [_response(pb, next(drawn)) if why is None else _error(pb, why) for why in refused]


def network(path: Path, device: str, threads: int, gpu: int) -> Any:
    """The exported network as a function from named arrays to its raw output; 0 threads is one for each core."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the server's own threads want the cores
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
        cuts = range(0, len(feed["sample"]), largest)
        return np.concatenate([part({n: v[i : i + largest] for n, v in feed.items()}) for i in cuts])

    return call


def _shares(loop: Loop, asked: list[Asked]) -> list[np.ndarray]:
    """The images of each request, drawn together."""
    if not asked:
        return []
    whole = [loop.complete(*a) for a in asked]
    labels = [each for _, each, _ in whole if each is not None]  # of all, or of none where there are no classes
    seeds, weights = np.concatenate([w[0] for w in whole]), np.concatenate([w[2] for w in whole])
    images = loop.draw(seeds, np.concatenate(labels) if labels else None, weights)
    return np.split(images, np.cumsum([len(w[0]) for w in whole])[:-1])


def _inputs(pb: Any, request: Any) -> Asked:
    """Seeds, labels and weights of a request, each (n,); None for what it leaves out."""
    found = [pb.get_input_tensor_by_name(request, n) for n in ("seed", "label", "guidance")]
    seeds, labels, weights = (None if t is None else t.as_numpy().reshape(-1) for t in found)
    return seeds, labels, weights  # type: ignore[return-value]  # the server refuses a request without seeds


def _response(pb: Any, images: np.ndarray) -> Any:
    """`images` (n,C,H,W) float32 in [-1, 1] as drawn, and `pixels` (n,H,W,C) uint8, rounded."""
    pixels = np.rint((images.astype(np.float64) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    both = {"images": images, "pixels": pixels}
    return pb.InferenceResponse([pb.Tensor(n, np.ascontiguousarray(v)) for n, v in both.items()])


def _error(pb: Any, why: str) -> Any:
    return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(why))
