"""Every figure that compares two sets of features: FD, KID, precision and recall, density and coverage, FD by class.

Each comes as (value, its replicates (R,)) under counts (R,N) of how often each generated image was drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optimize.errors import UserError
from optimize.quality import frechet, kernel
from optimize.quality.manifold import DENSITY_NEIGHBOURS, NEIGHBOURS, Manifold, Overlap

Drawn = dict[str, tuple[float, np.ndarray]]  # figure -> (value, its replicates (R,))
OF = "_of_"  # joins a figure and the class it is of, until `gather` puts classes together


@dataclass(frozen=True, eq=False)
class Scans:
    """Real images as one network sees them: features (N,D) by set, and the classes (N,) of those in `all`."""

    features: dict[str, np.ndarray]
    labels: np.ndarray | None = None

    @cached_property
    def gaussians(self) -> dict[str, frechet.Gaussian]:
        """Mean and covariance of each set."""
        return {name: frechet.gaussian(f) for name, f in self.features.items()}

    @cached_property
    def kernels(self) -> dict[str, kernel.Reference]:
        """Kernel means of each set."""
        return {name: kernel.Reference(f) for name, f in self.features.items()}

    @cached_property
    def manifold(self) -> Manifold:
        """Neighbours in `all`."""
        return Manifold(self.features["all"])

    @cached_property
    def classes(self) -> dict[int, np.ndarray]:
        """Features of `all` by class; empty where classes are not known."""
        if self.labels is None:
            return {}
        return {int(c): self.features["all"][self.labels == c] for c in np.unique(self.labels)}


def drawn(
    metrics: tuple[str, ...], scans: Scans, features: np.ndarray, labels: np.ndarray | None, counts_RN: np.ndarray
) -> Drawn:
    """The figures among `metrics` of generated features (N,D); `fd` and `kid` against every set of scans."""
    found = dict(_frechet(scans, features, counts_RN)) if "fd" in metrics else {}
    if "kid" in metrics:
        found |= dict(_kernel(scans, features, counts_RN))
    if {"precision_recall", "density_coverage"} & set(metrics):
        found |= dict(_manifolds(metrics, scans, features, counts_RN))
    if "fd_per_class" in metrics and labels is not None:
        found |= dict(_by_class(scans, features, labels, counts_RN))
    return found


def _frechet(
    scans: Scans, features: np.ndarray, counts_RN: np.ndarray
) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
    for name, reference in scans.gaussians.items():
        value = frechet.reference_distance(scans.features[name], features)
        yield named("fd", name), (value, frechet.resampled(reference, features, counts_RN))


def _kernel(
    scans: Scans, features: np.ndarray, counts_RN: np.ndarray
) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
    own_NN = kernel.cubic(features, features)
    for name, reference in scans.kernels.items():
        pairing = kernel.Pairing(reference, features, own_NN)
        yield named("kid", name), (pairing.value, pairing.replicates(counts_RN))


def _manifolds(
    metrics: tuple[str, ...], scans: Scans, features: np.ndarray, counts_RN: np.ndarray
) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
    least = 1 + max(NEIGHBOURS, DENSITY_NEIGHBOURS)
    if min(len(features), len(scans.features["all"])) < least:
        raise UserError(
            f"quality.metrics: precision, recall, density and coverage need {least} images on either side; {len(features)} generated, {len(scans.features['all'])} real. Draw more, or leave them out."
        )
    overlap, once = Overlap(scans.manifold, features), np.ones((1, len(features)))
    names = (("precision", "recall") if "precision_recall" in metrics else ()) + (
        ("density", "coverage") if "density_coverage" in metrics else ()
    )
    for name in names:
        of = getattr(overlap, name)
        yield name, (float(of(once)[0]), of(counts_RN))


def _by_class(
    scans: Scans, features: np.ndarray, labels: np.ndarray, counts_RN: np.ndarray
) -> Iterator[tuple[str, tuple[float, np.ndarray]]]:
    """FD within every class that has enough images, then the worst of them."""
    found: Drawn = {}
    for label, real in scans.classes.items():
        mine = labels == label
        if not too_few(real, features[mine]):
            reference = frechet.gaussian(real)
            values = frechet.resampled(reference, features[mine], counts_RN[:, mine])
            found[f"fd_per_class{OF}{label}"] = (frechet.frechet_distance(real, features[mine]), values)
    if found:
        worst = np.max([v for _, v in found.values()], axis=0)
        yield "fd_per_class", (max(v for v, _ in found.values()), worst)
    yield from found.items()


def left_out(scans: Scans, features: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """Classes without an FD of their own, each with the reason."""
    pairs = ((label, too_few(real, features[labels == label])) for label, real in scans.classes.items())
    return {str(label): why for label, why in pairs if why}


def too_few(real: np.ndarray, generated: np.ndarray) -> str:
    """Why FD between these sets is biased beyond use, or an empty string: a covariance of D features needs D + 1 images."""
    dims = real.shape[1]
    if min(len(real), len(generated)) > dims:
        return ""
    return f"{len(generated)} images and {len(real)} real ones for {dims} features: with fewer than {dims + 1} a covariance is rank-deficient and FD too high; compare it only at equal numbers"


def named(figure: str, scans: str) -> str:
    """Figures against all scans carry no suffix."""
    return figure if scans == "all" else f"{figure}_{scans}"
