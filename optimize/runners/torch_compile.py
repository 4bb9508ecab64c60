"""torch.compile (Inductor): the artifact's network compiled, to C++ on the CPU or to Triton kernels on a GPU, once for
each batch size."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import EnvironmentLacks
from optimize.registry import RUNNERS
from optimize.runners._torch_module import ModuleRunner, TorchOptions, check

if TYPE_CHECKING:
    from torch import Tensor


@RUNNERS.register("torch_compile")
class TorchCompile(TorchOptions):
    """Options of the compiled runner; `cuda_graphs` is Inductor's own mode "reduce-overhead"."""

    autotune: bool = False
    """Inductor times several kernels for each layer ("max-autotune"): minutes for a large network."""

    def open(self, folder: Path) -> CompiledRunner:
        """Load the artifact; compilation happens at the first call of each batch size. EnvironmentLacks without a C++
        compiler, or for a device, precision or policy this machine does not have."""
        device = check("torch_compile", self)
        find_compiler()
        from optimize.architectures.artifact import load_model

        network = load_model(folder).denoiser.network
        return CompiledRunner("torch_compile", network, self, device, lambda module: compiled(module, self.mode))

    @property
    def mode(self) -> str:
        """Inductor's name of what is asked for."""
        if self.autotune:
            return "max-autotune" if self.cuda_graphs else "max-autotune-no-cudagraphs"
        return "reduce-overhead" if self.cuda_graphs else "default"


def compiled(module: Any, mode: str) -> Any:
    """The module compiled for fixed shapes."""
    import torch

    return torch.compile(module, dynamic=False, mode=mode)


def find_compiler() -> str:
    """Path of the C++ compiler Inductor will call; EnvironmentLacks where there is none."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    raise EnvironmentLacks(
        f"runner torch_compile: no C++ compiler ({', '.join(names)}) is on PATH. Install one (apt-get install g++) "
        "or take it out of benchmark.runners."
    )


class CompiledRunner(ModuleRunner):
    """Calls the compiled module; its output buffer is Inductor's, so it is copied."""

    def compute(self, fed: dict[str, Tensor]) -> Tensor:
        """As the module's, cloned."""
        return super().compute(fed).clone()

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON, with Inductor's mode."""
        options = self._options
        return super().describe() | ({"mode": options.mode} if isinstance(options, TorchCompile) else {})
