"""A folder in stock diffusers layout (model_index.json, unet/, scheduler/) becomes a Model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError, unknown
from optimize.registry import SOURCES
from optimize.weights import file_sha256, load_state, read_json, read_tensors

if TYPE_CHECKING:
    from optimize.model import Model
    from optimize.sampling import Sampler

WEIGHTS = "diffusion_pytorch_model.safetensors"


@SOURCES.register("diffusers")
@dataclass(frozen=True)
class DiffusersSource:
    """`path`: the pipeline folder. `sha256`: expected hash of the weights file, checked before loading."""

    path: Path
    sha256: str | None = None

    def fingerprint(self) -> dict[str, str]:
        """Content of the source: hash of every file that is read."""
        files = [self.weights, self.path / "unet" / "config.json", self.path / "scheduler" / "scheduler_config.json"]
        for file in files:
            if not file.is_file():
                read_tensors(file) if file.suffix == ".safetensors" else read_json(file)
        return {str(f.relative_to(self.path)): file_sha256(f) for f in files}

    @property
    def weights(self) -> Path:
        """The weights file."""
        return self.path / "unet" / WEIGHTS

    def load(self, sampler: Sampler) -> Model:
        """The Model in evaluation mode, float32, on the CPU."""
        from optimize import parameterization, schedule
        from optimize.denoiser import Denoiser
        from optimize.model import Model, Structure
        from optimize.models.architectures import ARCHITECTURES, architecture
        from optimize.network import TorchNetwork

        if not self.path.is_dir():
            raise ArtifactError(
                f"source.path: {self.path} is no folder. Give a folder in diffusers layout (unet/, scheduler/)."
            )
        config = read_json(self.path / "unet" / "config.json")
        name = config.get("_class_name", "")
        if name not in ARCHITECTURES:
            raise unknown(f"{self.path}/unet/config.json: _class_name", name, ARCHITECTURES)
        entry, tensors = architecture(name), self._tensors()
        module = entry.build(config)
        load_state(module, tensors, self.weights)
        noise = read_json(self.path / "scheduler" / "scheduler_config.json")
        denoiser = Denoiser(
            TorchNetwork(module.eval().requires_grad_(False), entry.inputs(config)),
            parameterization.from_diffusers(noise),
            schedule.from_diffusers(noise),
            entry.conditioning(config),
        )
        return Model(denoiser, sampler, Structure(name, config), entry.shape(config), source=self._about())

    def _tensors(self) -> dict[str, Any]:
        tensors = read_tensors(self.weights)
        if self.sha256 and file_sha256(self.weights) != self.sha256:
            raise ArtifactError(
                f"source.sha256: {self.weights} has hash {file_sha256(self.weights)}, the recipe expects {self.sha256}. "
                "Use the checkpoint the recipe was written for, or correct the recipe."
            )
        return tensors

    def _about(self) -> dict[str, Any]:
        return {"kind": "diffusers", "files": self.fingerprint(), "weights_bytes": self.weights.stat().st_size}
