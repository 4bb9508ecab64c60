"""What judges, as frozen configs, torch-free: a feature network by folder, hub id or import path, and the figures asked for.

In a recipe a network is one line: `examples/digits/features`, `{dinov2: facebook/dinov2-large}`, `{import: my.module:network}`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, model_serializer, model_validator

from optimize.configs import Config
from optimize.errors import cut, did_you_mean, some

Kind = Literal["classifier", "inception", "dinov2", "clip", "import"]
Resize = Literal["tensorflow", "antialias"]
Metric = Literal[
    "fd",  # Fréchet distance in the features
    "kid",  # kernel distance
    "precision_recall",  # of k-nearest-neighbour manifolds, k = 3
    "density_coverage",  # the same idea, robust to outliers, k = 5
    "fd_per_class",  # FD within every class that has images enough
    "class_accuracy",  # by the classifier, where the model has classes
    "psnr",  # same seeds, against the baseline
    "ssim",
    "lpips",
    "clip_score",  # agreement with a prompt
    "endpoint_error",  # against nearly exact solutions
]
METRICS: tuple[str, ...] = get_args(Metric)
DEFAULT_METRICS: tuple[Any, ...] = ("fd", "kid", "class_accuracy", "psnr", "ssim", "endpoint_error")
KINDS: tuple[str, ...] = get_args(Kind)
TENSORFLOW = "bilinear as TensorFlow 1 resizes"
ABOUT = {
    "classifier": "the features of an image classifier, images as they are",
    "inception": f"2048 pooled features of FID's Inception; 8-bit values, 299 x 299 {TENSORFLOW}, (x - 128) / 128",
    "dinov2": "the class token after the last normalization; 224 x 224 bicubic with antialiasing, ImageNet's mean and deviation",
    "clip": "the projected image embedding; shorter side bicubic with antialiasing, middle square, CLIP's mean and deviation",
    "import": "a function of the user's own, images in [-1, 1] as they are",
}
_OPTIONS = ("revision", "resize")
_IMPORT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def _schema(schema: dict[str, Any]) -> None:
    """The form a recipe holds instead of the fields."""
    text, fields = {"type": "string"}, schema["properties"]
    where = {"classifier": "Folder", "import": "`package.module:name`"}
    kinds = {k: text | {"description": f"{where.get(k, 'Folder or hub id')}: {ABOUT[k]}."} for k in KINDS}
    kinds["import"]["pattern"] = f"^{_IMPORT.pattern}$"
    options = {k: {n: v for n, v in fields[k].items() if n not in ("title", "default")} for k in _OPTIONS}
    about = {k: schema[k] for k in ("title", "description")}
    schema.clear()
    schema.update(
        about | {"anyOf": [text | {"description": "Folder of an image classifier."}, *_named(kinds, options)]}
    )


def _named(kinds: dict[str, Any], options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An object a kind, with the options that it takes."""
    for kind, about in kinds.items():
        taken = {k: v for k, v in options.items() if k != "resize" or kind == "inception"}
        closed = {"type": "object", "required": [kind], "additionalProperties": False}
        yield closed | {"properties": {kind: about} | taken}


class FeatureNetwork(Config):
    """Images (N,C,H,W) in [-1, 1] -> features (N,D)."""

    model_config = ConfigDict(json_schema_extra=_schema)

    kind: Kind = "classifier"
    """What the network is."""
    source: Annotated[str, Field(min_length=1)]
    """Folder; for inception, dinov2 and clip also a hub id, `owner/name` (a folder is then `./owner/name`); for import `package.module:name`."""
    revision: str | None = None
    """Hub: branch, tag or commit. Import: change it when what the function loads changes."""
    resize: Resize = "tensorflow"
    """Inception: as FID is usually computed, or bilinear with antialiasing."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        """The fields of a folder or of `{kind: source, option: …}`."""
        if isinstance(value, str | Path):
            return {"source": str(value)}
        if not isinstance(value, dict) or "source" in value:
            return value
        for key in value:
            if key not in (*KINDS, *_OPTIONS):
                allowed = (*KINDS, *_OPTIONS)
                raise ValueError(
                    f'"{cut(str(key))}" is no feature network. Allowed: {", ".join(allowed)}.{did_you_mean(str(key), allowed)}'
                )
        kinds = [k for k in KINDS if k in value]
        if len(kinds) != 1:
            raise ValueError(
                f"one of {', '.join(KINDS)} is expected, given {', '.join(kinds) or 'none'}; or the folder of a classifier"
            )
        return {"kind": kinds[0], "source": value[kinds[0]], **{k: value[k] for k in _OPTIONS if k in value}}

    @model_validator(mode="after")
    def _fits(self) -> FeatureNetwork:
        if self.kind == "import" and not _IMPORT.fullmatch(self.source):
            raise ValueError(f'"{cut(self.source)}" is no import path. Give `package.module:name` of a callable')
        if self.resize != "tensorflow" and self.kind != "inception":
            raise ValueError(f"resize is an option of inception; {self.kind} has a resize of its own")
        return self

    @property
    def about(self) -> str:
        """How images reach the network and what is taken from it, in words; part of a summary, since it moves FD."""
        if self.kind == "inception" and self.resize == "antialias":
            return ABOUT["inception"].replace(TENSORFLOW, "bilinear with antialiasing")
        return ABOUT[self.kind]

    @property
    def on_hub(self) -> bool:
        """Whether the source is a hub id, `owner/name`. A folder is written another way: `./owner/name`."""
        plain = self.source.count("/") == 1 and not self.source.startswith((".", "/", "~"))
        return self.kind in ("inception", "dinov2", "clip") and plain and not self.source.endswith(".safetensors")

    def ambiguous(self, folder: Path = Path()) -> str:
        """What is wrong with a hub id where something of that name lies in `folder`; empty where nothing is."""
        if not self.on_hub or not os.path.lexists(folder / self.source):
            return ""
        return (
            f'"{cut(self.source)}" is a hub id, and {cut(str(folder / self.source))} is there as well. Write ./{cut(self.source)} '
            "for what is there; for the hub's, move that away."
        )

    def moved(self, move: Callable[[Path], Path]) -> FeatureNetwork:
        """A folder is moved; an import path and a hub id stay."""
        before = Path(self.source)
        if self.kind == "import" or self.on_hub or (path := move(before)) == before:
            return self
        moved = self.model_copy(update={"source": str(path)})
        return moved.model_copy(update={"source": f"./{path}"}) if moved.on_hub else moved

    @model_serializer
    def _write(self) -> Any:
        """The short form, which reads back to the same."""
        options = {k: v for k, v in (("revision", self.revision),) if v is not None}
        options |= {"resize": self.resize} if self.resize != "tensorflow" else {}
        return self.source if self.kind == "classifier" and not options else {self.kind: self.source} | options


def check_metrics(metrics: tuple[str, ...]) -> None:
    """ValueError for a figure that is not known, with the nearest name, or for a list without FD, which is gated."""
    for name in metrics:
        if name not in METRICS:
            raise ValueError(
                f'"{cut(str(name))}" is no metric. Allowed: {", ".join(METRICS)}.{did_you_mean(str(name), METRICS)}'
            )
    twice = [name for name in dict.fromkeys(metrics) if metrics.count(name) > 1]
    if twice:
        raise ValueError(f"{some(twice)} stands there twice. Give each figure once")
    if "fd" not in metrics:
        raise ValueError("fd is missing; a gate needs it. Add fd")
