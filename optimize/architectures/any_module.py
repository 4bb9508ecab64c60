"""Any nn.Module as an architecture, by an import path the user has given in a command or recipe.

Its config says what diffusers' configs say by themselves: `arguments` of the callable, `inputs` (specs as JSON, the
latents first, then the time), `shape` of one sample, `conditioning`, `learned_variance`, `limit`. An artifact of such a network
names the path, and loads only where the user has allowed that very path: an artifact never chooses what is imported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from optimize.architectures.entry import Architecture, Config
from optimize.diffusion.denoiser import Conditioning
from optimize.diffusion.network import TensorSpec
from optimize.errors import ArtifactError
from optimize.storage.import_paths import imported

if TYPE_CHECKING:
    from torch import nn

PREFIX = "import:"
ALLOWED = "OPTIMIZE_IMPORTS"  # comma-separated paths; a variable, so that worker processes inherit it


def allow_import(path: str) -> str:
    """Let networks of this import path be built in this process and its children; returns the architecture's name."""
    if path not in allowed():
        os.environ[ALLOWED] = ",".join((*allowed(), path))
    return PREFIX + path


def allowed() -> tuple[str, ...]:
    """The import paths that the user has given."""
    return tuple(p for p in os.environ.get(ALLOWED, "").split(",") if p)


def imported_architecture(name: str) -> Architecture:
    """The architecture called "import:package.module:name". ArtifactError where the user has not given that path."""
    path = name.removeprefix(PREFIX)
    if path not in allowed():
        raise ArtifactError(
            f'architecture: "{name}" is imported code, and an artifact does not choose what is imported. If you trust '
            f"{path}, allow it: set the environment variable {ALLOWED}={path}, or name it in the recipe (source.network)."
        )

    def build(config: Config) -> nn.Module:
        return imported(path, "a class or function that returns an nn.Module")(**config.get("arguments", {}))

    return Architecture(build, _inputs, _conditioning, _shape, _learned_variance, None)


def described(
    inputs: dict[str, Any], shape: list[int] | None = None, arguments: dict[str, Any] | None = None, **more: Any
) -> Config:
    """Config from a recipe's short form: `inputs` {name: dims, or {dims, dtype, sizes, fill}}, latents and time first."""
    specs = [
        TensorSpec.from_json({"name": n, **(v if isinstance(v, dict) else {"dims": v})}) for n, v in inputs.items()
    ]
    return {
        "arguments": arguments or {},
        "inputs": [spec.to_json() for spec in specs],
        "shape": list(specs[0].shape(1)[1:]) if shape is None else list(shape),
        **more,
    }


def _inputs(config: Config) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec.from_json(value) for value in config["inputs"])


def _conditioning(config: Config) -> Conditioning:
    if "conditioning" in config:
        return Conditioning.from_json(config["conditioning"])
    further = _inputs(config)[2:]
    return Conditioning("tensors", tensors=further) if further else Conditioning()


def _shape(config: Config) -> tuple[int, ...]:
    return tuple(config["shape"])


def _learned_variance(config: Config) -> bool:
    return bool(config.get("learned_variance"))
