"""Drift of same-seed images: PSNR, SSIM and LPIPS to the baseline's, relative L2 to a nearly exact solution.

PSNR and SSIM by torchmetrics; all image by image, so that the mean over images can be bootstrapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.quality.judges.lpips import Lpips

RANGE = 2.0  # images lie in [-1, 1]
IDENTICAL_DB = 100.0  # what equal images count as, since their PSNR is infinite


def psnr_db(images: Tensor, baseline: Tensor) -> np.ndarray:
    """(N,) peak signal-to-noise ratio of each image in dB, at most 100."""
    from torchmetrics.functional.image import peak_signal_noise_ratio

    value = peak_signal_noise_ratio(
        images.double(),
        baseline.double(),
        data_range=RANGE,
        reduction="none",
        dim=tuple(range(1, images.dim())),
    )
    return value.clamp(max=IDENTICAL_DB).numpy()


def ssim(images: Tensor, baseline: Tensor) -> np.ndarray:
    """(N,) structural similarity of each image (Gaussian window of 11 pixels, sigma 1.5), at most 1."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    value = structural_similarity_index_measure(images, baseline, data_range=RANGE, reduction="none")
    return value.double().reshape(-1).numpy()


def lpips(network: Lpips, images: Tensor, baseline: Tensor, batch: int = 50) -> np.ndarray:
    """(N,) perceptual distance of each image; grey is repeated to colour."""
    import torch

    from optimize.quality.judges.preprocess import rgb

    with torch.inference_mode():
        pairs = zip(images.split(batch), baseline.split(batch))
        return torch.cat([network(rgb(a.float()), rgb(b.float())) for a, b in pairs]).double().numpy()


def endpoint_error(images: Tensor, endpoint: Tensor) -> float:
    """|images - endpoint| / |endpoint| over all images."""
    return float(relative_l2(*squares(images, endpoint), np.ones((1, len(images))))[0])


def squares(images: Tensor, endpoint: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(N,) |images - endpoint|² and (N,) |endpoint|² of each image."""
    a, b = images.double().flatten(1), endpoint.double().flatten(1)
    return (a - b).square().sum(1).numpy(), b.square().sum(1).numpy()


def relative_l2(error_N: np.ndarray, size_N: np.ndarray, counts_RN: np.ndarray) -> np.ndarray:
    """(R,) sqrt(sum of errors / sum of sizes) over resampled images."""
    return np.sqrt((counts_RN @ error_N) / (counts_RN @ size_N))
