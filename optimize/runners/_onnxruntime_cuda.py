"""ONNX Runtime on a GPU: which provider really computes, and calls through I/O binding, with or without CUDA graphs.

Tensors on the host are copied in and out of pageable memory by ONNX Runtime; CUDA tensors are bound where they lie.
A captured graph wants fixed addresses, so then inputs are copied into buffers that stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optimize.errors import OptimizeError

if TYPE_CHECKING:
    from torch import Tensor

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Attention", "MultiHeadAttention", "InstanceNormalization"}


def provider_list(provider: str, cuda_graphs: bool) -> list[Any]:
    """What a session is asked for: the provider with its options, and CUDA behind TensorRT for what that cannot take."""
    if provider == PROVIDERS["cuda"]:
        return [(provider, {"enable_cuda_graph": "1" if cuda_graphs else "0", "use_tf32": "0"})]
    if provider == PROVIDERS["tensorrt"]:
        graphs = {"trt_cuda_graph_enable": "True" if cuda_graphs else "False"}
        return [(provider, graphs), (PROVIDERS["cuda"], {"use_tf32": "0"})]
    return [provider]


def refuse_fallback(session: Any, provider: str) -> dict[str, int]:
    """Nodes by provider, as the session assigned them ({} where it does not tell).

    Raises OptimizeError, so that the row fails, where another provider came first or the CPU got layers that cost time.
    """
    first = session.get_providers()[0]
    if first != provider:
        raise OptimizeError(f"runner onnxruntime: {provider} silently fell back to {first}; nothing was measured.")
    if not hasattr(session, "get_provider_graph_assignment_info"):  # ONNX Runtime before 1.24
        return {}
    counts: dict[str, int] = {}
    strayed = []
    for part in session.get_provider_graph_assignment_info():
        nodes = part.get_nodes()
        counts[part.ep_name] = counts.get(part.ep_name, 0) + len(nodes)
        if part.ep_name != provider and part.ep_name == PROVIDERS["cpu"]:
            strayed += [f"{n.name} ({n.op_type})" for n in nodes if n.op_type in HEAVY]
    if strayed:
        shown = ", ".join(strayed[:3]) + (", …" if len(strayed) > 3 else "")
        raise OptimizeError(
            f"runner onnxruntime: {len(strayed)} layers silently fell back from {provider} to the CPU: {shown}; nothing was measured."
        )
    return counts


class BoundCalls:
    """Calls of one session on GPU `index`."""

    def __init__(self, session: Any, ort: Any, cuda_graphs: bool, index: int = 0) -> None:
        self._session, self._ort, self._graphs, self._index = session, ort, cuda_graphs, index
        self._dims = {i.name: tuple(i.shape) for i in session.get_inputs()}
        self._names = list(self._dims)
        self._out = session.get_outputs()[0]
        self._kept: dict[Any, tuple[Any, dict[str, Any], Any]] = {}  # bindings with fixed buffers, by shapes

    def __call__(self, tensors: dict[str, Tensor]) -> Tensor:
        """The output where the inputs lie: in host memory, or on the GPU."""
        on_gpu = tensors[self._names[0]].is_cuda
        if self._graphs:
            return self._replayed(tensors, on_gpu)
        return self._on_gpu(tensors) if on_gpu else self._on_host(tensors)

    def _on_host(self, tensors: dict[str, Tensor]) -> Tensor:
        import torch

        binding = self._session.io_binding()
        arrays = {name: tensors[name].detach().contiguous().numpy() for name in self._names}
        for name, array in arrays.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output(self._out.name, "cpu")
        self._session.run_with_iobinding(binding)
        return torch.from_numpy(binding.copy_outputs_to_cpu()[0])

    def _on_gpu(self, tensors: dict[str, Tensor]) -> Tensor:
        import torch

        fed = {name: tensors[name].detach().contiguous() for name in self._names}
        output = torch.empty(self._shape(fed), dtype=torch.float32, device=fed[self._names[0]].device)
        binding = self._bind(fed, output)
        torch.cuda.current_stream().synchronize()  # ONNX Runtime works on a stream of its own
        self._session.run_with_iobinding(binding)
        return output

    def _replayed(self, tensors: dict[str, Tensor], on_gpu: bool) -> Tensor:
        """Copy into the buffers, run (the first time captures), copy out."""
        import torch

        device = f"cuda:{self._index}"
        shapes = tuple(tuple(tensors[name].shape) for name in self._names)
        if shapes not in self._kept:
            fed = {name: tensors[name].detach().contiguous().to(device, copy=True) for name in self._names}
            output = torch.empty(self._shape(fed), dtype=torch.float32, device=device)
            self._kept[shapes] = (self._bind(fed, output), fed, output)
        binding, inputs, output = self._kept[shapes]
        for name in self._names:
            inputs[name].copy_(tensors[name])
        torch.cuda.current_stream().synchronize()
        options = self._ort.RunOptions()
        number = list(self._kept).index(shapes) + 1  # one captured graph for every set of shapes
        options.add_run_config_entry("gpu_graph_id", str(number))
        self._session.run_with_iobinding(binding, options)
        return output.clone() if on_gpu else output.cpu()

    def _bind(self, fed: dict[str, Tensor], output: Tensor) -> Any:
        import numpy as np

        binding = self._session.io_binding()
        for name, value in fed.items():
            kind = np.int64 if str(value.dtype).endswith("int64") else np.float32
            binding.bind_input(name, "cuda", self._index, kind, tuple(value.shape), value.data_ptr())
        place = ("cuda", self._index, np.float32, tuple(output.shape), output.data_ptr())
        binding.bind_output(self._out.name, *place)
        return binding

    def _shape(self, fed: dict[str, Tensor]) -> tuple[int, ...]:
        return output_shape(self._dims, tuple(self._out.shape), {n: tuple(t.shape) for n, t in fed.items()})


def output_shape(
    dims: Mapping[str, tuple[Any, ...]], out: tuple[Any, ...], fed: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """The output's sizes from those of the inputs: `dims` and `out` are numbers and symbols, as the session tells them."""
    sizes = {d: n for name, shape in fed.items() for d, n in zip(dims[name], shape) if isinstance(d, str)}
    unknown = [d for d in out if not isinstance(d, int) and d not in sizes]
    if unknown:
        raise OptimizeError(
            f"runner onnxruntime: the output's size {unknown[0]} is none of the inputs' ({', '.join(sizes)}), so it cannot be bound on the GPU. Use io host without CUDA graphs."
        )
    return tuple(d if isinstance(d, int) else sizes[d] for d in out)
