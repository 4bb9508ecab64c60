"""A small convolutional image classifier: features for Fréchet and kernel distances, logits for accuracy.

Stages of two convolutions, each with batch normalization and SiLU, halving the resolution in between; then an
average over a coarse grid, a linear layer to the features and one to the logits.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, ValidationError, field_validator
from torch import Tensor, nn

from optimize.architectures.filled import filled
from optimize.configs import Config, described
from optimize.errors import ArtifactError
from optimize.storage.commit import write_text_atomically
from optimize.storage.disk import save_tensors
from optimize.storage.variants import weights_in
from optimize.storage.weights import read_json

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
Count = Annotated[int, Field(ge=1, le=65_536)]


class ImageClassifierConfig(Config):
    """Architecture of an `ImageClassifier`."""

    in_channels: Count = 1  # image channels, 1 or more
    widths: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)  # by stage; H, W halve between
    kernel: Count = 3  # side of the convolutions, odd
    grid: Count = 2  # side of the grid of averages in front of the features
    feature_dim: Count = 64  # D
    classes: Count = 10  # number of logits
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # on the activated features, during training

    @field_validator("kernel")
    @classmethod
    def _odd(cls, kernel: int) -> int:
        if kernel % 2 == 0:
            raise ValueError(f"kernel is {kernel}; give an odd number, so that images keep their size")
        return kernel


class ImageClassifier(nn.Module):
    """Images (B, C, H, W) in [-1, 1] -> logits (B, classes); `features` gives (B, D)."""

    def __init__(self, config: ImageClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ImageClassifierConfig()
        channels = (config.in_channels, *config.widths)
        self.stages = nn.ModuleList(_stage(before, after, config.kernel) for before, after in pairwise(channels))
        self.project = nn.Linear(config.widths[-1] * config.grid**2, config.feature_dim)
        self.classify = nn.Linear(config.feature_dim, config.classes)
        self.dropout = nn.Dropout(config.dropout)

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Features (B, D) in front of the last activation; unbounded, near Gaussian within a class."""
        h_BCHW = x_BCHW
        for index, stage in enumerate(self.stages):
            h_BCHW = stage(h_BCHW if index == 0 else nn.functional.avg_pool2d(h_BCHW, 2))
        return self.project(nn.functional.adaptive_avg_pool2d(h_BCHW, self.config.grid).flatten(1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, classes)."""
        return self.classify(self.dropout(nn.functional.silu(self.features(x_BCHW))))

    def save(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` into `folder`, which is created where missing."""
        folder = Path(folder)
        write_text_atomically(folder / CONFIG_FILE, json.dumps(self.config.to_json(), indent=2) + "\n")
        save_tensors({key: value.contiguous() for key, value in self.state_dict().items()}, folder / WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> ImageClassifier:
        """The classifier saved in `folder`, in evaluation mode, without gradients.

        Raises ArtifactError where a file is missing, unreadable or does not belong to the other.
        """
        config = cls.config_in(folder)
        model = filled(lambda: cls(config), config.to_json(), weights_in(Path(folder) / WEIGHTS_FILE))
        assert isinstance(model, cls)
        return model.to(device)

    @staticmethod
    def config_in(folder: str | Path) -> ImageClassifierConfig:
        """The architecture of the classifier in a folder; ArtifactError where it says none."""
        path = Path(folder) / CONFIG_FILE
        try:
            return ImageClassifierConfig.model_validate(read_json(path))
        except ValidationError as error:
            said = "; ".join(described(error, ImageClassifierConfig))
            raise ArtifactError(f"{path}: not the config of an image classifier: {said}") from error


def _stage(before: int, after: int, kernel: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (before, after):
        layers += [nn.Conv2d(channels, after, kernel, padding=kernel // 2, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.SiLU()]
    return nn.Sequential(*layers)
