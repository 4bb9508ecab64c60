"""What a pass is given beside the model, and what a pass is (protocol)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from optimize.progress import Progress, silent

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optimize.diffusion.model import Model

log = logging.getLogger(__name__)


# (name, what the content depends on, write(folder)) -> a folder with that content, written at most once
Keep = Callable[[str, dict[str, Any], Callable[[Path], None]], Path]


@dataclass(frozen=True)
class Data:
    """Training samples (N,C,H,W) float32, in [-1, 1] or latents, with labels (N,) int64 where the model has classes, or
    `conditions`, tensors by input name with a row a sample. `told` gives the condition of rows of a model that is told
    tensors: see `conditioned`."""

    images: Tensor
    labels: Tensor | None = None
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    told: Callable[[Sequence[int]], Any] | None = None
    where: str = "context.data"  # the field that an error names

    def condition(self, rows: Tensor) -> Any:
        """What the samples in `rows` (B,) are conditioned on: labels (B,), tensors by name, or None."""
        if self.told is not None:
            return self.told(rows.tolist())
        return None if self.labels is None else self.labels[rows]


def conditioned(data: Data, model: Model) -> Data:
    """The data, checked against the model, with the conditions that it is told: the data's own, else the model's, else
    stand-ins. Raises UserError for samples, labels or conditions that are not the model's."""
    from optimize.diffusion.conditions import checked, rows

    data = _fitted(data, model)
    about = model.denoiser.conditioning
    if about.kind != "tensors":
        return data
    given = {**model.conditions, **checked(data.conditions, about, data.where, len(data.images))}
    missing = [spec.name for spec in about.tensors if spec.name not in given and spec.fill == "normal"]
    if missing:
        log.info("seeded normal numbers stand in for %s", ", ".join(missing))
    return replace(data, told=lambda indices: rows(about, given, indices))


def _fitted(data: Data, model: Model) -> Data:
    """The data as float32 with int64 labels, after both were found to be what the model takes."""
    from optimize.storage.dataset import check_shape, in_memory

    found = in_memory(data.images, data.labels, data.where, "latents" if model.limit is None else "images")
    check_shape(found, model.shape, model.limit is None)
    model.denoiser.conditioning.check_labels(found.labels, data.where)
    images, labels = data.images.float(), None if data.labels is None else data.labels.long()
    same = images is data.images and labels is data.labels
    return data if same else replace(data, images=images, labels=labels)


@dataclass(frozen=True)
class Context:
    """Everything a pass may use. `checkpoints` is this stage's folder for resumable state, None for no checkpoints."""

    seed: int = 0
    device: str = "cpu"
    data: Data | None = None
    teacher: Callable[[str], Model] | None = None  # "baseline" -> the untouched model with its guided sampler
    checkpoints: Path | None = None
    progress: Progress = silent
    keep: Keep | None = None  # where intermediate results are kept by content, None for nowhere
    measure: Callable[[Model], float] | None = None  # seconds a network call on the target's runner
    quality: Callable[[Model], dict[str, Any]] | None = None


class Pass(Protocol):
    """A frozen config that maps Model to Model. Registered in `PASSES`; its file is named as it is.

    `requires`/`provides`/`refuses_after` are names of properties; the pipeline checks the order of a recipe with them.
    """

    name: ClassVar[str]
    requires: ClassVar[frozenset[str]]
    provides: ClassVar[frozenset[str]]
    refuses_after: ClassVar[dict[str, str]]  # property -> why this pass cannot come after a pass that provides it

    def apply(self, model: Model, context: Context) -> tuple[Model, dict[str, Any]]:
        """The new model (the old one untouched) and the record (JSON values) of what was done."""
        ...

    @staticmethod
    def restore(module: nn.Module, record: dict[str, Any]) -> nn.Module:
        """Redo the structural edit on a skeleton (possibly on the meta device) from its record."""
        ...
