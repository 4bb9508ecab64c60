"""PyTorch eager: the artifact's own network, as it was trained and rounded, on the CPU or a GPU."""

from __future__ import annotations

from pathlib import Path

from optimize.registry import RUNNERS
from optimize.runners._torch_module import CudaGraphs, ModuleRunner, TorchOptions, check


@RUNNERS.register("torch")
class Torch(TorchOptions):
    """Options of the eager runner."""

    def open(self, folder: Path) -> ModuleRunner:
        """Load the artifact (verified). EnvironmentLacks for a device, precision or policy this machine does not have."""
        device = check("torch", self)
        from optimize.architectures.artifact import load_model

        network = load_model(folder).denoiser.network
        return ModuleRunner("torch", network, self, device, CudaGraphs if self.cuda_graphs else None)
