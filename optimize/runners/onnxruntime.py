"""ONNX Runtime: the exported file in a session of the provider asked for, and no other: what falls back fails.

On the CPU its Q/DQ fusions want a Q/DQ after each layer as well, which this graph rightly lacks; unfused, a quantized
graph is slower than FP32. So it is widened at load, and `describe()` says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimize.configs import AtOnce, Config
from optimize.diffusion.backend import Closing
from optimize.diffusion.network import TensorSpec
from optimize.errors import EnvironmentLacks, UserError
from optimize.onnx.graph import NOTE
from optimize.onnx.vetted import onnx_file, parsing
from optimize.registry import RUNNERS
from optimize.runners._onnxruntime_cuda import PROVIDERS, BoundCalls, provider_list, refuse_fallback

if TYPE_CHECKING:
    from torch import Tensor

ROUNDED = "values computed in FP32 and rounded to 16 bits"


@RUNNERS.register("onnxruntime")
class OnnxRuntime(Config):
    """Options of the ONNX Runtime runner."""

    threads: AtOnce | None = None
    """Threads inside an operator; by default all cores."""
    device: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    """Which of ONNX Runtime's providers computes."""
    provider: str | None = None
    """ONNX Runtime's name of any other execution provider, instead of device."""
    io: Literal["host", "device"] = "host"
    """Where inputs come from and outputs go; device on a GPU only."""
    cuda_graphs: bool = False
    """Capture a call once for each batch size, then replay it; on a GPU only."""
    spinning: bool = True
    """Whether idle threads spin, as ONNX Runtime has it: faster alone, slower beside other processes."""
    int8: Literal["widen", "as_is"] = "widen"
    """Q/DQ layers on the CPU: widened and computed in FP32, or as the file says, rounded and computed in FP32."""
    half: Literal["round", "as_is"] = "round"
    """A 16-bit graph on the CPU, which has few such kernels: FP32 rounded after every operator, or as the file says."""

    def open(self, folder: Path) -> OnnxRuntimeRunner:
        """Open a session; EnvironmentLacks without ONNX Runtime or the provider."""
        try:
            import onnxruntime
        except ImportError as error:
            raise EnvironmentLacks(
                "runner onnxruntime: ONNX Runtime is not installed. pip install onnxruntime"
            ) from error
        path, available, provider = onnx_file(folder), onnxruntime.get_available_providers(), self.chosen
        if provider not in available:
            raise EnvironmentLacks(
                f"runner onnxruntime: provider {provider} is not in this build. Available: {', '.join(available)}. "
                "For CUDA: pip install onnxruntime-gpu"
            )
        if provider == PROVIDERS["cpu"] and (self.io == "device" or self.cuda_graphs):
            asked = "io device" if self.io == "device" else "CUDA graphs"
            raise EnvironmentLacks(
                f"runner onnxruntime: {asked}: on the CPU only io host without CUDA graphs exists, since its memory is the host's. Use device cuda or tensorrt."
            )
        return OnnxRuntimeRunner(path, self)

    @property
    def chosen(self) -> str:
        """ONNX Runtime's name of the provider asked for."""
        return self.provider or PROVIDERS[self.device]

    @property
    def on_gpu(self) -> bool:
        """Whether calls are bound to a GPU."""
        return self.chosen in (PROVIDERS["cuda"], PROVIDERS["tensorrt"])


class OnnxRuntimeRunner(Closing):
    """One session; on the CPU bound to tensors of its own, since handing over the caller's costs more than copying."""

    def __init__(self, path: Path, options: OnnxRuntime) -> None:
        import onnxruntime

        _check_binding(options)
        asked = provider_list(options.chosen, options.cuda_graphs)
        with parsing(path, "ONNX Runtime", _refusals()):
            graph, self._lowered = prepared(path, options)
            self._rounds = any(ROUNDED in said for said in self._lowered)
            settings = _settings(options, path, computes_in_16_bit=self._rounds)
            session = onnxruntime.InferenceSession(graph, settings, providers=asked)
        session.disable_fallback()
        self._assigned = refuse_fallback(session, options.chosen)
        self._bound: Any = BoundCalls(session, onnxruntime, options.cuda_graphs) if options.on_gpu else None
        if options.chosen == PROVIDERS["cpu"]:
            self._bound = HostCalls(session)
        self._held, self._options = session, options
        self.inputs = tuple(_spec(i) for i in session.get_inputs())

    def __call__(self, **tensors: Tensor) -> Tensor:
        """The network's output; UserError with the shapes given where the graph does not take them."""
        try:
            return self._computed(tensors)
        except _refusals() as error:
            given = ", ".join(f"{n} {list(t.shape)}" for n, t in tensors.items())
            asked = ", ".join(f"{s.name} [{', '.join(map(str, s.dims))}]" for s in self.inputs)
            said = " ".join(str(error).split())[:300]
            raise UserError(
                f"runner onnxruntime: given {given}; allowed is {asked}, heights and widths that the network can halve and "
                f"double again (multiples of 8, or of the export's multiple_of). {said}"
            ) from error

    def _computed(self, tensors: dict[str, Tensor]) -> Tensor:
        import torch

        if self._bound is not None:
            made: Tensor = self._bound(tensors)
            return made
        feed = {spec.name: tensors[spec.name].detach().contiguous().numpy() for spec in self.inputs}
        return torch.from_numpy(self.held.run(None, feed)[0])

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON."""
        import onnxruntime

        options = self._options
        device = "cuda:0" if options.on_gpu else options.chosen
        about = {"backend": "onnxruntime", "version": onnxruntime.__version__, "device": device}
        policy = {"provider": options.chosen, "io": options.io, "cuda_graphs": options.cuda_graphs}
        threads = {"threads": options.threads, "spinning": options.spinning}
        nodes = {"nodes": self._assigned}
        precision = self.held.get_modelmeta().custom_metadata_map.get(NOTE, "fp32")
        return {**about, "precision": precision, **policy, **threads, **nodes, "lowered": self._lowered}

    def __exit__(self, *rest: Any) -> None:
        self._bound = None
        super().__exit__(*rest)


def _refusals() -> tuple[type[Exception], ...]:
    """The errors ONNX Runtime has for a model that it does not take; not those of a device (EPFail)."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return tuple(getattr(state, name) for name in names)


class HostCalls:
    """Calls of a session on the CPU through inputs and an output that are bound once for each set of shapes."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._names = [i.name for i in session.get_inputs()]
        self._kept: dict[tuple[Any, ...], tuple[Any, dict[str, Tensor], Tensor]] = {}

    def __call__(self, tensors: dict[str, Tensor]) -> Tensor:
        shapes = tuple(tensors[name].shape for name in self._names)
        kept = self._kept.get(shapes)
        if kept is None:
            return self._first(shapes, tensors)
        binding, inputs, output = kept
        for name, own in inputs.items():
            own.copy_(tensors[name])
        self._session.run_with_iobinding(binding)
        return output.clone()

    def _first(self, shapes: tuple[Any, ...], tensors: dict[str, Tensor]) -> Tensor:
        """An unbound call, which checks names and shapes and shows the output's."""
        import torch

        with torch.inference_mode(False):  # else a later call outside it could not write to them
            inputs = {n: tensors[n].detach().clone(memory_format=torch.contiguous_format) for n in self._names}
        output = torch.from_numpy(self._session.run(None, {n: t.numpy() for n, t in inputs.items()})[0])
        binding = self._session.io_binding()
        for name, own in inputs.items():
            binding.bind_input(name, "cpu", 0, own.numpy().dtype.type, tuple(own.shape), own.data_ptr())
        kind = output.numpy().dtype.type
        binding.bind_output(self._session.get_outputs()[0].name, "cpu", 0, kind, tuple(output.shape), output.data_ptr())
        self._kept[shapes] = binding, inputs, output
        return output.clone()


def _check_binding(options: OnnxRuntime) -> None:
    """Device tensors and fixed buffers are torch's: both want a torch that sees the GPU."""
    if options.on_gpu and (options.io == "device" or options.cuda_graphs):
        import torch

        if not torch.cuda.is_available():
            raise EnvironmentLacks(
                f"runner onnxruntime: io device and CUDA graphs bind torch's CUDA tensors, and torch {torch.__version__} sees no CUDA device. Install a CUDA build of torch, or use io host without graphs."
            )


def prepared(path: Path, options: OnnxRuntime) -> tuple[str | bytes, list[str]]:
    """What the session is made of: the path, or the bytes of the rewritten graph, and what was changed."""
    if options.chosen != PROVIDERS["cpu"]:
        return str(path), []
    written = path.read_bytes()  # names of operators and notes stand there as they are
    half = NOTE.encode() in written and options.half == "round"
    if not half and (options.int8 == "as_is" or b"QuantizeLinear" not in written):
        return str(path), []
    import onnx_ir as ir

    from optimize.onnx.emulation import emulate
    from optimize.onnx.lowering import widen

    model = ir.load(path)
    said = [f"{emulate(model)} {ROUNDED}"] if half else widen(model)
    return (ir.to_proto(model).SerializeToString(), said) if said else (str(path), [])


def _settings(options: OnnxRuntime, path: Path, computes_in_16_bit: bool) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # what fails is raised
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    # a graph given as bytes looks for its weights here
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    if computes_in_16_bit:  # the optimizer would take the rounding for a detour, and widen all weights at once
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if options.chosen == PROVIDERS["cpu"] and options.int8 == "as_is":
        # fused INT8 products saturate on CPUs without VNNI, and fused FP8 ones are refused as invalid
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if options.threads:
        settings.intra_op_num_threads = options.threads
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spinning else "0")
    return settings


def _spec(node: Any) -> TensorSpec:
    dims = tuple(d if isinstance(d, int) else (d or "?") for d in node.shape)
    return TensorSpec(node.name, dims, "int64" if "int64" in node.type else "float32")
