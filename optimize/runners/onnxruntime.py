"""ONNX Runtime: the exported file in a session of the provider asked for, and no other.

On the CPU its Q/DQ fusions want a Q/DQ after each layer as well, which this graph rightly lacks; unfused, a quantized
graph is slower than FP32. So it is widened at load, and `describe()` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from optimize.configs import Config
from optimize.errors import EnvironmentLacks
from optimize.network import TensorSpec
from optimize.registry import RUNNERS
from optimize.runner import Closing, onnx_file

if TYPE_CHECKING:
    from torch import Tensor


@RUNNERS.register("onnxruntime")
class OnnxRuntime(Config):
    """Options of the ONNX Runtime runner."""

    threads: Annotated[int, Field(ge=1)] | None = None  # intra-op threads; None: all cores
    provider: str = "CPUExecutionProvider"  # ONNX Runtime's name of the execution provider
    spinning: bool = (
        True  # whether idle threads spin, as ONNX Runtime has it: faster alone, slower beside other processes
    )
    # Q/DQ layers on the CPU: in FP32 (see onnx_lowering), or as the file says
    int8: Literal["widen", "as_is"] = "widen"

    def open(self, folder: Path) -> OnnxRuntimeRunner:
        """Open a session; EnvironmentLacks without ONNX Runtime or the provider."""
        try:
            import onnxruntime
        except ImportError as error:
            raise EnvironmentLacks(
                "runner onnxruntime: ONNX Runtime is not installed. pip install onnxruntime"
            ) from error
        path, available = onnx_file(folder), onnxruntime.get_available_providers()
        if self.provider not in available:
            raise EnvironmentLacks(
                f"runner onnxruntime: provider {self.provider} is not in this build. Available: {', '.join(available)}. "
                "For CUDA: pip install onnxruntime-gpu"
            )
        return OnnxRuntimeRunner(path, self)


class OnnxRuntimeRunner(Closing):
    """One session; copies nothing but the output."""

    def __init__(self, path: Path, options: OnnxRuntime) -> None:
        import onnxruntime

        graph, self._lowered = prepared(path, options)
        session = onnxruntime.InferenceSession(graph, _settings(options), providers=[options.provider])
        if session.get_providers()[0] != options.provider:
            raise EnvironmentLacks(f"runner onnxruntime: {options.provider} fell back to {session.get_providers()[0]}.")
        self._held, self._options = session, options
        self.inputs = tuple(_spec(i) for i in session.get_inputs())

    def __call__(self, **tensors: Tensor) -> Tensor:
        import torch

        feed = {spec.name: tensors[spec.name].detach().contiguous().numpy() for spec in self.inputs}
        return torch.from_numpy(self.held.run(None, feed)[0])

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON."""
        import onnxruntime

        about = {
            "backend": "onnxruntime",
            "version": onnxruntime.__version__,
            "device": self._options.provider,
        }
        return {**about, "precision": "fp32", "threads": self._options.threads, "lowered": self._lowered}


def prepared(path: Path, options: OnnxRuntime) -> tuple[str | bytes, list[str]]:
    """What the session is made of: the path, or the bytes of the widened graph, and what was changed."""
    if options.provider != "CPUExecutionProvider" or options.int8 == "as_is":
        return str(path), []
    if b"QuantizeLinear" not in path.read_bytes():  # names of operators stand there as they are
        return str(path), []
    import onnx_ir as ir

    from optimize.onnx_lowering import widen

    model = ir.load(path)
    said = widen(model)
    return (ir.to_proto(model).SerializeToString(), said) if said else (str(path), [])


def _settings(options: OnnxRuntime) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if options.threads:
        settings.intra_op_num_threads = options.threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return settings


def _spec(node: Any) -> TensorSpec:
    dims = tuple(d if isinstance(d, int) else "B" for d in node.shape)
    return TensorSpec(node.name, dims, "int64" if "int64" in node.type else "float32")
