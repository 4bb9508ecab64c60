"""A folder in stock diffusers layout (unet/ or transformer/, scheduler/) becomes a Model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.configs import DESCRIBED
from optimize.errors import ArtifactError, UserError, unknown
from optimize.registry import SOURCES
from optimize.storage.weights import file_sha256, load_state, read_json, read_tensors, read_weights, weights_files

if TYPE_CHECKING:
    from optimize.diffusion.model import Model
    from optimize.diffusion.sampling import Sampler

WEIGHTS = "diffusion_pytorch_model.safetensors"
NETWORKS = ("unet", "transformer")  # folders that hold the denoiser


@SOURCES.register("diffusers")
@dataclass(frozen=True)
class DiffusersSource:
    """A pipeline's folder: its denoiser and scheduler."""

    __pydantic_config__ = DESCRIBED

    path: Path
    """The pipeline's folder."""
    sha256: str | None = None
    """Hash that the weights file must have, checked before loading."""
    conditions: Path | None = None
    """File of conditions (see `optimize.diffusion.conditions`); without it seeded ones stand in."""
    controlnet: bool = False
    """The U-Net is fed a ControlNet's residuals."""

    classes: int | None = None
    """How many of the network's labels are classes, from 0 on; by default all but the null one."""
    null_class: int | None = None
    """The label that means no class, where one was trained; guidance needs it."""

    def fingerprint(self) -> dict[str, str]:
        """Content of the source: hash of every file that is read."""
        files = [*self.files, self.network / "config.json", self.path / "scheduler" / "scheduler_config.json"]
        for file in files:
            if not file.is_file():
                read_tensors(file) if file.suffix == ".safetensors" else read_json(file)
        found = {str(f.relative_to(self.path)): file_sha256(f) for f in files}
        given = {"conditions": file_sha256(self.conditions)} if self.conditions and self.conditions.is_file() else {}
        return {**found, **given, **({"controlnet": "true"} if self.controlnet else {}), **self._said}

    @property
    def _said(self) -> dict[str, str]:
        """What is said of the classes."""
        said = {"classes": self.classes, "null_class": self.null_class}
        return {name: str(value) for name, value in said.items() if value is not None}

    @property
    def network(self) -> Path:
        """The denoiser's folder."""
        found = (self.path / name for name in NETWORKS if (self.path / name).is_dir())
        return next(found, self.path / NETWORKS[0])

    @property
    def files(self) -> list[Path]:
        """The weights: one file, or all shards."""
        return weights_files(self.network) or [self.network / WEIGHTS]

    def load(self, sampler: Sampler) -> Model:
        """The Model in evaluation mode, float32, on the CPU."""
        from optimize.architectures.assembled import assembled
        from optimize.architectures.known import ARCHITECTURES, architecture, hollow
        from optimize.diffusion import conditions

        if not self.path.is_dir():
            raise ArtifactError(
                f"source.path: {self.path} is no folder. Give a folder in diffusers layout (unet/, scheduler/)."
            )
        config = read_json(self.network / "config.json")
        name = config.get("_class_name", "")
        if name not in ARCHITECTURES:
            raise unknown(f"{self.network}/config.json: _class_name", name, ARCHITECTURES)
        self._check_hash()
        config, tensors = self._with_inputs(name, config), read_weights(self.network)
        module = hollow(name, config)
        load_state(module, tensors, self.files[0])
        noise = read_json(self.path / "scheduler" / "scheduler_config.json")
        about = architecture(name).conditioning(config).named(self.classes, self.null_class)
        given = conditions.read(self.conditions, about) if self.conditions else {}
        more: dict[str, Any] = {"source": self._about(), "conditions": given, "conditioning": about}
        return assembled(name, config, noise, sampler, module=module, **more)

    def _with_inputs(self, name: str, config: dict[str, Any]) -> dict[str, Any]:
        from optimize.architectures.known import with_controlnet

        if not self.controlnet:
            return config
        if name != "UNet2DConditionModel":
            raise UserError(f"source.controlnet: {name} takes no residuals here. Allowed for UNet2DConditionModel.")
        return with_controlnet(config)

    def _check_hash(self) -> None:
        if self.sha256 is None:
            return
        if len(self.files) > 1:
            raise UserError(
                f"source.sha256: the weights of {self.network} are {len(self.files)} files. Pin each one: pinned: {{path: hash}}."
            )
        read_tensors(self.files[0])
        found = file_sha256(self.files[0])
        if found != self.sha256:
            raise ArtifactError(
                f"source.sha256: {self.files[0]} has hash {found}, the recipe expects {self.sha256}. "
                "Use the checkpoint the recipe was written for, or correct the recipe."
            )

    def _about(self) -> dict[str, Any]:
        size = sum(file.stat().st_size for file in self.files)
        return {"kind": "diffusers", "files": self.fingerprint(), "weights_bytes": size}
