"""A folder in stock diffusers layout (unet/ or transformer/, scheduler/), or a checkpoint in one file with a folder of
configs, becomes a Model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.configs import DESCRIBED
from optimize.errors import ArtifactError, UserError, unknown
from optimize.registry import SOURCES
from optimize.storage.variants import required_files, weights_files, weights_of
from optimize.storage.weights import file_sha256, header, read_json

if TYPE_CHECKING:
    from optimize.diffusion.model import Model
    from optimize.diffusion.sampling import Sampler
    from optimize.storage.variants import Weights

WEIGHTS = "diffusion_pytorch_model.safetensors"
NETWORKS = ("unet", "transformer")  # folders that hold the denoiser


@SOURCES.register("diffusers")
@dataclass(frozen=True)
class DiffusersSource:
    """A pipeline's folder: its denoiser and scheduler."""

    __pydantic_config__ = DESCRIBED

    path: Path
    """The pipeline's folder, or a checkpoint in one .safetensors file."""
    sha256: str | None = None
    """Hash that the weights file must have, checked before loading."""
    conditions: Path | None = None
    """File of conditions (see `optimize.diffusion.conditions`); without it seeded ones stand in."""
    controlnet: bool = False
    """The U-Net is fed a ControlNet's residuals."""
    config: Path | None = None
    """Of a checkpoint in one file: the folder of the pipeline whose configs belong to it."""
    classes: int | None = None
    """How many of the network's labels are classes, from 0 on; by default all but the null one."""
    null_class: int | None = None
    """The label that means no class, where one was trained; guidance needs it."""

    def fingerprint(self) -> dict[str, str]:
        """Content of the source: hash of every file that is read."""
        self._check_place()
        files = [*self.files, self.network / "config.json", self.folder / "scheduler" / "scheduler_config.json"]
        for file in files:
            if not file.is_file():
                header(file) if file.suffix == ".safetensors" else read_json(file)
        found = {self._named(f): file_sha256(f) for f in files}
        given = {"conditions": file_sha256(self.conditions)} if self.conditions and self.conditions.is_file() else {}
        return {**found, **given, **({"controlnet": "true"} if self.controlnet else {}), **self._said}

    @property
    def _said(self) -> dict[str, str]:
        """What is said of the classes."""
        said = {"classes": self.classes, "null_class": self.null_class}
        return {name: str(value) for name, value in said.items() if value is not None}

    def _named(self, file: Path) -> str:
        """A file by its place in the folder; a checkpoint in one file by its name."""
        return file.name if file == self.path else str(file.relative_to(self.folder))

    @property
    def folder(self) -> Path:
        """The folder with the configs."""
        return self.path if self.config is None else self.config

    @property
    def network(self) -> Path:
        """The denoiser's folder."""
        found = (self.folder / name for name in NETWORKS if (self.folder / name).is_dir())
        return next(found, self.folder / NETWORKS[0])

    @property
    def files(self) -> list[Path]:
        """The weights: one file, or all shards."""
        return [self.path] if self.path.is_file() else weights_files(self.network) or [self.network / WEIGHTS]

    def load(self, sampler: Sampler) -> Model:
        """The Model in evaluation mode, float32, on the CPU."""
        from optimize.architectures.assembled import assembled
        from optimize.architectures.bounded import as_errors, check_inputs
        from optimize.architectures.filled import config_of, filled
        from optimize.architectures.known import architecture
        from optimize.diffusion import conditions

        self._check_place()
        name, config = self._network_config()
        noise = read_json(self.folder / "scheduler" / "scheduler_config.json")
        self._check_hash()
        config, weights = self._with_inputs(name, config), self._weights(name, config, noise)
        entry, where = architecture(name), config_of(weights)
        with as_errors(config, where):
            check_inputs(entry.inputs(config), config, where)
            about = entry.conditioning(config)
        about = about.named(self.classes, self.null_class)
        module = filled(lambda: entry.build(config), config, weights)
        latents = entry.inputs(config)[0]
        given = conditions.read(self.conditions, about, latents=latents) if self.conditions else {}
        more: dict[str, Any] = {"source": self._about(), "conditions": given, "conditioning": about}
        return assembled(name, config, noise, sampler, module=module, **more)

    def _check_place(self) -> None:
        """Raise ArtifactError saying what the path is where it holds no network, and what to give instead."""
        from optimize.architectures.original import is_single
        from optimize.architectures.recognized import recognized

        single, held = is_single(self.path), (self.network / "config.json").is_file()
        if self.config is not None and not single:
            raise UserError(
                f"config: {self.config}: for a checkpoint in one .safetensors file, and {self.path} is none. Leave it out."
                if self.path.exists()
                else recognized(self.path)
            )
        if single and (self.config is None or not held):
            said = recognized(self.path) if self.config is None else recognized(self.folder)
            raise ArtifactError(said if self.config is None else f"config: {said}")
        if not held:
            raise ArtifactError(recognized(self.path))

    def _network_config(self) -> tuple[str, dict[str, Any]]:
        """(class, config) of the denoiser; ArtifactError where they are missing, UserError for a class not known."""
        from optimize.architectures.known import ARCHITECTURES

        config = read_json(self.network / "config.json")
        name = str(config.get("_class_name", ""))
        if name not in ARCHITECTURES:
            raise unknown(f"{self.network}/config.json: _class_name", name, ARCHITECTURES)
        return name, config

    def _weights(self, name: str, config: dict[str, Any], noise: Any) -> Weights:
        """The denoiser's, from its folder or out of the single file."""
        from optimize.architectures.original import check_schedule, part_weights
        from optimize.architectures.recognized import recognized

        if not self.path.is_file():
            return weights_of(self.network)
        found = part_weights(self.path, self.network.name, name, config)
        if found is None:
            raise ArtifactError(recognized(self.path))
        check_schedule(self.path, noise if isinstance(noise, dict) else {})
        return found

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
        required_files(self.network) if self.path.is_dir() else header(self.path)
        found = file_sha256(self.files[0])
        if found != self.sha256:
            raise ArtifactError(
                f"source.sha256: {self.files[0]} has hash {found}, the recipe expects {self.sha256}. "
                "Use the checkpoint the recipe was written for, or correct the recipe."
            )

    def _about(self) -> dict[str, Any]:
        size = sum(file.stat().st_size for file in self.files)
        return {"kind": "diffusers", "files": self.fingerprint(), "weights_bytes": size}
