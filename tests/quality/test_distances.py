"""Fréchet and kernel distances against closed forms and torchmetrics; bootstrap weights and intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize import rng
from optimize.quality import accuracy, bootstrap, drift
from optimize.quality.frechet import Gaussian, frechet_distance, gaussian, reference_distance, resampled
from optimize.quality.kernel import Pairing, Reference, cubic, kernel_distance


def features(n: int, dims: int, *key: str, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return rng.normal((n, dims), "features", *key).astype(np.float64) * scale + shift


def test_frechet_distance_of_isotropic_gaussians_has_its_closed_form():
    a = Gaussian(np.zeros(5), 4.0 * np.eye(5))
    b = Gaussian(np.full(5, 3.0), 9.0 * np.eye(5))
    assert a.distance(b) == pytest.approx(5 * 9.0 + 5 * (2 - 3) ** 2, rel=1e-12)


def test_frechet_distance_of_commuting_covariances_is_the_distance_of_their_roots():
    turn, _ = np.linalg.qr(features(4, 4, "turn"))
    s, t = np.array([0.1, 1.0, 2.0, 5.0]), np.array([3.0, 0.2, 2.0, 1.0])
    a, b = (Gaussian(np.zeros(4), turn @ np.diag(v**2) @ turn.T) for v in (s, t))
    assert a.distance(b) == pytest.approx(((s - t) ** 2).sum(), rel=1e-10)


def test_frechet_distance_agrees_with_torchmetrics():
    mixing = features(16, 16, "mixing")
    a, b = features(300, 16, "a") @ mixing, features(200, 16, "b", scale=1.3, shift=0.2) @ mixing
    assert frechet_distance(a, b) == pytest.approx(reference_distance(a, b), rel=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), dims=st.integers(1, 8))
def test_frechet_distance_is_symmetric_and_zero_to_itself(seed: int, dims: int):
    a, b = features(40, dims, f"a{seed}"), features(30, dims, f"b{seed}", scale=2.0)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-8)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_counts_weigh_as_copies_do():
    x, counts = features(6, 3, "x"), np.array([2.0, 0, 1, 1, 0, 2])
    copies = x.repeat(counts.astype(int), axis=0)
    weighted = gaussian(x, counts)
    np.testing.assert_allclose(weighted.mean, copies.mean(0), atol=1e-12)
    np.testing.assert_allclose(weighted.covariance, np.cov(copies.T), atol=1e-12)


@pytest.mark.parametrize("dims", [5, 40])
def test_replicates_are_distances_of_copies_whether_features_or_images_are_more(dims: int):
    a, b = features(90, dims, "a", scale=2.0), features(20, dims, "b", shift=0.3)
    counts = bootstrap.counts(20, 4, seed=0)
    copies = [frechet_distance(b.repeat(c.astype(int), axis=0), a) for c in counts]
    # the roots of eigenvalues that are 0 but for rounding, 1e-16, add about 1e-8 each to the D x D way
    np.testing.assert_allclose(resampled(gaussian(a), b, counts), copies, rtol=1e-7)


def test_kernel_distance_agrees_with_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    class Features(torch.nn.Module):
        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    a, b = features(60, 12, "a"), features(60, 12, "b", scale=1.2, shift=0.1)
    metric = KernelInceptionDistance(feature=Features(), subsets=1, subset_size=60)
    metric.update(torch.from_numpy(a), real=True)
    metric.update(torch.from_numpy(b), real=False)
    assert kernel_distance(a, b) == pytest.approx(float(metric.compute()[0]), rel=1e-9)


def test_kernel_replicate_equals_the_sum_over_pairs_of_different_images():
    a, b, counts = features(7, 3, "a"), features(5, 3, "b"), np.array([2.0, 1, 0, 1, 1])
    own = cubic(b, b)
    pairs = [(i, j) for i in range(5) for j in range(5) if i != j]
    within = sum(counts[i] * counts[j] * own[i, j] for i, j in pairs) / sum(counts[i] * counts[j] for i, j in pairs)
    across = (counts / 5) @ cubic(b, a).mean(1)
    expected = Reference(a).within + within - 2 * across
    assert Pairing(Reference(a), b).replicates(counts[None])[0] == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_on_average():
    values = [kernel_distance(features(50, 4, f"a{i}"), features(50, 4, f"b{i}")) for i in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)


def test_counts_keep_every_class_at_its_size_and_repeat_with_their_seed():
    labels = np.arange(30) % 3
    drawn = bootstrap.counts(30, 50, seed=1, labels=labels)
    for c in range(3):
        assert (drawn[:, labels == c].sum(1) == 10).all()
    np.testing.assert_array_equal(drawn, bootstrap.counts(30, 50, seed=1, labels=labels))
    assert (drawn != bootstrap.counts(30, 50, seed=2, labels=labels)).any()


def test_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for trial in range(200):
        x = rng.normal((80,), "coverage", trial).astype(np.float64)
        drawn = bootstrap.counts(80, 300, seed=trial) @ x / 80
        found = bootstrap.figure(x.mean(), drawn, 80)
        covered += found["low"] <= 0.0 <= found["high"]
    assert 0.89 <= covered / 200 <= 0.985


def test_interval_of_the_frechet_distance_is_laid_around_its_value_although_replicates_are_biased():
    a, b = features(400, 16, "real"), features(200, 16, "made")
    reference, value = gaussian(a), frechet_distance(a, b)
    drawn = np.array([reference.distance(gaussian(b, c)) for c in bootstrap.counts(200, 100, seed=0)])
    found = bootstrap.figure(value, drawn, 200)
    assert drawn.mean() > 1.3 * value  # the reason for centring
    assert found["low"] < value < found["high"]


def test_paired_difference_is_narrower_than_an_unpaired_one():
    shared, own = rng.normal((100,), "shared").astype(np.float64), 0.1 * rng.normal((100,), "own")
    counts = bootstrap.counts(100, 400, seed=0)
    a, b, c = (
        counts @ shared / 100,
        counts @ (shared + own) / 100,
        bootstrap.counts(100, 400, seed=9) @ shared / 100,
    )
    width = lambda f: f["high"] - f["low"]  # noqa: E731
    paired = bootstrap.difference((shared + own).mean(), shared.mean(), b, a, 100)
    unpaired = bootstrap.difference((shared + own).mean(), shared.mean(), b, c, 100)
    assert width(paired) < 0.3 * width(unpaired)
    assert paired["value"] == pytest.approx(own.mean())


def test_ends_stay_within_what_a_figure_can_be():
    found = bootstrap.figure(0.99, np.array([0.9, 0.99, 1.0, 1.1] * 10), 10, least=0.0, most=1.0)
    assert found["high"] == 1.0


def test_accuracy_by_class_counts_hits_in_each_class():
    hits = accuracy.hits(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 2]))
    np.testing.assert_allclose(hits.per_class(np.ones((1, 4)))[0], [2 / 3, 1.0])
    assert hits.mean(np.ones((1, 4)))[0] == accuracy.accuracy(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 2])) == 0.75


def test_psnr_of_a_constant_shift_is_its_closed_form_and_equal_images_count_as_100_db():
    x = torch.zeros(3, 1, 16, 16)
    np.testing.assert_allclose(drift.psnr_db(x + 0.2, x), 20.0, rtol=1e-6)  # 10 log10(2² / 0.2²)
    np.testing.assert_allclose(drift.psnr_db(x, x), 100.0)


def test_ssim_of_equal_images_is_one_and_noise_lowers_it():
    x = torch.from_numpy(rng.normal((3, 1, 16, 16), "ssim")).clamp(-1, 1)
    noisy = (x + 0.5 * torch.from_numpy(rng.normal((3, 1, 16, 16), "noise"))).clamp(-1, 1)
    np.testing.assert_allclose(drift.ssim(x, x), 1.0, atol=1e-5)
    assert (drift.ssim(noisy, x) < 0.95).all()


def test_endpoint_error_is_the_relative_l2_over_all_images():
    x = torch.full((2, 1, 2, 2), 0.5)
    assert drift.endpoint_error(x * 1.1, x) == pytest.approx(0.1, rel=1e-6)
