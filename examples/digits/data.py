"""Handwritten digits at 16x16 in [-1, 1], split into training and held-out scans.

Source: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, UCI), the 1,797 scans that
scikit-learn ships. `python -m examples.digits.data` writes both files, byte for byte the same each time.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

FOLDER = Path(__file__).parent
CLASSES = 10
HELD_OUT_PER_CLASS = 18  # 180 of 1,797 scans: a tenth
SPLIT_SEED = 0


def main() -> None:
    """Writes `training.safetensors` and `held_out.safetensors` beside this file."""
    images, labels = scans()
    held_out = held_out_mask(labels)
    write(FOLDER / "training.safetensors", images[~held_out], labels[~held_out])
    write(FOLDER / "held_out.safetensors", images[held_out], labels[held_out])


def scans() -> tuple[torch.Tensor, torch.Tensor]:
    """All scans: images (B, 1, 16, 16) float32 in [-1, 1] and labels (B,) int64."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x_BHW = torch.from_numpy(digits.images).float() / 8 - 1
    x_BCHW = torch.nn.functional.interpolate(x_BHW[:, None], size=(16, 16), mode="bilinear", align_corners=False)
    return x_BCHW, torch.from_numpy(digits.target).long()


def held_out_mask(labels: torch.Tensor) -> torch.Tensor:
    """(B,) bool: the same number of scans of each class, by a seeded permutation."""
    random = np.random.default_rng(SPLIT_SEED)
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for digit in range(CLASSES):
        members = np.flatnonzero(labels.numpy() == digit)
        mask[random.permutation(members)[:HELD_OUT_PER_CLASS]] = True
    return mask


def write(path: Path, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Saves float16 images, which is exact: every pixel is a multiple of 1/128 in [-1, 1]."""
    half = images.half()
    if not torch.equal(half.float(), images):
        raise ValueError(f"float16 does not hold the images of {path.name} exactly; save float32")
    save_file({"images": half.contiguous(), "labels": labels.contiguous()}, path)


def load(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`training` or `held_out`: images (B, 1, 16, 16) float32 and labels (B,) int64."""
    tensors = load_file(FOLDER / f"{name}.safetensors")
    return tensors["images"].float(), tensors["labels"]


if __name__ == "__main__":
    main()
