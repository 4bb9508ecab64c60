"""Precision, recall, density and coverage against brute force over definitions, and on sets where they are known."""

from __future__ import annotations

import numpy as np
import pytest

from optimize import rng
from optimize.errors import UserError
from optimize.quality import distribution
from optimize.quality.bootstrap import counts
from optimize.quality.distribution import Scans
from optimize.quality.manifold import Manifold, Overlap


def points(n: int, *key: str, shift: float = 0.0, scale: float = 1.0) -> np.ndarray:
    return rng.normal((n, 4), "manifold", *key).astype(np.float64) * scale + shift


def radius(x: np.ndarray, i: int, k: int) -> float:
    return sorted(float(np.linalg.norm(x[i] - x[j])) for j in range(len(x)) if j != i)[k - 1]


def inside(p: np.ndarray, x: np.ndarray, k: int) -> bool:
    return any(np.linalg.norm(p - x[i]) <= radius(x, i, k) for i in range(len(x)))


def test_every_figure_is_its_definition_spelled_out_in_loops():
    real, made = points(30, "real"), points(24, "made", shift=0.8)
    overlap, once = Overlap(Manifold(real), made), np.ones((1, 24))
    assert overlap.precision(once)[0] == pytest.approx(np.mean([inside(m, real, 3) for m in made]))
    assert overlap.recall(once)[0] == pytest.approx(np.mean([inside(r, made, 3) for r in real]))
    balls = [[np.linalg.norm(m - real[i]) <= radius(real, i, 5) for i in range(30)] for m in made]
    assert overlap.density(once)[0] == pytest.approx(np.sum(balls) / (5 * 24))
    assert overlap.coverage(once)[0] == pytest.approx(np.any(balls, axis=0).mean())
    assert 0 < overlap.precision(once)[0] < 1 and 0 < overlap.recall(once)[0] < 1


def test_a_set_against_itself_is_wholly_inside_and_a_far_one_wholly_outside():
    real, once = points(40, "real"), np.ones((1, 40))
    near, far = Overlap(Manifold(real), real), Overlap(Manifold(real), real + 1000.0)
    assert near.precision(once)[0] == near.recall(once)[0] == near.coverage(once)[0] == 1.0
    assert far.precision(once)[0] == far.recall(once)[0] == far.density(once)[0] == far.coverage(once)[0] == 0.0


def test_lost_variety_lowers_recall_and_leaves_precision():
    real, narrow = points(200, "real"), points(200, "narrow", scale=0.3)
    overlap, once = Overlap(Manifold(real), narrow), np.ones((1, 200))
    assert overlap.precision(once)[0] > 0.95 > 0.4 > overlap.recall(once)[0]


def test_replicates_weigh_as_copies_do_and_a_left_out_image_no_longer_covers():
    real, made = points(20, "real"), points(12, "made")
    drawn = counts(12, 6, seed=0)
    overlap = Overlap(Manifold(real), made)
    for r, c in enumerate(drawn.astype(int)):
        copies = Overlap(Manifold(real), made.repeat(c, axis=0))
        distinct = Overlap(Manifold(real), made[c > 0])
        assert overlap.precision(drawn)[r] == pytest.approx(copies.precision(np.ones((1, 12)))[0])
        assert overlap.density(drawn)[r] == pytest.approx(copies.density(np.ones((1, 12)))[0])
        assert overlap.coverage(drawn)[r] == pytest.approx(copies.coverage(np.ones((1, 12)))[0])
        assert overlap.recall(drawn)[r] == pytest.approx(distinct.recall(np.ones((1, (c > 0).sum())))[0])


def test_too_few_images_for_a_neighbourhood_are_refused():
    with pytest.raises(UserError, match=r"need 6 images on either side; 5 generated, 20 real"):
        distribution.drawn(
            ("precision_recall",), Scans({"all": points(20, "r")}), points(5, "m"), None, np.ones((2, 5))
        )
