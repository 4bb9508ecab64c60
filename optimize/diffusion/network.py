"""A Network: named tensors in, one raw tensor out, with diffusers' own input names.

An `nn.Module`, an ONNX session and an engine all look like this, so nothing above knows which backend runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from optimize.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

# What stands in for an input where nothing is given: seeded normal numbers (0 for int64), positions on a square grid
# (0, row, column), or these numbers repeated along the last axis; for a time they hold its largest value alone.
Fill = tuple[float, ...] | Literal["normal", "grid"]


@dataclass(frozen=True)
class TensorSpec:
    """One input: its name, dims, dtype (`float32`, `int64`), default sizes of its symbols, and a stand-in value.

    A dim is a number or a symbol: `"B"` the batch, `"H"`, `"W"` height and width of the latents, `"L"` tokens, or any
    other word; `"H/4"` is a fourth of H, rounded up. An input whose first dim is not `"B"` is shared by all samples.
    """

    name: str
    dims: tuple[int | str, ...]
    dtype: str = "float32"
    sizes: tuple[tuple[str, int], ...] = ()
    fill: Fill = "normal"

    def shape(self, batch: int, **sizes: int) -> tuple[int, ...]:
        """Concrete shape at a batch size and sizes of symbols (default: the spec's own).

        Raises UserError for a symbol that has no size.
        """
        known = {**dict(self.sizes), **sizes, "B": batch}
        return tuple(d if isinstance(d, int) else _size(d, known, self.name) for d in self.dims)

    @property
    def batched(self) -> bool:
        """Whether it holds a row for every sample."""
        return bool(self.dims) and self.dims[0] == "B"

    def to_json(self) -> dict[str, Any]:
        """JSON form; what has its default is left out."""
        plain = {"name": self.name, "dims": list(self.dims)}
        dtype = {} if self.dtype == "float32" else {"dtype": self.dtype}
        sizes = {"sizes": dict(self.sizes)} if self.sizes else {}
        fill = {} if self.fill == "normal" else {"fill": list(self.fill) if isinstance(self.fill, tuple) else self.fill}
        return {**plain, **dtype, **sizes, **fill}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TensorSpec:
        """Inverse of `to_json`."""
        fill = value.get("fill", "normal")
        return cls(
            value["name"],
            tuple(value["dims"]),
            value.get("dtype", "float32"),
            tuple(value.get("sizes", {}).items()),
            fill if isinstance(fill, str) else tuple(fill),  # type: ignore[arg-type]
        )


def _size(symbol: str, known: Mapping[str, int], name: str) -> int:
    """Size of a symbol, or of a fraction of one."""
    word, _, divisor = symbol.partition("/")
    if word not in known:
        raise UserError(f'{name}: its dim "{symbol}" has no size. Give one, e.g. {word}=64.')
    return -(-known[word] // int(divisor or 1))


@runtime_checkable
class Network(Protocol):
    """Callable with keyword tensors (CPU or device); returns the raw float32 output tensor.

    The first input is what is denoised, the second the time.
    """

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
    """Tensors by name as keyword arguments: "a.b" is entry "b" of the dictionary argument "a", "a.0" of the list "a"."""
    made: dict[str, Any] = {}
    for name, value in tensors.items():
        outer, _, inner = name.partition(".")
        if inner:
            made.setdefault(outer, {})[inner] = value
        else:
            made[name] = value
    return {name: _listed(value) for name, value in made.items()}


def _listed(value: Any) -> Any:
    """A dictionary whose keys count up as the list of its values."""
    if isinstance(value, dict) and all(key.isdecimal() for key in value):
        return [value[key] for key in sorted(value, key=int)]
    return value


def raw_output(value: Any) -> Tensor:
    """The one tensor in a diffusers output object, a tuple, or the tensor itself."""
    if hasattr(value, "sample"):
        return value.sample
    return value[0] if isinstance(value, tuple | list) else value


def example_inputs(
    inputs: tuple[TensorSpec, ...], batch: int, seed: int = 0, classes: int = 1, t_max: float = 999.0, **sizes: int
) -> dict[str, Tensor]:
    """Seeded inputs of the right shapes: noise, timesteps spread over [0, t_max], labels in [0, classes), and whatever
    else a spec says stands in. `sizes` are of symbols, e.g. `H=32`."""
    import numpy as np
    import torch

    from optimize import rng

    made: dict[str, Tensor] = {}
    for spec in inputs:
        shape = spec.shape(batch, **sizes)
        if spec.name == "timestep":
            high = spec.fill[0] if isinstance(spec.fill, tuple) else t_max
            value: Any = np.linspace(0, high, batch) if batch > 1 else np.full(1, high / 2)
            value = value.round() if high > 1 else value
        elif spec.dtype == "int64" and spec.fill == "normal":
            value = rng.integers(0, classes, shape, "example", spec.name, seed)
        elif spec.fill == "normal":
            value = rng.normal(shape, "example", spec.name, seed)
        else:
            value = stand_in(spec, shape)
        made[spec.name] = torch.as_tensor(np.asarray(value)).to(getattr(torch, spec.dtype))
    return made


def stand_in(spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """The value that a spec with a fill other than "normal" prescribes, float32."""
    import numpy as np

    if spec.fill == "grid":
        side = round(shape[0] ** 0.5)
        at = np.arange(shape[0])
        return np.stack([0 * at, at // max(side, 1), at % max(side, 1)], axis=1).astype(np.float32)
    assert isinstance(spec.fill, tuple)
    return np.broadcast_to(np.asarray(spec.fill, np.float32), shape).copy()
