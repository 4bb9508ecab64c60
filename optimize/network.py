"""A Network: named tensors in, one raw tensor out, with diffusers' own input names.

An `nn.Module`, an ONNX session and an engine all look like this, so nothing above knows which backend runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class TensorSpec:
    """One input: its name, dims (a string is symbolic, `"B"` the batch) and dtype (`float32`, `int64`)."""

    name: str
    dims: tuple[int | str, ...]
    dtype: str = "float32"

    def shape(self, batch: int) -> tuple[int, ...]:
        """Concrete shape at a batch size."""
        return tuple(batch if d == "B" else int(d) for d in self.dims)


@runtime_checkable
class Network(Protocol):
    """Callable with keyword tensors (CPU or device); returns the raw float32 output tensor."""

    inputs: tuple[TensorSpec, ...]

    def __call__(self, **tensors: Tensor) -> Tensor: ...


class TorchNetwork:
    """A diffusers model (or any module returning `.sample`, a tuple or a tensor) as a Network."""

    def __init__(self, module: nn.Module, inputs: tuple[TensorSpec, ...]) -> None:
        self.module = module
        self.inputs = inputs

    def __call__(self, **tensors: Tensor) -> Tensor:
        return raw_output(self.module(**nested(tensors)))


def nested(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors by name as keyword arguments: "a.b" is entry "b" of the dictionary argument "a"."""
    made: dict[str, Any] = {}
    for name, value in tensors.items():
        outer, _, inner = name.partition(".")
        if inner:
            made.setdefault(outer, {})[inner] = value
        else:
            made[name] = value
    return made


def raw_output(value: Any) -> Tensor:
    """The one tensor in a diffusers output object, a tuple, or the tensor itself."""
    if hasattr(value, "sample"):
        return value.sample
    return value[0] if isinstance(value, tuple | list) else value


def example_inputs(
    inputs: tuple[TensorSpec, ...], batch: int, seed: int = 0, classes: int = 1, t_max: float = 999.0
) -> dict[str, Tensor]:
    """Seeded inputs of the right shapes: noise, timesteps spread over [0, t_max], labels in [0, classes)."""
    import numpy as np
    import torch

    from optimize import rng

    made: dict[str, Tensor] = {}
    for spec in inputs:
        shape = spec.shape(batch)
        if spec.name == "timestep":
            value: Any = np.linspace(0, t_max, batch).round() if batch > 1 else np.full(1, round(t_max / 2))
        elif spec.dtype == "int64":
            value = rng.integers(0, classes, shape, "example", spec.name, seed)
        else:
            value = rng.normal(shape, "example", spec.name, seed)
        made[spec.name] = torch.as_tensor(np.asarray(value)).to(getattr(torch, spec.dtype))
    return made
