"""Measures the trained digits model and writes its card: `python -m examples.digits.evaluate`.

Writes `card.json` (every figure), `model/README.md` (the same figures as text) and `samples.png`.
"""

import argparse
import json
import os
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from scipy.linalg import sqrtm

from examples.digits import data
from examples.digits.card import markdown
from examples.digits.train import NULL_CLASS
from optimize.quality.judges.image_classifier import ImageClassifier
from optimize.storage.weights import file_sha256

FOLDER = Path(__file__).parent
SPLITS = 10  # random halvings of the scans
CLIPPING_IMAGES = 250  # images per variant in the comparison of clipping


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """DDIM (Song et al., 2021) without added noise."""

    steps: int = 50
    guidance: float = 0.5  # w in x^ = (1 + w) x^_cond - w x^_null; 0 leaves the null class out
    clip: bool = True  # x^ to [-1, 1]
    recompute_noise: bool = True  # e^ from the clipped x^; diffusers' scheduler does not by default
    batch: int = 250


def main() -> None:
    options = arguments()
    (options.output / "model").mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    network = UNet2DModel.from_pretrained(FOLDER / "model" / "unet").eval()
    noise = DDPMScheduler.from_pretrained(FOLDER / "model" / "scheduler")
    card = describe(network) | measure(network, noise.alphas_cumprod, options)
    (options.output / "card.json").write_text(json.dumps(rounded(card), indent=2) + "\n")
    (options.output / "model" / "README.md").write_text(markdown(rounded(card)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000, help="generated images, a multiple of 10")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--output", type=Path, default=FOLDER, help="where the card and the samples go")
    return parser.parse_args()


def describe(network: UNet2DModel) -> dict[str, Any]:
    """What the weights are and how they came about."""
    return {
        "network": {
            "class": "diffusers.UNet2DModel",
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "sha256": file_sha256(FOLDER / "model" / "unet" / "diffusion_pytorch_model.safetensors"),
            "null_class": NULL_CLASS,
        },
        "training": json.loads((FOLDER / "training.json").read_text()),
        "data": {
            "name": "Optical Recognition of Handwritten Digits (UCI), the part that scikit-learn ships",
            "authors": "E. Alpaydin, C. Kaynak",
            "doi": "10.24432/C50P49",
            "licence": "CC BY 4.0",
            "training_scans": len(data.load("training")[1]),
            "held_out_scans": len(data.load("held_out")[1]),
        },
    }


def measure(network: UNet2DModel, alphas_cumprod: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Generates and judges; every seed is fixed. Image i is of class i modulo 10."""
    judge, classifier = (ImageClassifier.load(FOLDER / name) for name in ("features", "classifier"))
    labels = torch.arange(options.images) % data.CLASSES
    guided = Sampling()
    started = time.perf_counter()
    images = {"guided": generate(network, alphas_cumprod, labels, guided)}
    seconds = time.perf_counter() - started
    images["unguided"] = generate(network, alphas_cumprod, labels, replace(guided, guidance=0.0))
    grid(images["guided"]).save(options.output / "samples.png")
    few = labels[:CLIPPING_IMAGES]
    variants = {
        "clipped, noise recomputed": images["guided"][: len(few)],
        "not clipped": generate(network, alphas_cumprod, few, replace(guided, clip=False)),
        "clipped, noise not recomputed": generate(network, alphas_cumprod, few, replace(guided, recompute_noise=False)),
    }
    return {
        "sampling": {"solver": "ddim", "images": options.images, "seconds_guided": seconds} | vars(guided),
        "fd": {name: distances(judge, x) for name, x in images.items()} | {"scans": scan_distances(judge)},
        "equal_count": half_distances(judge, images),
        "clipping": {name: distances(judge, x)["training"] for name, x in variants.items()} | {"images": len(few)},
        "class_accuracy": {name: class_accuracy(classifier, x, labels) for name, x in images.items()}
        | {"held_out": class_accuracy(classifier, *data.load("held_out"))},
        "memorization": {name: memorization(x) for name, x in images.items()},
    }


@torch.no_grad()
def generate(
    network: UNet2DModel, alphas_cumprod: torch.Tensor, labels: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    """Images (B, 1, 16, 16) in [-1, 1]; the noise of image i is that of seed i."""
    noise = torch.stack(
        [torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(len(labels))]
    )
    batches = zip(noise.split(sampling.batch), labels.split(sampling.batch))
    return torch.cat([ddim(network, alphas_cumprod, z, y, sampling) for z, y in batches])


def ddim(
    network: UNet2DModel, alphas_cumprod: torch.Tensor, z: torch.Tensor, y: torch.Tensor, sampling: Sampling
) -> torch.Tensor:
    """z_s = alpha_s x^ + sigma_s e^ over evenly spaced t from the last to "no noise" (eq. 12, eta = 0)."""
    count = len(alphas_cumprod)
    times = [round(count - i * count / sampling.steps) - 1 for i in range(sampling.steps)]
    levels = {t: (alphas_cumprod[t].sqrt(), (1 - alphas_cumprod[t]).sqrt()) for t in times}
    levels[-1] = (torch.tensor(1.0), torch.tensor(0.0))
    for t, s in pairwise([*times, -1]):
        (alpha, sigma), (alpha_s, sigma_s) = levels[t], levels[s]
        v = guided_v(network, z, t, y, sampling.guidance)
        x, e = alpha * z - sigma * v, sigma * z + alpha * v
        if sampling.clip:
            x = x.clamp(-1, 1)
            e = (z - alpha * x) / sigma if sampling.recompute_noise else e
        z = alpha_s * x + sigma_s * e
    return z.clamp(-1, 1)


def guided_v(network: UNet2DModel, z: torch.Tensor, t: int, y: torch.Tensor, w: float) -> torch.Tensor:
    """(1 + w) v_cond - w v_null, which is the same combination of x^, because x^ is affine in v."""
    if w == 0:
        return network(z, t, class_labels=y).sample
    both = torch.cat([y, torch.full_like(y, NULL_CLASS)])
    cond, null = network(torch.cat([z, z]), t, class_labels=both).sample.chunk(2)
    return (1 + w) * cond - w * null


def frechet(a_BD: torch.Tensor, b_BD: torch.Tensor) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^1/2), float64 (Heusel et al., 2017, eq. 6)."""
    a, b = a_BD.double().numpy(), b_BD.double().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.real(sqrtm(cov_a @ cov_b))
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(cov_a + cov_b - 2 * root))


@torch.no_grad()
def distances(judge: ImageClassifier, images: torch.Tensor) -> dict[str, float]:
    """FD to the held-out and to the training scans."""
    features = judge.features(images)
    return {name: frechet(features, judge.features(data.load(name)[0])) for name in ("held_out", "training")}


@torch.no_grad()
def scan_distances(judge: ImageClassifier) -> dict[str, float]:
    """The training scans in place of generated images: what a perfect model would be near."""
    return {"held_out": distances(judge, data.load("training")[0])["held_out"]}


@torch.no_grad()
def half_distances(judge: ImageClassifier, images: dict[str, torch.Tensor]) -> dict[str, Any]:
    """FD of one random half of all scans to the other half, to another as many generated images.

    Means and standard deviations over `SPLITS` halvings; the counts on both sides are equal.
    """
    scans = torch.cat([judge.features(data.load(name)[0]) for name in ("training", "held_out")])
    generated = {name: judge.features(x) for name, x in images.items()}
    count = min(len(scans) // 2, *map(len, generated.values()))
    found: dict[str, list[float]] = {name: [] for name in ("scans", *generated)}
    for seed in range(SPLITS):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(scans), generator=generator)
        one, other = scans[order[:count]], scans[order[count : 2 * count]]
        found["scans"].append(frechet(other, one))
        for name, features in generated.items():
            chosen = torch.randperm(len(features), generator=generator)[:count]
            found[name].append(frechet(features[chosen], one))
    spread = {name: {"mean": np.mean(values), "std": np.std(values, ddof=1)} for name, values in found.items()}
    return {"images": count, "splits": SPLITS} | spread


@torch.no_grad()
def class_accuracy(classifier: ImageClassifier, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Share of images that the classifier takes for the class asked for, overall and by class."""
    hits = (classifier(images).argmax(1) == labels).double()
    by_class = [hits[labels == digit].mean().item() for digit in range(data.CLASSES)]
    return {"mean": hits.mean().item(), "by_class": by_class}


def memorization(images: torch.Tensor) -> dict[str, float]:
    """Mean L2 distance to the nearest training scan, over the same of the held-out scans.

    Well below 1 would mean copies; `closest` is the smallest distance over the smallest of a held-out scan.
    """
    training, held_out = data.load("training")[0], data.load("held_out")[0]
    generated, unseen = nearest(images, training), nearest(held_out, training)
    return {
        "ratio": (generated.mean() / unseen.mean()).item(),
        "closest": (generated.min() / unseen.min()).item(),
        "generated": generated.mean().item(),
        "held_out": unseen.mean().item(),
    }


def nearest(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """(B,) L2 distance over all pixels to the nearest of `others`."""
    return torch.cdist(images.flatten(1).double(), others.flatten(1).double()).min(1).values


def grid(images: torch.Tensor, scale: int = 3, gap: int = 4) -> Image.Image:
    """The first hundred images, a column a class, enlarged without smoothing."""
    rows = images[:100, 0].add(1).mul(127.5).round().byte().numpy().repeat(scale, 1).repeat(scale, 2)
    padded = np.pad(rows, ((0, 0), (gap, 0), (gap, 0)), constant_values=64)
    lines = [np.concatenate(list(padded[i : i + 10]), axis=1) for i in range(0, len(padded), 10)]
    return Image.fromarray(np.pad(np.concatenate(lines), ((0, gap), (0, gap)), constant_values=64))


def rounded(value: Any) -> Any:
    """The same structure with floats at five significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
