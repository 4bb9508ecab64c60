"""Whether a network computes numbers: its weights, and what it gives on the way of a sampler.

torch keeps a NaN through every operator. Runtimes do not: OpenVINO makes a number of it in Relu, Clip, Max, Exp and Softmax,
ONNX Runtime in ReduceMax, and rounding to integers does so everywhere. So what a runtime computes is judged by the torch
network as well, on the same inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimize.diffusion.network import Network
from optimize.errors import ArtifactError, GateFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

SHOWN = 10  # tensors that an error names


def require_finite_weights(module: nn.Module, of: str) -> None:
    """Raise ArtifactError naming the tensors of a network that hold NaN, or parameters that hold an infinity. A buffer may
    hold infinities: masks of attention do."""
    broken = broken_weights(module)
    if broken:
        named = ", ".join(broken[:SHOWN]) + (f" and {len(broken) - SHOWN} more" if len(broken) > SHOWN else "")
        kind = type(module).__name__
        raise ArtifactError(
            f"{of}: {kind} has weights that are no numbers: {named}. Give a checkpoint from before its training diverged."
        )


def broken_weights(module: nn.Module) -> list[str]:
    """ "name (3 of 64 NaN)" of every floating-point tensor that holds what it must not."""
    parameters = {name: _count(tensor, infinite=True) for name, tensor in module.named_parameters()}
    buffers = {name: _count(tensor, infinite=False) for name, tensor in module.named_buffers()}
    return [f"{name} ({said})" for name, said in (parameters | buffers).items() if said]


def _count(tensor: Tensor, infinite: bool) -> str:
    """How many numbers are NaN, or infinite where that counts; nothing where none is. A sum tells it of most tensors: it
    is finite where all of them are and none is huge."""
    import torch

    if (
        tensor.device.type == "meta"
        or not tensor.is_floating_point()
        or bool(torch.isfinite(tensor.detach().float().sum()))
    ):
        return ""
    wide = tensor.detach().float()
    found = {"NaN": int(wide.isnan().sum()), "infinite": int(wide.isinf().sum()) if infinite else 0}
    return " and ".join(f"{n} of {wide.numel()} {kind}" for kind, n in found.items() if n)


class Watched:
    """A network whose every output must be finite, and that of its `witness`, the torch network, on the first and the last
    sample of the same call. Raises GateFailed at the first call where one is not."""

    def __init__(self, network: Network, witness: Network | None, name: str) -> None:
        self.inputs = network.inputs
        self._network, self._witness, self._name = network, witness, name

    def __call__(self, **tensors: Tensor) -> Tensor:
        made = self._network(**tensors)
        self._require(made, tensors, f"{self._name} gives")
        if self._witness is not None:
            few = self._ends(tensors)
            self._require(self._witness(**few), few, f"{self._name} hides that the torch network gives")
        return made

    def _ends(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first and the last sample, on the CPU: of a guided batch one of each branch."""
        count = len(tensors[self.inputs[0].name])
        rows = sorted({0, count - 1})
        return {k: (v[rows] if v.dim() and len(v) == count else v).cpu() for k, v in tensors.items()}

    def _require(self, made: Tensor, tensors: dict[str, Tensor], who: str) -> None:
        import torch

        bad = int((~torch.isfinite(made)).sum())
        if bad:
            raise GateFailed(f"{who} NaN or infinities{at_time(self.inputs, tensors)}: {bad} of {made.numel()} values")


def at_time(inputs: Any, tensors: dict[str, Tensor]) -> str:
    """ " at timestep 999", for the first sample of a call."""
    if len(inputs) < 2 or inputs[1].name not in tensors:
        return ""
    return f" at {inputs[1].name} {float(tensors[inputs[1].name].flatten()[0]):g}"
