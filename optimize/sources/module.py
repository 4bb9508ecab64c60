"""Any nn.Module by import path, with weights from a safetensors file, becomes a Model.

The path comes from the recipe, and its code is run: an artifact made of it loads only where the path is allowed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.configs import DESCRIBED, digest
from optimize.errors import ArtifactError, UserError
from optimize.registry import SOURCES
from optimize.storage.accounting import load_state
from optimize.storage.variants import read_weights
from optimize.storage.weights import file_sha256

if TYPE_CHECKING:
    from optimize.diffusion.denoiser import Conditioning
    from optimize.diffusion.model import Model
    from optimize.diffusion.sampling import Sampler


@SOURCES.register("module")
@dataclass(frozen=True)
class ModuleSource:
    """Any nn.Module with its weights."""

    __pydantic_config__ = DESCRIBED

    path: Path
    """The file of weights."""
    sha256: str | None = None
    """Hash that the file must have."""
    conditions: Path | None = None
    """File of conditions (see `optimize.diffusion.conditions`); without it seeded ones stand in."""
    network: str = ""
    """Import path `package.module:Class` of the network."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """What the class is called with."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """{name: dims}, or {name: {dims, dtype, sizes, fill}}: the latents first, then the time."""
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    """A scheduler config of diffusers."""

    classes: int | None = None
    """How many of the labels that an int64 input class_labels takes are classes, from 0 on; by default all but the null."""
    null_class: int | None = None
    """The label that means no class, where one was trained; guidance needs it."""

    def __post_init__(self) -> None:
        from optimize.architectures.any_module import allow_import

        if self.network:
            allow_import(self.network)  # the user named it; workers of the same run may build it as well

    def fingerprint(self) -> dict[str, str]:
        """Content of the source: hash of the weights and of what says how they are used."""
        about = [self.network, dict(self.arguments), dict(self.inputs), dict(self.scheduler)]
        given = {"conditions": file_sha256(self.conditions)} if self.conditions else {}
        said = {"classes": self.classes, "null_class": self.null_class}
        given |= {name: str(value) for name, value in said.items() if value is not None}
        return {self.path.name: file_sha256(self.path), "network": digest(about), **given}

    def load(self, sampler: Sampler) -> Model:
        """The Model in evaluation mode, float32, on the CPU. Raises UserError for what is missing, ArtifactError where
        the weights do not fit."""
        from optimize.architectures.any_module import PREFIX, described
        from optimize.architectures.assembled import assembled
        from optimize.architectures.known import architecture
        from optimize.diffusion import conditions

        if not self.network or len(self.inputs) < 2:
            raise UserError(
                "source: kind module needs network (package.module:Class) and inputs (name: dims; the latents first, "
                "then the time), e.g. {sample: [B, 3, 32, 32], timestep: [B]}."
            )
        tensors = read_weights([self.path])
        if self.sha256 and file_sha256(self.path) != self.sha256:
            raise ArtifactError(f"source.sha256: {self.path} is not the file the recipe expects.")
        name = PREFIX + self.network
        config = described(dict(self.inputs), arguments=dict(self.arguments))
        entry = architecture(name)
        module = entry.build(config)
        load_state(module, tensors, self.path)
        conditioning = self._with_classes(entry.conditioning(config))
        latents = entry.inputs(config)[0]
        given = conditions.read(self.conditions, conditioning, latents=latents) if self.conditions else {}
        about = {"kind": "module", "files": self.fingerprint(), "weights_bytes": self.path.stat().st_size}
        noise = dict(self.scheduler)
        more: dict[str, Any] = {"source": about, "conditions": given, "conditioning": conditioning}
        return assembled(name, config, noise, sampler, module=module.float(), **more)

    def _with_classes(self, found: Conditioning) -> Conditioning:
        """The conditioning with the classes that are said; a module has as many labels as they need."""
        from optimize.diffusion.denoiser import CLASS

        takes = any(spec.name == CLASS and spec.dtype == "int64" for spec in found.tensors)
        if self.classes is None and self.null_class is not None and takes:
            raise UserError(
                "source.classes: missing. A module with a null_class needs the number of its classes as well."
            )
        if self.classes is None or not takes:
            return found.named(self.classes, self.null_class)
        rows = self.classes if self.null_class is None else max(self.classes, self.null_class) + 1
        return replace(found, classes=rows).named(self.classes, self.null_class)
