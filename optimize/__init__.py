"""optimize: shrink trained diffusion models with composable passes, prove what it cost, export what a server loads.

`load`, `sample`, `apply`, `run`, `export`, `open_runner`, `compare` are the functions of the Python interface; the passes,
with the `Context` and `Data` they are given, are its classes. Each imports what it needs when it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
PASSES = ("Distill", "Prune", "Quantize", "Recover")
__all__ = [
    "Context",
    "Data",
    "Distill",
    "Prune",
    "Quantize",
    "Recover",
    "apply",
    "compare",
    "export",
    "load",
    "open_runner",
    "run",
    "sample",
]

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.diffusion.context import Context, Data
    from optimize.diffusion.model import Model
    from optimize.passes.distill import Distill
    from optimize.passes.prune import Prune
    from optimize.passes.quantize import Quantize
    from optimize.passes.recover import Recover


if not TYPE_CHECKING:  # a wrong name is an error to a type checker as well

    def __getattr__(name: str) -> Any:
        """A class of the interface, imported when it is first asked for."""
        if name in PASSES:
            from optimize import registry

            found = registry.PASSES.get(name.lower())
        elif name in __all__:
            from optimize.diffusion import context

            found = getattr(context, name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load(
    path: str | Path,
    steps: int = 50,
    cfg: float | None = None,
    config: str | Path | None = None,
    *,
    classes: int | None = None,
    null_class: int | None = None,
) -> Model:
    """The Model in an artifact folder, in a folder in diffusers layout, or in a checkpoint of one .safetensors file, whose
    pipeline's folder `config` is (the latter two sampled as their scheduler's config says, in `steps` with `cfg`).

    `null_class` is the label that means no class, where the network was trained with one, `classes` how many of the
    others are classes; an artifact holds both. Raises ArtifactError for what is missing, altered, truncated or pickled,
    UserError for labels the network does not have, and for `cfg` where no null is known.
    """
    from optimize.architectures.artifact import load_model
    from optimize.diffusion.sampling import Guidance, Sampler
    from optimize.errors import UserError
    from optimize.sources.diffusers import DiffusersSource
    from optimize.storage.trust import MANIFEST

    folder = Path(path)
    if (folder / MANIFEST).exists() and config is None:
        if classes is not None or null_class is not None:
            raise UserError(
                f"load: {folder} is an artifact, which holds its classes. Leave classes and null_class out."
            )
        return load_model(folder)
    configs = None if config is None else Path(config)
    source = DiffusersSource(folder, config=configs, classes=classes, null_class=null_class)
    return source.load(Sampler(steps=steps, guidance=Guidance(cfg=cfg)))


def sample(model: Model, seeds: Sequence[int], batch: int = 64) -> Tensor:
    """Images (N,C,H,W) float32 in [-1, 1], one a seed; a seed gives the same image in any batch."""
    return model.sample(seeds, batch)


def apply(model: Model, step: Any, context: Context | None = None) -> Model:
    """The model after one pass, e.g. `apply(model, Prune(budget={"macs": 0.4}), Context(data=...))`."""
    from optimize.diffusion.context import Context

    return step.apply(model, context or Context())[0]


def run(recipe: str, exported: str | Path = "exported") -> dict[str, Any]:
    """Carry out a recipe (a file or a built-in name) and return its summary; raises UserError for what cannot work."""
    from optimize.recipes.read import load as load_recipe
    from optimize.runs.execute import run as run_recipe

    return run_recipe(load_recipe(recipe), Path(exported))


def export(model: Model, out: str | Path, **onnx: Any) -> dict[str, Any]:
    """Write a model as the artifact `out` with `onnx/model.onnx`, compared with the network before anything is kept; returns
    the manifest. `onnx` are fields of the exporter: precision="fp16", symbolic=("B", "H", "W"), … (`optimize schema onnx`).

    Raises UserError for a wrong field or folder, GateFailed where the file computes something else."""
    from optimize.delivery.as_onnx import export_model, onnx_config

    return export_model(model, Path(out), onnx_config(onnx))


def open_runner(artifact: str | Path, name: str, **options: Any) -> Any:
    """A context manager around one backend on an artifact folder; inside it is a Network."""
    from optimize.diffusion.backend import open_runner as open_

    return open_(Path(artifact), name, **options)


def compare(a: str | Path, b: str | Path) -> dict[str, Any]:
    """What changed between two reports (run folders, measurements files or summary.json files), and whether it is more
    than noise; see `optimize.runs.comparison`."""
    from optimize.runs.comparison import compare as compare_reports

    return compare_reports(a, b)
