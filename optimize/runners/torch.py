"""PyTorch eager: the artifact's own network, as it was trained and rounded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from optimize.configs import Config
from optimize.registry import RUNNERS
from optimize.runner import Closing

if TYPE_CHECKING:
    from torch import Tensor


@RUNNERS.register("torch")
class Torch(Config):
    """Options of the eager runner."""

    # torch's intra-op threads, of the whole process; None: unchanged
    threads: Annotated[int, Field(ge=1)] | None = None
    precision: Literal["fp32"] = "fp32"  # arithmetic

    def open(self, folder: Path) -> TorchRunner:
        """Load the artifact (verified) on the CPU."""
        from optimize.artifact import load_model

        return TorchRunner(load_model(folder).denoiser.network, self.threads)


class TorchRunner(Closing):
    """Calls the module under inference mode."""

    def __init__(self, network: Any, threads: int | None) -> None:
        import torch

        self._held = network
        self.inputs = network.inputs
        self._threads_before = torch.get_num_threads()
        if threads:
            torch.set_num_threads(threads)

    def __call__(self, **tensors: Tensor) -> Tensor:
        import torch

        with torch.inference_mode():
            return self.held(**tensors)

    def __exit__(self, *rest: Any) -> None:
        import torch

        torch.set_num_threads(self._threads_before)
        super().__exit__(*rest)

    def describe(self) -> dict[str, Any]:
        """Backend facts, JSON."""
        import torch

        about = {"backend": "torch", "version": torch.__version__, "device": "cpu", "precision": "fp32"}
        return {**about, "threads": torch.get_num_threads(), "lowered": []}
