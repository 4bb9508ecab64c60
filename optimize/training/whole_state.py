"""A checkpoint of a training is taken up whole or not at all: weights, their average, and the optimizer's moments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.storage.accounting import refuse_gaps

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = "adam/"  # of the parameters that had a gradient so far, which need not be all


def refuse_incomplete(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], parameters: Iterable[str], where: Path
) -> None:
    """Raise ArtifactError naming what a checkpoint's `tensors` lack, hold too much of, or in another shape, beside a run's
    `own` state and the moments of its `parameters`."""
    wanted = {k: v.shape for k, v in own.items() if not k.startswith(MOMENTS)}
    known = {f"{MOMENTS}{k}" for k in parameters}
    odd = [k for k in tensors if k not in wanted and k.rpartition("/")[0] not in known]
    shaped = [k for k, shape in wanted.items() if k in tensors and tensors[k].shape != shape]
    missing = [k for k in wanted if k not in tensors]
    refuse_gaps({"missing": missing, "unexpected": odd, "of another shape": shaped}, "the state of a training", where)
