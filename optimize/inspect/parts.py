"""The networks in a folder or file: an artifact, a diffusers pipeline with all its parts, one of them, or a bare config.

A part knows its network's structure at once and loads its weights only when asked.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.architectures.components import COMPONENTS, Config, class_name, component, skeleton, with_weights
from optimize.errors import ArtifactError, UserError, unknown
from optimize.storage.trust import MANIFEST, checked
from optimize.storage.weights import read_json, weights_files

if TYPE_CHECKING:
    from torch import nn

    from optimize.diffusion.network import TensorSpec

ROLES = ("denoiser", "decoder", "text encoder", "other")


@dataclass(frozen=True)
class Part:
    """One network. `skeleton()` is it on the meta device with what it is fed; `load()` the one with weights, None where
    there are none. A part of a class that is not known has neither: only `params`, from its weights file."""

    name: str
    role: str
    class_name: str
    inputs: tuple[TensorSpec, ...] = ()
    skeleton: Callable[[], nn.Module] | None = None
    load: Callable[[], nn.Module] | None = None
    formats: dict[str, str] | None = None  # of quantized modules
    params: int | None = None
    note: str = ""


def parts(path: Path) -> list[Part]:
    """The networks in `path`, the denoiser first. Raises UserError where there is none, or one that stands alone is of a
    class that is not known; ArtifactError for a malformed file."""
    if path.is_file():
        return [_single(path.stem, path, None)]
    if (path / MANIFEST).is_file() and (path / "structure.json").is_file():
        return [_artifact(path)]
    if (path / "config.json").is_file():
        return [_single(path.name, path / "config.json", path)]
    configs = sorted(path.glob("*/config.json")) if path.is_dir() else []
    found = [part for config in configs if (part := _of_pipeline(config)) is not None]
    if not any(part.skeleton for part in found):
        raise UserError(_nothing(path, found))
    return sorted(found, key=lambda part: ROLES.index(part.role))


def _nothing(path: Path, found: list[Part]) -> str:
    if not path.exists():
        said = "no such file or folder"
    elif found:
        said = f"none of its networks is known ({', '.join(p.class_name for p in found)}); known are {', '.join(sorted(COMPONENTS))}"
    else:
        said = "no model in it"
    return (
        f"{path}: {said}. Give an artifact folder (manifest.json), a pipeline folder of diffusers (unet/config.json), "
        "a folder with a config.json, or a config.json alone."
    )


def _artifact(folder: Path) -> Part:
    from optimize.architectures.artifact import architecture_module, load_model
    from optimize.architectures.known import architecture
    from optimize.quantization.fake_quant import formats
    from optimize.registry import PASSES

    structure = read_json(checked(folder, "structure.json"))

    def edited() -> nn.Module:
        import torch

        with torch.device("meta"):
            module = architecture_module(structure)
        for edit in structure["edits"]:
            module = PASSES.get(edit["pass"]).restore(module, edit["record"])
        return module.eval().requires_grad_(False)

    name, tables = structure["architecture"], [e["record"].get("quantizers", ()) for e in structure["edits"]]
    inputs = architecture(name).inputs(structure["config"])
    note = "Quantizers are emulated by torch: measured times are longer than an engine's." if any(tables) else ""
    rows = [row for table in tables for row in table]
    return Part(
        folder.name, "denoiser", name, inputs, edited, lambda: load_model(folder).module, formats(rows), note=note
    )


def _single(name: str, file: Path, folder: Path | None) -> Part:
    config = _config(file)
    given = class_name(config)
    if given not in COMPONENTS:
        raise unknown(f"{file}: architecture", given, COMPONENTS)
    return _known(name, config, folder)


def _config(file: Path) -> Config:
    config = read_json(file)
    if not isinstance(config, dict) or not class_name(config):
        raise ArtifactError(
            f"{file}: it names no class (_class_name or architectures). Give the config.json of a diffusers or transformers model."
        )
    return config


def _known(name: str, config: Config, folder: Path | None) -> Part:
    entry, there = component(class_name(config)), folder is not None and bool(weights_files(folder))
    module, inputs = skeleton(config)
    load = partial(with_weights, config, folder) if folder and there else None
    note = "" if there else "No weights as safetensors: nothing is measured."
    return Part(name, entry.role, class_name(config), inputs, lambda: module, load, note=note)


def _of_pipeline(file: Path) -> Part | None:
    """A part of a pipeline; one of an unknown class with its parameters alone, None where it holds no network."""
    config, folder = read_json(file), file.parent
    name = class_name(config) if isinstance(config, dict) else ""
    if name in COMPONENTS:
        return _known(folder.name, config, folder)
    if not name:
        return None
    weights = weights_files(folder)
    note = f"{name} is not known here: its parameters are counted, nothing else."
    return Part(folder.name, "other", name, params=sum(map(stored_elements, weights)) if weights else None, note=note)


def stored_elements(file: Path) -> int:
    """Elements of all tensors of a safetensors file, from its header alone. Raises ArtifactError where it has none."""
    try:
        with file.open("rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
    except (OSError, struct.error, ValueError) as error:
        raise ArtifactError(f"{file}: not a whole safetensors file ({error}). Copy or download it again.") from error
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
