"""A Runner is a Network with a lifetime: one backend, opened on an artifact folder, used in a `with` block.

with open_runner(folder, "openvino", threads=1) as network: network(sample=z, timestep=t, class_labels=y)
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from pydantic import ValidationError

from optimize.diffusion.network import TensorSpec
from optimize.errors import NAMES, UserError, cut, shown
from optimize.registry import RUNNERS

if TYPE_CHECKING:
    from torch import Tensor


class Runner(Protocol):
    """`describe()` is JSON: backend, version, device, precision, threads, and `lowered`: what was changed in the graph."""

    inputs: tuple[TensorSpec, ...]

    def __call__(self, **tensors: Tensor) -> Tensor: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def describe(self) -> dict[str, Any]: ...


def open_runner(folder: Path | str, name: str, **options: Any) -> Runner:
    """The artifact in `folder` run by the backend `name` with its options (see the files in `optimize/runners/`).

    Raises UserError for an unknown backend or option, ArtifactError where the artifact lacks the file the backend runs,
    EnvironmentLacks where the backend is not installed.
    """
    return runner_config(name, **options).open(Path(folder))


def runner_config(name: str, **options: Any) -> Any:
    """The validated options of a backend; UserError for an unknown backend or option."""
    plugin = RUNNERS.get(name)
    try:
        return plugin(**options)
    except ValidationError as error:
        problems = "; ".join(_problem(e) for e in error.errors()[:NAMES])
        raise UserError(f'runner "{name}": {problems}. Allowed options: {", ".join(plugin.model_fields)}.') from None


def _problem(error: Any) -> str:
    place, said = cut(".".join(str(x) for x in error["loc"])), cut(error["msg"], 400)
    if error["type"] == "extra_forbidden":
        return f"{place}: {said}"
    return f"{place}: {said}, given {shown(error['input'])}"


def spec_parts(spec: str) -> tuple[str, dict[str, Any]]:
    """(backend, options) of a runner written `name`, `name:precision`, `name@device` or `name:precision@device`, e.g.
    `torch:fp16@cuda` or `onnxruntime@tensorrt`."""
    rest, _, device = spec.partition("@")
    name, _, precision = rest.partition(":")
    return name, ({"precision": precision} if precision else {}) | ({"device": device} if device else {})


def reads_weights(spec: str) -> bool:
    """Whether a runner (its name or spec) computes from an artifact's weights in torch, not from an exported file."""
    return spec.startswith("torch")


class Closing:
    """`with` for a runner that holds its backend's objects in `_held`: they are let go at the end."""

    _held: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = None

    @property
    def held(self) -> Any:
        """The backend's objects; RuntimeError after the `with` block."""
        if self._held is None:
            raise RuntimeError(f"{type(self).__name__} was closed; open it again")
        return self._held
