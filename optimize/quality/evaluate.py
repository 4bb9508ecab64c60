"""The evaluator: images in, every quality figure out, each with a 95 % interval, and differences to the baseline.

Distances are to real scans in the features of one network (and of further ones where asked for), accuracy by another that
never saw the features. Intervals resample the generated images; the scans are taken as given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize import rng
from optimize.errors import GateFailed, UserError
from optimize.quality import accuracy, bootstrap, distribution, drift, frechet, prompts, shards
from optimize.quality.distribution import Drawn, Scans
from optimize.quality.features import Network, extract, located, open_network
from optimize.quality.metrics import DEFAULT_METRICS, FeatureNetwork
from optimize.storage.dataset import Samples, check_shape, images_in

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.quality.judges.image_classifier import ImageClassifier
    from optimize.quality.judges.lpips import Lpips

LEAST = {"fd": 0.0, "class_accuracy": 0.0, "ssim": -1.0, "psnr_db": 0.0, "endpoint_error": 0.0, "lpips": 0.0,
         "precision": 0.0, "recall": 0.0, "density": 0.0, "coverage": 0.0, "clip_score": 0.0}  # fmt: skip
MOST = {"class_accuracy": 1.0, "ssim": 1.0, "psnr_db": drift.IDENTICAL_DB, "precision": 1.0, "recall": 1.0,
        "coverage": 1.0, "clip_score": 100.0}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Judged:
    """Generated images (N,C,H,W), the classes asked for (N,), features (N,D) and predicted classes (N,).

    Keeps the replicates drawn from it, so a baseline judged once costs nothing the second time.
    """

    images: Tensor
    labels: np.ndarray | None
    features: np.ndarray
    predicted: np.ndarray | None
    further: dict[str, np.ndarray] = field(default_factory=dict)  # features (N,D) of the further networks
    agreement: np.ndarray | None = None  # (N,) CLIP score of each image with its prompt
    drawn: dict[tuple[int, int], Drawn] = field(default_factory=dict, repr=False)


class Evaluator:
    """`features`: a feature network or the folder of an `ImageClassifier`, as is `classifier` (None: no class accuracy);
    `held_out`, `training`: safetensors with `images`, and `labels` where there are classes.

    `further` are more feature networks by name, whose figures are called `fd_<name>` and so on; `lpips` the weights for
    that metric; `clip` with `wording` (a prompt a class, or prompts taken in turn) those for the CLIP score. Features are
    extracted on `device` by `processes` processes, whose number changes no figure.
    """

    def __init__(
        self,
        features: Path | FeatureNetwork,
        classifier: Path | None,
        held_out: Path,
        training: Path,
        replicates: int = 500,
        batch: int = 250,
        *,
        metrics: tuple[str, ...] = DEFAULT_METRICS,
        further: Mapping[str, FeatureNetwork] | None = None,
        lpips: str | None = None,
        clip: FeatureNetwork | None = None,
        wording: tuple[str, ...] = (),
        processes: int = 1,
        device: str = "cpu",
    ) -> None:
        chosen = features if isinstance(features, FeatureNetwork) else FeatureNetwork(source=str(features))
        self.networks = {"features": chosen, **(further or {})}
        self._classifier, self._scan_paths = classifier, {"held_out": Path(held_out), "training": Path(training)}
        self.replicates, self.batch, self.metrics, self.processes = replicates, batch, metrics, processes
        self._lpips, self._clip, self._wording, self._device = lpips, clip, wording, device
        self._opened: dict[str, Network] = {}
        self._scanned: dict[str, Samples] = {}  # what the sets of scans were found to hold
        folders = {"features": chosen.source if chosen.kind == "classifier" else None, "classifier": classifier}
        for name, path in folders.items():
            if path is not None and not Path(path).is_dir():
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

        Keys, as far as `metrics` ask for them: fd and kid (against all scans, and `_held_out`, `_training`, and `_<name>`
        in further networks); precision, recall, density, coverage; fd_per_class (the worst, `per_class` values);
        class_accuracy (with `per_class` and `min`) and class_accuracy_min where there are labels; clip_score; psnr_db,
        ssim and lpips to `baseline`, the images of the same seeds; endpoint_error to `endpoint`, nearly exact solutions of
        the first seeds; and `difference`, this minus baseline under the same resampling, `per_class` included. FD of too
        few images carries a `note`. Raises UserError for images that cannot be compared, GateFailed for NaN.
        """
        subject = self.judge(images, labels)
        reference = None if baseline is None else self._same_seeds(subject, baseline)
        own = self._drawn(subject, seed)
        n = len(subject.images)
        figures: dict[str, Any] = {k: _figure(k, *v, n) for k, v in own.items()}
        other = self._drawn(reference, seed) if reference else {}
        differences: dict[str, Any] = {
            k: bootstrap.difference(own[k][0], other[k][0], own[k][1], other[k][1], n) for k in other if k in own
        }
        if reference:
            figures |= self._to_baseline(subject, reference, seed)
        if endpoint is not None and "endpoint_error" in self.metrics:
            _endpoint(figures, differences, subject, reference, endpoint, seed, self.replicates)
        for group in (figures, differences):
            _gather_classes(group)
        self._remark(figures, subject)
        return figures | {"difference": differences}

    def judge(self, images: Tensor | Judged, labels: Tensor | np.ndarray | None = None) -> Judged:
        """Images with their features and predicted classes; computed once, to be given to `measure` again and again."""
        if isinstance(images, Judged):
            return images
        check_images(images, tuple(self.scans["all"].shape[1:]))
        asked = None if labels is None else np.asarray(labels)
        if asked is not None:
            _check_labels(asked, len(images))
        features = {name: self._extract(name, images) for name in self.networks}
        own = features.pop("features")
        return Judged(images, asked, own, self._predicted(images, asked), features, self._agreement(images, asked))

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
    def classifier(self) -> ImageClassifier:
        """The independent classifier."""
        from optimize.quality.judges.image_classifier import ImageClassifier

        if self._classifier is None:
            raise UserError("quality.classifier: none was given, and class accuracy needs one")
        return ImageClassifier.load(self._classifier)

    @cached_property
    def perceptual(self) -> Lpips:
        """The network behind LPIPS."""
        from optimize.quality.judges.lpips import Lpips

        if self._lpips is None:
            raise UserError(
                "quality.lpips: the metric lpips needs weights. Give a file or folder (safetensors), or a hub id."
            )
        return Lpips.load(located(self._lpips, field="lpips"))

    @cached_property
    def scans(self) -> dict[str, Tensor]:
        """Real images (N,C,H,W) float32 by set."""
        import torch

        found = {name: images_in(path, f"quality: {name}") for name, path in self._scan_paths.items()}
        check_shape(found["held_out"][0], found["training"][0].shape[1:], latents=False)
        self._scanned.update({name: samples for name, (samples, _) in found.items()})
        sets = {name: images for name, (_, images) in found.items()}
        return {"all": torch.cat([sets["training"], sets["held_out"]]), **sets}

    @cached_property
    def scan_labels(self) -> np.ndarray | None:
        """Classes (N,) of all scans; None where a file lacks them."""
        _ = self.scans
        found = [self._scanned[name].labels for name in ("training", "held_out")]
        return None if any(f is None for f in found) else np.concatenate([f for f in found if f is not None])

    @cached_property
    def references(self) -> dict[str, Scans]:
        """The scans as each network sees them; further networks see all of them as one set."""
        found = {}
        for name in self.networks:
            every, middle = self._extract(name, self.scans["all"]), len(self.scans["training"])
            parts = {"held_out": every[middle:], "training": every[:middle]} if name == "features" else {}
            found[name] = Scans({"all": every} | parts, self.scan_labels)
        return found

    @property
    def scan_features(self) -> dict[str, np.ndarray]:
        """Features (N,D) of the scans by set."""
        return self.references["features"].features

    def _extract(self, name: str, images: Tensor) -> np.ndarray:
        """(N,D) float64 features of one network."""
        config = self.networks[name]
        if self.processes > 1 and len(images) > self.batch:
            return shards.features(config, images, self.batch, name, self.processes, self._device)
        if name not in self._opened:
            self._opened[name] = open_network(config, self._device)
        return extract(self._opened[name], images, self.batch, name, self._device)

    def _predicted(self, images: Tensor, asked: np.ndarray | None) -> np.ndarray | None:
        if self._classifier is None or "class_accuracy" not in self.metrics:
            return None
        known = self.classifier.config.classes
        if asked is not None and int(asked.max()) >= known:
            raise UserError(
                f"quality.classifier: it knows the classes 0 to {known - 1}, and {int(asked.max())} was drawn. Give one that knows them all, or leave class_accuracy out of metrics."
            )
        return extract(self.classifier, images, self.batch, "classifier").argmax(axis=1)

    def _agreement(self, images: Tensor, labels: np.ndarray | None) -> np.ndarray | None:
        if "clip_score" not in self.metrics:
            return None
        return prompts.scores(self._clip, self._wording, images, labels, self.batch)

    def _drawn(self, subject: Judged, seed: int) -> Drawn:
        key = (seed, self.replicates)
        if key not in subject.drawn:
            counts_RN = bootstrap.counts(len(subject.images), self.replicates, seed, subject.labels)
            subject.drawn[key] = self._figures(subject, counts_RN)
        return subject.drawn[key]

    def _figures(self, subject: Judged, counts_RN: np.ndarray) -> Drawn:
        """Every figure of a set of images by itself, with its replicates."""
        real, labels = self.references["features"], subject.labels
        found = distribution.drawn(self.metrics, real, subject.features, labels, counts_RN)
        plain = tuple(m for m in self.metrics if m != "fd_per_class")
        for name, features in subject.further.items():
            more = distribution.drawn(plain, self.references[name], features, labels, counts_RN)
            found |= {f"{k}_{name}": v for k, v in more.items()}
        if subject.predicted is not None and labels is not None:
            found |= dict(accuracy.drawn(subject.predicted, labels, counts_RN))
        if subject.agreement is not None:
            values = subject.agreement
            found["clip_score"] = (float(values.mean()), counts_RN @ values / len(values))
        return found

    def _remark(self, figures: dict[str, Any], subject: Judged) -> None:
        """Say beside a figure what its number of images does to it."""
        for name, features in {"features": subject.features, **subject.further}.items():
            suffix = "" if name == "features" else f"_{name}"
            for scans, real in self.references[name].features.items():
                key = distribution.named("fd", scans) + suffix
                note = distribution.too_few(real, features)
                if key in figures and note:
                    figures[key]["note"] = note
        if "fd_per_class" in self.metrics and subject.labels is not None:
            missing = distribution.left_out(self.references["features"], subject.features, subject.labels)
            if missing:
                figures.setdefault("fd_per_class", {"value": None, "n": len(subject.images)})["left_out"] = missing

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
        offers = {
            "psnr": ("psnr_db", lambda: drift.psnr_db(subject.images, baseline.images)),
            "ssim": ("ssim", lambda: drift.ssim(subject.images, baseline.images)),
            "lpips": ("lpips", lambda: drift.lpips(self.perceptual, subject.images, baseline.images, self.batch)),
        }
        values = {key: compute() for metric, (key, compute) in offers.items() if metric in self.metrics}
        return {k: _figure(k, float(v.mean()), counts_RN @ v / n, n) for k, v in values.items()}


def _check_labels(labels: np.ndarray, count: int) -> None:
    """Raise UserError where labels are not one whole number from 0 on for each image."""
    if labels.shape != (count,):
        raise UserError(f"quality: {count} images and labels of shape {labels.shape}; give one label an image")
    if labels.dtype.kind not in "iu" or int(labels.min()) < 0:
        raise UserError(
            f"quality: labels are {labels.dtype} from {labels.min():g} on; whole numbers from 0 on are needed"
        )


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
        raise GateFailed(
            f"quality: {bad} of {len(images)} images hold NaN or infinities; the network or its sampler is broken"
        )
    largest = float(images.abs().max())
    if largest > 1.0 + 1e-3:
        raise UserError(f"quality: images reach {largest:.3g}; scale them to [-1, 1]")


def _figure(name: str, value: float, replicates_R: np.ndarray, n: int) -> dict[str, Any]:
    kind = next((k for k in (*LEAST, *MOST) if name.startswith(k)), "")
    return bootstrap.figure(value, replicates_R, n, least=LEAST.get(kind, -np.inf), most=MOST.get(kind, np.inf))


def _gather_classes(figures: dict[str, Any]) -> None:
    """Move figures of single classes into those of all: `per_class` values, `classes`, and their intervals."""
    for figure in ("class_accuracy", "fd_per_class"):
        names = [k for k in figures if k.startswith(f"{figure}{distribution.OF}")]
        if not names:
            continue
        each = [figures.pop(k) for k in names]
        values = [f["value"] for f in each]
        figures[figure] |= {
            "per_class": values,
            "classes": [int(k.rpartition("_")[2]) for k in names],
            "per_class_intervals": [[f["low"], f["high"]] for f in each],
        } | ({"min": min(values)} if figure == "class_accuracy" else {})


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
