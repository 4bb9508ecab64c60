"""torch.compile (Inductor): the artifact's network compiled to C++ on the CPU, once for each batch size."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from optimize.configs import Config
from optimize.errors import EnvironmentLacks
from optimize.registry import RUNNERS
from optimize.runner import Closing

if TYPE_CHECKING:
    from torch import Tensor


@RUNNERS.register("torch_compile")
class TorchCompile(Config):
    """Options of the compiled runner."""

    # torch's intra-op threads, of the whole process; None: unchanged
    threads: Annotated[int, Field(ge=1)] | None = None

    def open(self, folder: Path) -> CompiledRunner:
        """Load the artifact; compilation happens at the first call of each batch size. EnvironmentLacks without a C++
        compiler."""
        find_compiler()
        from optimize.artifact import load_model

        return CompiledRunner(load_model(folder).denoiser.network, self.threads)


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


class CompiledRunner(Closing):
    """Calls the compiled module under inference mode."""

    def __init__(self, network: Any, threads: int | None) -> None:
        import torch

        self.inputs = network.inputs
        self._threads_before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)
        self._module = network.module
        self._held = torch.compile(network.module, dynamic=False)

    def __call__(self, **tensors: Tensor) -> Tensor:
        import torch

        from optimize.network import raw_output

        with torch.inference_mode():
            return raw_output(self.held(**tensors)).clone()

    def __exit__(self, *rest: Any) -> None:
        import torch

        torch.set_num_threads(self._threads_before)
        super().__exit__(*rest)

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON."""
        import torch

        about = {
            "backend": "torch_compile",
            "version": torch.__version__,
            "device": "cpu",
            "precision": "fp32",
        }
        return {**about, "threads": torch.get_num_threads(), "lowered": []}
