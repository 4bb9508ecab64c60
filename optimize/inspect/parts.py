"""The networks in a folder or file: an artifact, a diffusers pipeline with all its parts, one of them, or a bare config.

A part knows its network's structure at once and loads its weights only when asked.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.architectures.components import COMPONENTS, Config, class_name, component, skeleton, with_weights
from optimize.architectures.original import is_single, part_weights
from optimize.architectures.recognized import recognized
from optimize.errors import ArtifactError, UserError, unknown
from optimize.storage.accounting import fit
from optimize.storage.trust import MANIFEST, checked
from optimize.storage.variants import weights_files, weights_of
from optimize.storage.weights import header, read_json, refuse_pickle

if TYPE_CHECKING:
    from torch import nn

    from optimize.diffusion.network import TensorSpec
    from optimize.storage.variants import Weights

WEIGHTS = "model.safetensors"  # of an artifact
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


def parts(path: Path, config: Path | None = None) -> list[Part]:
    """The networks in `path`, the denoiser first; those of a checkpoint in one file with the folder `config` of its
    pipeline's configs. Raises UserError where there is none, or one that stands alone is of a class that is not known;
    ArtifactError for a malformed file, and where the headers of weights do not fit their network."""
    single = is_single(path)
    if config is not None and not single:
        raise UserError(
            f"--config: {config}: for a checkpoint in one .safetensors file, and {path} is none. Leave it out."
        )
    if single and config is None:
        raise ArtifactError(recognized(path))
    if path.is_file() and not single:
        refuse_pickle(path)
        return [_single(path.stem, path, None)]
    if (path / MANIFEST).is_file() and (path / "structure.json").is_file():
        return [_artifact(path)]
    if (path / "config.json").is_file():
        return [_single(path.name, path / "config.json", path)]
    folder = config or path
    configs = sorted(folder.glob("*/config.json")) if folder.is_dir() else []
    found = [part for file in configs if (part := _of_pipeline(file, path if single else None)) is not None]
    if not any(part.skeleton for part in found):
        raise UserError(_nothing(folder, found))
    if single and not any(part.load for part in found):
        raise ArtifactError(recognized(path))
    return sorted(found, key=lambda part: ROLES.index(part.role))


def _nothing(path: Path, found: list[Part]) -> str:
    if not found:
        return recognized(path)
    shown = ", ".join(sorted({p.class_name[:60] for p in found})[:10])
    return (
        f"{path}: none of its networks is known ({shown}); known are {', '.join(sorted(COMPONENTS))}. Give an artifact folder "
        "(manifest.json), a pipeline folder of diffusers (unet/config.json), a folder with a config.json, or a config.json alone."
    )


def _artifact(folder: Path) -> Part:
    from optimize.architectures.artifact import architecture_module, as_written, load_model
    from optimize.architectures.bounded import on_meta
    from optimize.architectures.known import architecture
    from optimize.quantization.fake_quant import formats
    from optimize.registry import PASSES

    structure = read_json(checked(folder, "structure.json"))

    def edited() -> nn.Module:
        module = on_meta(lambda: architecture_module(structure), structure["config"], str(folder / "structure.json"))
        with as_written(folder):
            for edit in structure["edits"]:
                module = PASSES.get(edit["pass"]).restore(module, edit["record"])
        module = module.eval().requires_grad_(False)
        if os.path.lexists(folder / WEIGHTS):
            fit(module, header(folder / WEIGHTS), folder / WEIGHTS)
        return module

    with as_written(folder):
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
        said = f" {recognized(folder)}" if folder else ""
        raise UserError(f"{unknown(f'{file}: architecture', given[:60], COMPONENTS)}{said}")
    return _known(name, config, weights_of(folder) if folder and weights_files(folder) else None)


def _config(file: Path) -> Config:
    config = read_json(file)
    if not isinstance(config, dict) or not class_name(config):
        raise ArtifactError(
            f"{file}: it names no class (_class_name or architectures). Give the config.json of a diffusers or transformers model."
        )
    return config


def _known(name: str, config: Config, weights: Weights | None) -> Part:
    entry = component(class_name(config))
    module, inputs = skeleton(config, weights)
    load = partial(with_weights, config, weights) if weights else None
    note = "" if weights else "No weights as safetensors: nothing is measured."
    return Part(name, entry.role, class_name(config), inputs, lambda: module, load, note=note)


def _of_pipeline(file: Path, checkpoint: Path | None) -> Part | None:
    """A part of a pipeline, its weights out of the checkpoint where it is in that; one of an unknown class with its
    parameters alone, None where it holds no network."""
    config, folder = read_json(file), file.parent
    name = class_name(config)
    files = weights_files(folder)
    if name in COMPONENTS:
        inside = part_weights(checkpoint, folder.name, name, config) if checkpoint else None
        return _known(folder.name, config, inside or (weights_of(folder) if files else None))
    if not name:
        return None
    note = f"{name} is not known here: its parameters are counted, nothing else."
    return Part(folder.name, "other", name, params=sum(map(stored_elements, files)) if files else None, note=note)


def stored_elements(file: Path) -> int:
    """Elements of all tensors of a safetensors file, from its header alone. Raises ArtifactError where it has none."""
    return sum(math.prod(about.shape) for about in header(file).values())
