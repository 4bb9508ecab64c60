"""A Model to an artifact's files and back: `save_model` and `load_model`.

`storage/commit.py` brings the folder to disk, whole or not at all. Loading compares every file with the manifest (see
`optimize.storage.trust`), builds the registered architecture on the meta device, lets each structural pass redo its
edit from its record, and assigns tensors from safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.architectures.bounded import WRONG
from optimize.errors import ArtifactError, cut
from optimize.registry import PASSES
from optimize.storage.accounting import load_state
from optimize.storage.commit import write_json
from optimize.storage.disk import save_tensors
from optimize.storage.trust import checked, verify
from optimize.storage.weights import read_json, read_tensors

if TYPE_CHECKING:
    from optimize.diffusion.model import Model
    from optimize.diffusion.network import Network
    from optimize.diffusion.sampling import Sampler
    from optimize.diffusion.schedule import Schedule

CONDITIONS = "conditions.safetensors"


def save_model(folder: Path, model: Model) -> None:
    """Write model.safetensors, structure.json, sampler.json and, where there are, conditions.safetensors into `folder`
    (inside a `commit`)."""
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.module.state_dict().items()}
    save_tensors(tensors, folder / "model.safetensors")
    write_json(folder / "structure.json", model.structure.to_json())
    write_json(folder / "sampler.json", sampler_json(model))
    if model.conditions:
        save_tensors({k: v.cpu().contiguous().clone() for k, v in model.conditions.items()}, folder / CONDITIONS)


def sampler_json(model: Model) -> dict[str, Any]:
    """Everything a program needs to sample with the exported network and nothing of this library: see `steps`."""
    denoiser, sampler = model.denoiser, model.sampler
    return {
        "sampler": sampler.to_json(),
        "schedule": denoiser.schedule.to_json(),
        "parameterization": denoiser.parameterization.to_json(),
        "conditioning": denoiser.conditioning.to_json(),
        "shape": list(model.shape),
        "limit": model.limit,
        "nfe": model.nfe,
        **_path(sampler, denoiser.schedule),
    }


def _path(sampler: Sampler, schedule: Schedule) -> dict[str, Any]:
    """`steps`, the levels that the solver goes through; and, of a grid that a scheduler laid, where each step `arrives`
    where that is not the next, and the scales of the first and last state where they are not the ordinary ones."""
    from optimize.diffusion.sampling import OWN

    grid = schedule.along(sampler.times(schedule)) if sampler.solver == OWN else sampler.grid(schedule)
    placed = schedule.on(grid.levels)

    def level(t: float) -> dict[str, Any]:
        return {"t": t, "alpha": float(placed.alpha(t)), "sigma": float(placed.sigma(t))}

    steps = [level(t) for t in grid.times]
    for step, arrival, following in zip(steps, grid.arrivals, grid.times[1:]):
        step |= {"arrives": level(arrival)} if arrival != following else {}
    usual = schedule.along(np.asarray(grid.times))
    scales = {n: getattr(grid, n) for n in ("initial", "final") if getattr(grid, n) != getattr(usual, n)}
    return {"steps": steps, **scales}


def load_model(folder: Path) -> Model:
    """The Model saved in `folder`, evaluation mode, CPU. The folder's bytes are verified first."""
    manifest = verify(folder)
    structure, sampling = read_json(folder / "structure.json"), read_json(folder / "sampler.json")
    return rebuild(structure, sampling, folder / "model.safetensors", manifest)


def verify_network(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact that holds a network, its bytes verified; ArtifactError for what else has a manifest."""
    manifest = verify(folder)
    if missing := [name for name in ("structure.json", "sampler.json") if name not in manifest["files"]]:
        piped = manifest.get("kind") == "pipeline"
        what = "an exported pipeline, which optimum's pipelines load" if piped else "no network"
        raise ArtifactError(
            f"{folder}: {what} ({missing[0]} is not in it). Give an artifact of one network, such as exported/digits/final."
        )
    return manifest


def _conditions(folder: Path) -> dict[str, Any]:
    """The conditions kept with an artifact."""
    return read_tensors(folder / CONDITIONS) if (folder / CONDITIONS).is_file() else {}


def rebuild(structure: dict[str, Any], sampling: dict[str, Any], weights: Path, manifest: dict[str, Any]) -> Model:
    """Model from its parsed files."""
    from optimize.architectures.known import architecture
    from optimize.diffusion.network import TorchNetwork

    entry, config = architecture(structure["architecture"]), structure["config"]
    module = restore_module(structure, read_tensors(weights), weights)
    with as_written(weights.parent):
        network = TorchNetwork(module, entry.inputs(config))
    return _assemble(structure, sampling, network, manifest, weights.parent)


def model_around(folder: Path, network: Network) -> Model:
    """The Model of an artifact with `network`, e.g. a runner, in the place of its torch weights, which are not read.
    What is read is compared with the manifest first; ArtifactError where it differs."""
    structure, sampling = (read_json(checked(folder, name)) for name in ("structure.json", "sampler.json"))
    if (folder / CONDITIONS).is_file():
        checked(folder, CONDITIONS)
    return _assemble(structure, sampling, network, {}, folder)


def _assemble(
    structure: dict[str, Any],
    sampling: dict[str, Any],
    network: Network,
    manifest: dict[str, Any],
    folder: Path,
) -> Model:
    from optimize.diffusion import conditions
    from optimize.diffusion.denoiser import Conditioning, Denoiser
    from optimize.diffusion.model import Model, Structure
    from optimize.diffusion.parameterization import Parameterization
    from optimize.diffusion.sampling import Sampler
    from optimize.diffusion.schedule import Schedule

    with as_written(folder):
        told = Conditioning.from_json(sampling["conditioning"])
        denoiser = Denoiser(
            network,
            Parameterization(**sampling["parameterization"]),
            Schedule.from_json(sampling["schedule"]),
            told,
        )
        edits = Structure(structure["architecture"], structure["config"], tuple(structure["edits"]))
        return Model(
            denoiser,
            Sampler(**sampling["sampler"]),
            edits,
            tuple(sampling["shape"]),
            manifest.get("id") or "",
            manifest.get("source") or {},
            sampling.get("limit", 1.0),
            conditions.checked(_conditions(folder), told, str(folder / CONDITIONS)),
        )


@contextmanager
def as_written(folder: Path) -> Iterator[None]:
    """Whatever a field of the wrong kind, or one that is missing, raises inside is one ArtifactError."""
    try:
        yield
    except WRONG as error:
        reason = f"{type(error).__name__}: {cut(' '.join(str(error).split()), 300)}"
        raise ArtifactError(
            f"{folder}: what its files say does not fit together ({reason}). It was made by another version of optimize, or altered; copy or make it again."
        ) from error


def restore_module(structure: dict[str, Any], tensors: dict[str, Any], path: Path) -> Any:
    """Meta skeleton -> every edit redone by its pass -> tensors assigned; the module in evaluation mode."""
    from optimize.architectures.known import hollow

    with as_written(path.parent):
        module = hollow(structure["architecture"], structure["config"])
        for edit in structure["edits"]:
            module = PASSES.get(edit["pass"]).restore(module, edit["record"])
        load_state(module, tensors, path)
    return module.eval().requires_grad_(False)


def architecture_module(structure: dict[str, Any]) -> Any:
    """The unedited network of a structure."""
    from optimize.architectures.known import architecture

    return architecture(structure["architecture"]).build(structure["config"])
