"""OpenVINO on the CPU: compiled once for each batch size, since static shapes run faster than dynamic ones.

INT8 layers run in INT8 because the graph says so; `precision` is what everything else computes in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimize.configs import AtOnce, Config
from optimize.diffusion.backend import Closing
from optimize.diffusion.network import TensorSpec
from optimize.errors import EnvironmentLacks
from optimize.onnx.vetted import onnx_file, parsing
from optimize.registry import RUNNERS

if TYPE_CHECKING:
    from torch import Tensor

HINTS = {"fp32": "f32", "bf16": "bf16"}


@RUNNERS.register("openvino")
class OpenVINO(Config):
    """Options of the OpenVINO runner."""

    threads: AtOnce | None = None
    """Inference threads; by default all cores."""
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """Arithmetic of what is not INT8; auto is bf16 where the CPU computes in it."""

    def open(self, folder: Path) -> OpenVINORunner:
        """Read the exported file; EnvironmentLacks without OpenVINO, or for bf16 on a CPU that has none."""
        try:
            import openvino
        except ImportError as error:
            raise EnvironmentLacks("runner openvino: OpenVINO is not installed. pip install openvino") from error
        core = openvino.Core()
        return OpenVINORunner(core, onnx_file(folder), self.threads, chosen_precision(core, self.precision))


def chosen_precision(core: Any, asked: str) -> str:
    """ "fp32" or "bf16"; a CPU without BF16 would silently compute in FP32, so asking it for bf16 is refused."""
    able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if asked == "bf16" and not able:
        name = core.get_property("CPU", "FULL_DEVICE_NAME")
        raise EnvironmentLacks(f"runner openvino: {name} has no BF16 arithmetic. Use precision fp32 or auto.")
    return "bf16" if able and asked in ("bf16", "auto") else "fp32"


class OpenVINORunner(Closing):
    """One compiled model and request for each batch size seen.

    A request reads and writes tensors of its own, bound once: binding the caller's at every call costs more than copying.
    """

    def __init__(self, core: Any, path: Path, threads: int | None, precision: str) -> None:
        with parsing(path, "OpenVINO", (RuntimeError,)):
            model = core.read_model(str(path))
        self._held = (core, model)
        self._requests: dict[int, tuple[Any, dict[str, Tensor], Tensor]] = {}  # request, its inputs, its output
        self.inputs = tuple(_spec(i) for i in model.inputs)
        self._threads, self._precision = threads, precision

    def __call__(self, **tensors: Tensor) -> Tensor:
        batch = tensors[self.inputs[0].name].shape[0]
        request, inputs, output = self._requests.get(batch) or self._compiled(batch)
        for name, own in inputs.items():
            given = tensors[name]
            if given.shape != own.shape:
                raise ValueError(
                    f"runner openvino: {name} has shape {tuple(given.shape)}; at batch {batch} it must be {tuple(own.shape)}"
                )
            own.copy_(given)
        request.infer(share_outputs=True)
        return output.clone()

    def _compiled(self, batch: int) -> tuple[Any, dict[str, Tensor], Tensor]:
        """The inference request for one batch size with the tensors bound to it, compiled at its first use."""
        core, model = self.held
        static = model.clone()
        static.reshape({spec.name: list(spec.shape(batch)) for spec in self.inputs})
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[self._precision],
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",  # layers with INT8 weights alone must not round their activations
        }
        if self._threads:
            settings["INFERENCE_NUM_THREADS"] = self._threads
        request = core.compile_model(static, "CPU", settings).create_infer_request()
        inputs = {spec.name: _bound(request, request.get_tensor(spec.name), spec.name) for spec in self.inputs}
        port = request.model_outputs[0]
        self._requests[batch] = request, inputs, _bound(request, request.get_tensor(port), port)
        return self._requests[batch]

    def __exit__(self, *rest: Any) -> None:
        self._requests.clear()
        super().__exit__(*rest)

    def executed(self, batch: int) -> list[dict[str, str]]:
        """[{name, type, precision, kernel}] of the layers as they really run at a batch size that was called."""
        keys = {"type": "layerType", "precision": "runtimePrecision", "kernel": "primitiveType"}
        rows = []
        for op in self._requests[batch][0].get_compiled_model().get_runtime_model().get_ordered_ops():
            info = op.get_rt_info()
            found = {k: str(info[v].astype(str) if hasattr(info[v], "astype") else info[v]) for k, v in keys.items()}
            rows.append({"name": op.get_friendly_name(), **found})
        return rows

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON."""
        import openvino

        core = self.held[0]
        about = {
            "backend": "openvino",
            "version": openvino.__version__,
            "device": core.get_property("CPU", "FULL_DEVICE_NAME"),
        }
        return {**about, "precision": self._precision, "threads": self._threads, "lowered": []}


def _bound(request: Any, like: Any, port: Any) -> Tensor:
    """A torch tensor as `like` that the request uses in its place."""
    import numpy as np
    import openvino
    import torch

    memory = np.zeros(like.shape, dtype=like.data.dtype)
    request.set_tensor(port, openvino.Tensor(memory, shared_memory=True))
    with torch.inference_mode(False):  # else a later call outside it could not write to it
        return torch.from_numpy(memory)


def _spec(port: Any) -> TensorSpec:
    dims = tuple(d.get_length() if d.is_static else "B" for d in port.partial_shape)
    return TensorSpec(port.any_name, dims, "int64" if port.element_type.get_type_name() == "i64" else "float32")
