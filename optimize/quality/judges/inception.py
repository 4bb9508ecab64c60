"""The Inception network that FID is defined with: the 2015 TensorFlow graph (Szegedy et al., arXiv 1512.00567) in torch.

It differs from the usual Inception V3: averages leave padding out, the last block pools by maximum, 1008 classes. Weights
keep the names of torch-fidelity and pytorch-fid, as safetensors; the network itself needs neither, nor torchvision.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from optimize.storage.accounting import load_state
from optimize.storage.variants import read_weights

SIDE, FEATURES = 299, 2048


class FidInception(nn.Module):
    """Images (B,3,299,299) in [-1, 1] -> pooled features (B,2048)."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = (BlockA(c, p) for c, p in ((192, 32), (256, 64), (288, 64)))
        self.Mixed_6a = BlockB()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (BlockC(c) for c in (128, 160, 160, 192))
        self.Mixed_7a = BlockD()
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, average=True), BlockE(2048, average=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Features (B,2048) in front of the classifier."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return F.adaptive_avg_pool2d(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))), 1).flatten(1)

    @classmethod
    def load(cls, path: Path) -> FidInception:
        """From `path`, a safetensors file or a folder with model.safetensors; the classifier `fc` is left out.

        Raises ArtifactError where the file is missing, pickled, or holds other tensors.
        """
        file = path / "model.safetensors" if path.is_dir() else path
        with torch.device("meta"):
            network = cls()
        load_state(network, read_weights([file]), file)
        return network.eval().requires_grad_(False)


class Conv(nn.Module):
    """Convolution, batch normalization, ReLU."""

    def __init__(self, before: int, after: int, kernel: int | tuple[int, int], stride: int = 1, padding: int | tuple[int, int] = 0) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C',H',W')."""
        return F.relu(self.bn(self.conv(x)))


def wide(before: int, after: int, side: int) -> Conv:
    """1 x side."""
    return Conv(before, after, (1, side), padding=(0, side // 2))


def tall(before: int, after: int, side: int) -> Conv:
    """side x 1."""
    return Conv(before, after, (side, 1), padding=(side // 2, 0))


def average(x: Tensor) -> Tensor:
    """3 x 3 means that do not count the padding."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class BlockA(nn.Module):
    """35 x 35."""

    def __init__(self, before: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(before, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(before, 48, 1), Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(before, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Branches side by side."""
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(average(x))], 1)


class BlockB(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3 = Conv(288, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(288, 64, 1), Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Branches side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """17 x 17, 768 channels."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = Conv(768, c, 1), wide(c, c, 7), tall(c, 192, 7)
        self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3 = Conv(768, c, 1), tall(c, c, 7), wide(c, c, 7)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = tall(c, c, 7), wide(c, 192, 7)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Branches side by side."""
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(average(x))], 1)


class BlockD(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(768, 192, 1), Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(768, 192, 1), wide(192, 192, 7)
        self.branch7x7x3_3, self.branch7x7x3_4 = tall(192, 192, 7), Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Branches side by side."""
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, F.max_pool2d(x, 3, stride=2)], 1)


class BlockE(nn.Module):
    """8 x 8; pools by average, or in the last block by maximum."""

    def __init__(self, before: int, average: bool) -> None:
        super().__init__()
        self.average = average
        self.branch1x1, self.branch3x3_1 = Conv(before, 320, 1), Conv(before, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = wide(384, 384, 3), tall(384, 384, 3)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(before, 448, 1), Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = wide(384, 384, 3), tall(384, 384, 3)
        self.branch_pool = Conv(before, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Branches side by side."""
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = average(x) if self.average else F.max_pool2d(x, 3, stride=1, padding=1)
        return torch.cat(
            [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single),
             self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)], 1
        )  # fmt: skip
