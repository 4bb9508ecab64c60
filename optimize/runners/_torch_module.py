"""What the two torch runners share: where the module runs, in which arithmetic, and CUDA graphs.

Precision is a cast of the module and its inputs, no autocast: fp16 and bf16 compute in nothing else, tf32 is FP32
storage with TF32 products, and fp32 turns TF32 off, which torch leaves on for convolutions. Timesteps stay float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from optimize.configs import AtOnce, Config
from optimize.diffusion.backend import Closing
from optimize.errors import EnvironmentLacks

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "tf32", "fp16", "bf16"]
DTYPES = {"fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16"}
AMPERE = (8, 0)  # the first compute capability with TF32 and BF16


class TorchOptions(Config):
    """Options of both torch runners."""

    threads: AtOnce | None = None
    """torch's threads inside an operator, of the whole process; by default unchanged."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where it computes; cuda is the current CUDA device."""
    precision: Precision = "fp32"
    """Arithmetic of the whole module; tf32 is FP32 storage with TF32 products, on a GPU alone."""
    io: Literal["host", "device"] = "host"
    """Where inputs come from and outputs go; device on CUDA only."""
    cuda_graphs: bool = False
    """Capture a call once for each batch size, then replay it; on CUDA only."""


def check(name: str, options: TorchOptions) -> str:
    """The torch device ("cpu", "cuda:0"); EnvironmentLacks for what this machine, or its GPU, cannot do."""
    if options.device == "cpu":
        return _check_cpu(name, options)
    import torch

    if not torch.cuda.is_available():
        raise EnvironmentLacks(
            f"runner {name}: device cuda: torch {torch.__version__} sees no CUDA device. Install a CUDA build of torch and NVIDIA's driver, or use device cpu."
        )
    index = torch.cuda.current_device()
    capability = torch.cuda.get_device_capability(index)
    if options.precision in ("tf32", "bf16") and capability < AMPERE:
        raise EnvironmentLacks(
            f"runner {name}: {torch.cuda.get_device_name(index)} (SM {capability[0]}.{capability[1]}) has no {options.precision.upper()} arithmetic; SM 8.0 is the first. Use precision fp16 or fp32."
        )
    return f"cuda:{index}"


def _check_cpu(name: str, options: TorchOptions) -> str:
    if options.io == "device" or options.cuda_graphs:
        asked = "io device" if options.io == "device" else "CUDA graphs"
        raise EnvironmentLacks(
            f"runner {name}: {asked}: on the CPU only io host without CUDA graphs exists, since its memory is the host's. Use device cuda."
        )
    if options.precision == "tf32":
        raise EnvironmentLacks(f"runner {name}: the CPU has no TF32 arithmetic. Use precision fp32 or bf16.")
    return "cpu"


class ModuleRunner(Closing):
    """Calls a module under inference mode on its device; what comes from the host goes back to the host."""

    def __init__(self, backend: str, network: Any, options: TorchOptions, device: str, call: Any = None) -> None:
        """`call(module)` turns the cast module into what is called; the module itself where not given."""
        import torch

        self._backend, self._options, self._device = backend, options, device
        self.inputs = network.inputs
        self._before = (torch.get_num_threads(), _tf32())
        if options.threads:
            torch.set_num_threads(options.threads)
        if device != "cpu":
            _set_tf32((options.precision == "tf32",) * 2)
        self._dtype = getattr(torch, DTYPES[options.precision])
        module = network.module.to(device)
        if self._dtype != torch.float32:  # else tables kept in float64 would lose their digits
            module = module.to(self._dtype)
        self._held = call(module) if call else module

    def __call__(self, **tensors: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            fed = {name: self._fed(name, value) for name, value in tensors.items()}
            return self.compute(fed).to(tensors[self.inputs[0].name].device, torch.float32)

    def compute(self, fed: dict[str, Tensor]) -> Tensor:
        """The raw output for inputs that are on the device and cast; a tensor of the caller's own."""
        from optimize.diffusion.network import raw_output

        return raw_output(self.held(**fed))

    def _fed(self, name: str, value: Tensor) -> Tensor:
        cast = value.is_floating_point() and name != "timestep"
        return value.to(self._device, self._dtype if cast else value.dtype)

    def __exit__(self, *rest: Any) -> None:
        import torch

        threads, tf32 = self._before
        torch.set_num_threads(threads)
        _set_tf32(tf32)
        super().__exit__(*rest)

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON."""
        import os

        import torch

        about = {"backend": self._backend, "version": torch.__version__, "device": self._device}
        policy = {"io": self._options.io, "cuda_graphs": self._options.cuda_graphs}
        spinning = os.environ.get("OMP_WAIT_POLICY", "library's own")
        threads = {"threads": torch.get_num_threads(), "spinning": spinning}
        return {**about, "precision": self._options.precision, **policy, **threads, "lowered": []}


class CudaGraphs:
    """A call on CUDA that is captured at the first use of every set of input shapes, then replayed (torch.cuda.graph)."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call
        self._captured: dict[Any, tuple[Any, dict[str, Tensor], Tensor]] = {}

    def __call__(self, **fed: Tensor) -> Tensor:
        key = tuple((name, tuple(value.shape)) for name, value in sorted(fed.items()))
        if key not in self._captured:
            self._captured[key] = self._capture(fed)
        graph, inputs, output = self._captured[key]
        for name, value in fed.items():
            inputs[name].copy_(value)
        graph.replay()
        return output.clone()

    def _capture(self, fed: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor], Tensor]:
        """Warm up on a side stream, as capturing asks for, then capture with inputs at fixed addresses."""
        import torch

        from optimize.diffusion.network import raw_output

        inputs = {name: value.clone() for name, value in fed.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._call(**inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = raw_output(self._call(**inputs))
        return graph, inputs, output


def _tf32() -> tuple[bool, bool]:
    """Whether matrix products and convolutions may use TF32."""
    import torch

    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def _set_tf32(allowed: tuple[bool, bool]) -> None:
    import torch

    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed
