"""How engines are asked for: the fields that both TensorRT exporters share. Torch-free."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from optimize.configs import Config

Flag = Literal[
    "refit",
    "refit_identical",
    "refit_individual",
    "strip_weights",
    "stream_weights",
    "version_compatible",
    "sparse_weights",
]
Size = Annotated[int, Field(ge=1)]


class EngineSettings(Config):
    """Which engines are built from an artifact's ONNX file, and how."""

    targets: Annotated[tuple[str, ...], Field(min_length=1)] = ("here",)
    """Device classes: a100, rtx3090, …, or sm120."""
    batch: Annotated[tuple[Size, ...], Field(min_length=1)] = (1, 4, 16)
    """Batch sizes of calls in use; a recipe's own by default."""
    best_batch: Size | None = None
    """Batch size that engines are tuned for; by default the largest."""
    sizes: dict[str, tuple[Size, ...]] = Field(default_factory=dict)
    """Sizes in use of other symbolic dimensions: {H: [64, 96]}."""
    exact: bool = False
    """A further profile tuned for every combination of the sizes."""
    flags: tuple[Flag, ...] = ()
    """Flags of TensorRT's; the ones a module refuses are refused by name."""
    hardware_compatible: bool = False
    """TensorRT: one engine for every GPU from SM 8.0 on, at some cost."""
    tf32: bool = False
    """FP32 layers may round their inputs to TF32, as TensorRT does unasked."""
    level: Annotated[int, Field(ge=0, le=5)] = 3
    """How long TensorRT looks for faster kernels, 0 to 5."""
    workspace_gb: Annotated[float, Field(gt=0)] = 4.0
    """Largest scratch memory of a kernel on the GPU, in GB."""
    memory_gb: Annotated[float, Field(gt=0)] | None = None
    """GB of memory that a build may take at most; by default 90 % of what is free."""
    minutes: Annotated[float, Field(gt=0)] = 60.0
    """Minutes that a build may take at most."""
    precision_lost: Literal["error", "warn"] = "error"
    """What happens where the engine computes wider than the graph asks."""
    timing_cache: Path | None = None
    """Folder of measured kernels; by default one in the user's cache folder."""

    not_content: ClassVar[frozenset[str]] = frozenset({"timing_cache"})  # it grows, and an engine is kept as it is
