"""Trains the two networks that judge the digits: a feature network (FD, KID) and an independent classifier.

They differ in architecture and seed, and see the training scans only. `python -m examples.digits.train_metrics`
"""

import argparse
import os
from pathlib import Path

import torch
from torch.nn import functional as F

from examples.digits import data
from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig

FOLDER = Path(__file__).parent
NETWORKS = {  # name: (architecture, seed)
    "features": (ImageClassifierConfig(widths=(24, 48), kernel=3, feature_dim=64, dropout=0.1), 1),
    "classifier": (ImageClassifierConfig(widths=(32, 64, 96), kernel=3, grid=1, feature_dim=96, dropout=0.3), 2),
}
BATCH = 64


def main() -> None:
    """Writes `features/` and `classifier/` beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, (config, seed) in NETWORKS.items():
        model = train(config, seed, options.epochs)
        model.save(FOLDER / name)
        print(f"{name}: held-out accuracy {accuracy(model, *data.load('held_out')):.4f}", flush=True)


def train(config: ImageClassifierConfig, seed: int, epochs: int) -> ImageClassifier:
    """AdamW with one cycle of the learning rate, label smoothing 0.05 and augmented images."""
    torch.manual_seed(seed)
    images, labels = data.load("training")
    model = ImageClassifier(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, epochs * batches)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images))[: batches * BATCH].view(batches, BATCH):
            logits = model(augment(images[chosen]))
            F.cross_entropy(logits, labels[chosen], label_smoothing=0.05).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval()


def augment(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Shifts, rotates and scales a little, each image its own way, and adds noise."""
    count = len(x_BCHW)
    angle = (torch.rand(count) - 0.5) * 0.3  # radians
    scale = 1 + (torch.rand(count) - 0.5) * 0.16
    shift = (torch.rand(count, 2) - 0.5) * 0.25  # 1 is half the image: up to one pixel of 16
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(x_BCHW.shape), align_corners=False)
    moved = F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)
    return moved + 0.1 * torch.rand(count, 1, 1, 1) * torch.randn_like(moved)


@torch.no_grad()
def accuracy(model: ImageClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images classified as labelled, in [0, 1]."""
    return (model(images).argmax(1) == labels).double().mean().item()


if __name__ == "__main__":
    main()
