"""LPIPS (Zhang et al., arXiv 1801.03924): distance of deep features, channel by channel weighted as people judge it.

d = sum over layers of the spatial mean of w_l · (y_l / |y_l| - y'_l / |y'_l|)², equation 1. Backbones AlexNet and VGG16, told
apart by their first convolution. Weights keep the names of the `lpips` package, as safetensors; torchvision is not needed.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from optimize.errors import ArtifactError
from optimize.storage.accounting import load_state
from optimize.storage.variants import read_weights

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation for images in [-1, 1]
CUTS = {"alex": (0, 2, 5, 8, 10, 12), "vgg": (0, 4, 9, 16, 23, 30)}  # where torchvision's layers are cut into slices
WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
FIRST = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}
LEAST = 64  # smaller images are enlarged to this side


class Lpips(nn.Module):
    """Pairs of images (B,3,H,W) in [-1, 1] -> distances (B,)."""

    def __init__(self, backbone: str = "alex") -> None:
        super().__init__()
        layers, cuts = _layers(backbone), CUTS[backbone]
        self.net = nn.ModuleDict()
        for i, (start, end) in enumerate(pairwise(cuts)):
            self.net[f"slice{i + 1}"] = nn.ModuleDict({str(k): layers[k] for k in range(start, end)})
        for i, width in enumerate(WIDTHS[backbone]):
            self.add_module(
                f"lin{i}", nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})})
            )

    def forward(self, a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
        """Distance of each pair, 0 for equal images. Sides below 64 are enlarged bilinearly."""
        total = torch.zeros(len(a_BCHW), device=a_BCHW.device)
        for i, (a, b) in enumerate(zip(self._features(a_BCHW), self._features(b_BCHW))):
            weigh = self.get_submodule(f"lin{i}.model.1")
            total = total + weigh((_unit(a) - _unit(b)).square()).mean(dim=(1, 2, 3))
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        x = (x - x.new_tensor(SHIFT).view(1, 3, 1, 1)) / x.new_tensor(SCALE).view(1, 3, 1, 1)
        if min(x.shape[2:]) < LEAST:
            factor = LEAST / min(x.shape[2:])
            size = [max(LEAST, round(side * factor)) for side in x.shape[2:]]
            x = nn.functional.interpolate(x, size, mode="bilinear", align_corners=False)
        found = []
        for part in self.net.values():
            for layer in part.values():
                x = layer(x)
            found.append(x)
        return found

    @classmethod
    def load(cls, path: Path) -> Lpips:
        """From `path`, a safetensors file or a folder with model.safetensors. Raises ArtifactError for other weights."""
        file = path / "model.safetensors" if path.is_dir() else path
        tensors = read_weights([file])
        first = tensors.get("net.slice1.0.weight")
        backbone = FIRST.get(tuple(first.shape)) if first is not None else None
        if backbone is None:
            raise ArtifactError(
                f"{file}: not the weights of LPIPS on AlexNet or VGG16. Save `lpips.LPIPS(net='alex').state_dict()` as safetensors."
            )
        network = cls(backbone)
        load_state(network, tensors, file)
        return network.eval().requires_grad_(False)


def _unit(y_BCHW: Tensor) -> Tensor:
    """Each position's channels scaled to length one."""
    return y_BCHW / (1e-8 + y_BCHW.square().sum(1, keepdim=True)).sqrt()


def _layers(backbone: str) -> list[nn.Module]:
    """The convolutional layers of torchvision's AlexNet or VGG16, in its order."""
    if backbone == "vgg":
        return _vgg16()
    plan = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
    layers: list[nn.Module] = []
    for i, (before, after, kernel, stride, padding) in enumerate(plan):
        layers += [nn.MaxPool2d(3, 2)] if i in (1, 2) else []
        layers += [nn.Conv2d(before, after, kernel, stride, padding), nn.ReLU()]
    return layers


def _vgg16() -> list[nn.Module]:
    layers: list[nn.Module] = []
    before = 3
    for i, (width, count) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += [nn.MaxPool2d(2, 2)] if i else []
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return layers
