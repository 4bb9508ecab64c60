"""The evaluator: images in, every quality figure out, each with a 95 % interval, and differences to the baseline.

Distances are to real scans in the features of one network, accuracy by another that never saw the features. Intervals
resample the generated images; the scans are taken as given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize import rng
from optimize.errors import OptimizeError, UserError
from optimize.quality import accuracy, bootstrap, drift, frechet, kernel
from optimize.weights import read_tensors

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.models.image_classifier import ImageClassifier

SETS = ("all", "held_out", "training")  # scans compared with; figures against "all" carry no suffix
LEAST = {"fd": 0.0, "class_accuracy": 0.0, "ssim": -1.0, "psnr_db": 0.0, "endpoint_error": 0.0}
MOST = {"class_accuracy": 1.0, "ssim": 1.0, "psnr_db": drift.IDENTICAL_DB}
Drawn = dict[str, tuple[float, np.ndarray]]  # figure -> (value, its replicates (R,))


@dataclass(frozen=True, eq=False)
class Judged:
    """Generated images (N,C,H,W), the classes asked for (N,), features (N,D) and predicted classes (N,).

    Keeps the replicates drawn from it, so a baseline judged once costs nothing the second time.
    """

    images: Tensor
    labels: np.ndarray | None
    features: np.ndarray
    predicted: np.ndarray
    drawn: dict[tuple[int, int], Drawn] = field(default_factory=dict, repr=False)


class Evaluator:
    """`features`, `classifier`: folders of an `ImageClassifier`; `held_out`, `training`: safetensors with `images`."""

    def __init__(
        self,
        features: Path,
        classifier: Path,
        held_out: Path,
        training: Path,
        replicates: int = 500,
        batch: int = 250,
    ) -> None:
        self._paths = {"features": Path(features), "classifier": Path(classifier)}
        self._scan_paths = {"held_out": Path(held_out), "training": Path(training)}
        self.replicates, self.batch = replicates, batch
        for name, path in self._paths.items():
            if not path.is_dir():
                raise UserError(
                    f"quality.{name}: {path} is no folder. Give the folder of an image classifier (config.json, model.safetensors)."
                )

    def measure(
        self,
        images: Tensor | Judged,
        labels: Tensor | np.ndarray | None = None,
        baseline: Tensor | Judged | None = None,
        endpoint: Tensor | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Figures `{value, low, high, n}` of images (N,C,H,W) in [-1, 1] drawn for `labels` (N,).

        Keys: fd and kid (against all scans, and `_held_out`, `_training`); class_accuracy (with `per_class` and `min`)
        and class_accuracy_min where there are labels; psnr_db and ssim to `baseline`, the images of the same seeds;
        endpoint_error to `endpoint`, nearly exact solutions of the first seeds; and `difference`, this minus baseline
        under the same resampling, `per_class` included. Raises UserError for images that cannot be compared,
        OptimizeError for NaN.
        """
        subject = self.judge(images, labels)
        reference = None if baseline is None else self._same_seeds(subject, baseline)
        own = self._drawn(subject, seed)
        n = len(subject.images)
        figures: dict[str, Any] = {k: _figure(k, *v, n) for k, v in own.items()}
        other = self._drawn(reference, seed) if reference else {}
        differences: dict[str, Any] = {
            k: bootstrap.difference(own[k][0], other[k][0], own[k][1], other[k][1], n) for k in other
        }
        if reference:
            figures |= self._to_baseline(subject, reference, seed)
        if endpoint is not None:
            _endpoint(figures, differences, subject, reference, endpoint, seed, self.replicates)
        for group in (figures, differences):
            _gather_classes(group)
        return figures | {"difference": differences}

    def judge(self, images: Tensor | Judged, labels: Tensor | np.ndarray | None = None) -> Judged:
        """Images with their features and predicted classes; computed once, to be given to `measure` again and again."""
        if isinstance(images, Judged):
            return images
        check_images(images, tuple(self.scans["all"].shape[1:]))
        asked = None if labels is None else np.asarray(labels)
        if asked is not None and asked.shape != (len(images),):
            raise UserError(f"quality: {len(images)} images and labels of shape {asked.shape}; give one label an image")
        predicted = self._apply(self.classifier, images).argmax(axis=1)
        return Judged(images, asked, self._apply(self.feature_network.features, images), predicted)

    def half_split(self, seed: int = 0, splits: int = 100) -> dict[str, Any]:
        """FD between two random halves of all scans: `{value, low, high, n, std}`, the mean and the middle 95 % of splits.

        What two sets of real images of that size differ by: the natural noise floor of FD.
        """
        features, values = self.scan_features["all"], []
        for split in range(splits):
            order = rng.generator("half-split", seed, split).permutation(len(features))
            middle = len(features) // 2
            values.append(frechet.frechet_distance(features[order[:middle]], features[order[middle:]]))
        low, high = np.quantile(values, (0.025, 0.975))
        ends = {"low": float(low), "high": float(high), "n": splits}
        return {"value": float(np.mean(values)), **ends, "std": float(np.std(values))}

    @cached_property
    def feature_network(self) -> ImageClassifier:
        """The network whose features FD and KID use."""
        from optimize.models.image_classifier import ImageClassifier

        return ImageClassifier.load(self._paths["features"])

    @cached_property
    def classifier(self) -> ImageClassifier:
        """The independent classifier."""
        from optimize.models.image_classifier import ImageClassifier

        return ImageClassifier.load(self._paths["classifier"])

    @cached_property
    def scans(self) -> dict[str, Tensor]:
        """Real images (N,C,H,W) float32 by set."""
        import torch

        found = {name: _scan_images(path) for name, path in self._scan_paths.items()}
        return {"all": torch.cat([found["training"], found["held_out"]]), **found}

    @cached_property
    def scan_features(self) -> dict[str, np.ndarray]:
        """Features (N,D) of the scans by set."""
        parts = {n: self._apply(self.feature_network.features, self.scans[n]) for n in ("training", "held_out")}
        return {"all": np.concatenate([parts["training"], parts["held_out"]]), **parts}

    @cached_property
    def _gaussians(self) -> dict[str, frechet.Gaussian]:
        return {name: frechet.gaussian(f) for name, f in self.scan_features.items()}

    @cached_property
    def _kernels(self) -> dict[str, kernel.Reference]:
        return {name: kernel.Reference(f) for name, f in self.scan_features.items()}

    def _apply(self, network: Any, images: Tensor) -> np.ndarray:
        """(N,...) float64 output of a network, batch by batch."""
        import torch

        with torch.inference_mode():
            return np.concatenate([network(part.float()).double().numpy() for part in images.split(self.batch)])

    def _drawn(self, subject: Judged, seed: int) -> Drawn:
        key = (seed, self.replicates)
        if key not in subject.drawn:
            counts_RN = bootstrap.counts(len(subject.images), self.replicates, seed, subject.labels)
            subject.drawn[key] = {
                **dict(self._frechet(subject, counts_RN)),
                **dict(self._kernel(subject, counts_RN)),
                **dict(_accuracy(subject, counts_RN)),
            }
        return subject.drawn[key]

    def _frechet(self, subject: Judged, counts_RN: np.ndarray) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
        resampled = [frechet.gaussian(subject.features, c) for c in counts_RN]
        for name in SETS:
            value = frechet.reference_distance(self.scan_features[name], subject.features)
            yield (
                _named("fd", name),
                (value, np.array([self._gaussians[name].distance(g) for g in resampled])),
            )

    def _kernel(self, subject: Judged, counts_RN: np.ndarray) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
        own_NN = kernel.cubic(subject.features, subject.features)
        for name in SETS:
            pairing = kernel.Pairing(self._kernels[name], subject.features, own_NN)
            yield _named("kid", name), (pairing.value, pairing.replicates(counts_RN))

    def _same_seeds(self, subject: Judged, baseline: Tensor | Judged) -> Judged:
        count = len(baseline.images if isinstance(baseline, Judged) else baseline)
        if count != len(subject.images):
            raise UserError(
                f"quality: {len(subject.images)} images against {count} of the baseline; draw both from the same seeds"
            )
        return self.judge(baseline, subject.labels)

    def _to_baseline(self, subject: Judged, baseline: Judged, seed: int) -> dict[str, Any]:
        n = len(subject.images)
        counts_RN = bootstrap.counts(n, self.replicates, seed, subject.labels)
        values = {
            "psnr_db": drift.psnr_db(subject.images, baseline.images),
            "ssim": drift.ssim(subject.images, baseline.images),
        }
        return {k: _figure(k, float(v.mean()), counts_RN @ v / n, n) for k, v in values.items()}


def check_images(images: Tensor, shape: tuple[int, ...]) -> None:
    """Raise where `images` is no set of at least two finite images of `shape` (C,H,W) in [-1, 1]."""
    if images.dim() != 4 or tuple(images.shape[1:]) != shape:
        raise UserError(
            f"quality: images of shape {tuple(images.shape)} given, the scans need (N, {', '.join(map(str, shape))})"
        )
    if len(images) < 2:
        raise UserError(f"quality: {len(images)} images given; a distribution needs at least 2, and 1,000 to say much")
    bad = int((~images.isfinite()).flatten(1).any(1).sum())
    if bad:
        raise OptimizeError(
            f"quality: {bad} of {len(images)} images hold NaN or infinities; the network or its sampler is broken"
        )
    largest = float(images.abs().max())
    if largest > 1.0 + 1e-3:
        raise UserError(f"quality: images reach {largest:.3g}; scale them to [-1, 1]")


def _scan_images(path: Path) -> Tensor:
    tensors = read_tensors(path)
    if "images" not in tensors:
        raise UserError(f"quality: {path} holds {', '.join(sorted(tensors))}; it needs `images` (N,C,H,W) in [-1, 1]")
    return tensors["images"].float()


def _named(figure: str, scans: str) -> str:
    return figure if scans == "all" else f"{figure}_{scans}"


def _figure(name: str, value: float, replicates_R: np.ndarray, n: int) -> dict[str, Any]:
    kind = next((k for k in (*LEAST, *MOST) if name.startswith(k)), "")
    return bootstrap.figure(value, replicates_R, n, least=LEAST.get(kind, -np.inf), most=MOST.get(kind, np.inf))


def _accuracy(subject: Judged, counts_RN: np.ndarray) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
    if subject.labels is None:
        return
    hits = accuracy.hits(subject.predicted, subject.labels)
    once = np.ones((1, len(subject.labels)))
    by_class, drawn_RK = hits.per_class(once)[0], hits.per_class(counts_RN)
    yield "class_accuracy", (float(hits.mean(once)[0]), hits.mean(counts_RN))
    yield "class_accuracy_min", (float(by_class.min()), drawn_RK.min(axis=1))
    for i, label in enumerate(hits.classes):
        yield f"class_accuracy_of_{label}", (float(by_class[i]), drawn_RK[:, i])


def _gather_classes(figures: dict[str, Any]) -> None:
    """Move the figures of single classes into `class_accuracy`: `per_class` values, `classes`, and their intervals."""
    if "class_accuracy" not in figures:
        return
    names = [k for k in figures if k.startswith("class_accuracy_of_")]
    each = [figures.pop(k) for k in names]
    values = [f["value"] for f in each]
    figures["class_accuracy"] |= {
        "per_class": values,
        "min": min(values),
        "classes": [int(k.rpartition("_")[2]) for k in names],
        "per_class_intervals": [[f["low"], f["high"]] for f in each],
    }


def _endpoint(
    figures: dict[str, Any],
    differences: dict[str, Any],
    subject: Judged,
    baseline: Judged | None,
    endpoint: Tensor,
    seed: int,
    replicates: int,
) -> None:
    """Add endpoint_error over the first len(endpoint) images, and its difference to the baseline's."""
    n = len(endpoint)
    check_images(endpoint, tuple(subject.images.shape[1:]))
    if n > len(subject.images):
        raise UserError(f"quality: {n} endpoints for {len(subject.images)} images; give at most one an image, in order")
    counts_RN = bootstrap.counts(n, replicates, seed, None if subject.labels is None else subject.labels[:n])
    drawn = [_errors(s, endpoint, counts_RN) for s in (subject, baseline) if s is not None]
    figures["endpoint_error"] = _figure("endpoint_error", *drawn[0], n)
    if len(drawn) == 2:
        (a, a_R), (b, b_R) = drawn
        differences["endpoint_error"] = bootstrap.difference(a, b, a_R, b_R, n)


def _errors(judged: Judged, endpoint: Tensor, counts_RN: np.ndarray) -> tuple[float, np.ndarray]:
    images = judged.images[: len(endpoint)]
    return drift.endpoint_error(images, endpoint), drift.relative_l2(*drift.squares(images, endpoint), counts_RN)
