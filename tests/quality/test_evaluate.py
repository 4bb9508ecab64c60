"""The evaluator on a small classifier and made-up scans: figures, differences, and refusals with their messages."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from optimize import rng
from optimize.errors import ArtifactError, OptimizeError, UserError
from optimize.quality.evaluate import Evaluator, Judged
from optimize.quality.frechet import frechet_distance
from optimize.quality.grid import grid, to_pixels
from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig

N, CLASSES = 60, 3


def images(name: str, n: int = N) -> torch.Tensor:
    return torch.from_numpy(rng.normal((n, 1, 16, 16), "images", name)).mul(0.3).clamp(-1, 1)


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    folder = tmp_path_factory.mktemp("quality")
    for i, name in enumerate(("features", "classifier")):
        torch.manual_seed(i)
        config = ImageClassifierConfig(widths=(4, 8), feature_dim=8, classes=CLASSES)
        ImageClassifier(config).eval().save(folder / name)
    save_file({"images": images("training", 80).half()}, folder / "training.safetensors")
    save_file({"images": images("held-out", 20).half()}, folder / "held_out.safetensors")
    paths = [folder / n for n in ("features", "classifier", "held_out.safetensors", "training.safetensors")]
    return Evaluator(*paths, replicates=50)


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    return torch.arange(N) % CLASSES


def test_measure_gives_every_figure_with_an_interval_around_its_value(evaluator: Evaluator, labels: torch.Tensor):
    found = evaluator.measure(images("a"), labels, baseline=images("b"), endpoint=images("end", 10))
    plain = {f"{d}{s}" for d in ("fd", "kid") for s in ("", "_held_out", "_training")}
    plain |= {"class_accuracy", "class_accuracy_min", "psnr_db", "ssim", "endpoint_error"}
    assert set(found) == plain | {"difference"}
    assert all(found[k]["low"] <= found[k]["value"] <= found[k]["high"] for k in plain)
    assert found["fd"]["n"] == N and found["endpoint_error"]["n"] == 10
    assert len(found["class_accuracy"]["per_class"]) == CLASSES
    assert found["class_accuracy"]["min"] == found["class_accuracy_min"]["value"]
    json.dumps(found, allow_nan=False)


def test_fd_is_to_all_scans_and_each_part_is_reported_too(evaluator: Evaluator):
    subject = evaluator.judge(images("a"))
    found = evaluator.measure(subject)
    for key, scans in (("fd", "all"), ("fd_held_out", "held_out"), ("fd_training", "training")):
        own = frechet_distance(evaluator.scan_features[scans], subject.features)
        assert found[key]["value"] == pytest.approx(own, rel=1e-6)
    assert len(evaluator.scan_features["all"]) == 100


def test_the_baseline_against_itself_differs_by_exactly_nothing(evaluator: Evaluator, labels: torch.Tensor):
    same = images("a")
    difference = evaluator.measure(same, labels, baseline=same.clone(), endpoint=images("end", 10))["difference"]
    ends = [
        difference[k][e] for k in ("fd", "kid", "class_accuracy", "endpoint_error") for e in ("value", "low", "high")
    ]
    assert ends == [0.0] * len(ends)
    assert difference["class_accuracy"]["per_class"] == [0.0] * CLASSES


def test_measuring_is_a_function_of_images_and_seed(evaluator: Evaluator, labels: torch.Tensor):
    first, again = (evaluator.measure(images("a"), labels, seed=3) for _ in range(2))
    assert first == again
    assert first["fd"]["low"] != evaluator.measure(images("a"), labels, seed=4)["fd"]["low"]


def test_a_judged_baseline_is_not_computed_again(evaluator: Evaluator, labels: torch.Tensor):
    baseline = evaluator.judge(images("b"), labels)
    evaluator.measure(images("a"), labels, baseline=baseline)
    kept = dict(baseline.drawn)
    found = evaluator.measure(images("a"), labels, baseline=baseline)
    assert isinstance(baseline, Judged) and all(baseline.drawn[k] is v for k, v in kept.items())
    assert found == evaluator.measure(images("a"), labels, baseline=images("b"))


def test_accuracy_is_the_share_of_images_seen_as_the_class_asked_for(evaluator: Evaluator):
    subject = evaluator.judge(images("a"))
    right = torch.from_numpy(subject.predicted)
    found = evaluator.measure(images("a"), right)["class_accuracy"]
    assert found["value"] == found["min"] == 1.0
    assert evaluator.measure(images("a"), (right + 1) % CLASSES)["class_accuracy"]["value"] == 0.0


def test_half_split_is_small_beside_a_shifted_set_and_repeats(evaluator: Evaluator):
    floor = evaluator.half_split(seed=0, splits=10)
    assert floor == evaluator.half_split(seed=0, splits=10)
    assert 0 < floor["low"] <= floor["value"] <= floor["high"] and floor["n"] == 10
    shifted = evaluator.measure((images("a") + 0.7).clamp(-1, 1))["fd"]["value"]
    assert shifted > 3 * floor["value"]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (lambda: images("a", 1), UserError, "at least 2"),
        (
            lambda: images("a").index_fill(0, torch.tensor([1, 5]), float("nan")),
            OptimizeError,
            "2 of 60 images hold NaN",
        ),
        (lambda: images("a") * 10, UserError, r"scale them to \[-1, 1\]"),
        (lambda: images("a")[:, :, :8], UserError, r"need \(N, 1, 16, 16\)"),
        (lambda: images("a")[:, 0], UserError, r"need \(N, 1, 16, 16\)"),
    ],
)
def test_images_that_cannot_be_judged_are_refused(evaluator: Evaluator, given, error, says: str):
    with pytest.raises(error, match=says):
        evaluator.measure(given())


def test_labels_baselines_and_endpoints_of_other_lengths_are_refused(evaluator: Evaluator, labels: torch.Tensor):
    with pytest.raises(UserError, match="one label an image"):
        evaluator.measure(images("a"), labels[:5])
    with pytest.raises(UserError, match="same seeds"):
        evaluator.measure(images("a"), labels, baseline=images("b", 10))
    with pytest.raises(UserError, match="70 endpoints for 60 images"):
        evaluator.measure(images("a"), labels, endpoint=images("end", 70))


def test_a_missing_folder_or_file_is_named(tmp_path: Path, evaluator: Evaluator):
    with pytest.raises(UserError, match=r"quality.features: .*nowhere is no folder"):
        Evaluator(tmp_path / "nowhere", tmp_path, tmp_path / "h", tmp_path / "t")
    with pytest.raises(UserError, match=r"quality.classifier: .*nowhere is no folder"):
        Evaluator(evaluator.networks["features"], tmp_path / "nowhere", tmp_path / "h", tmp_path / "t")
    half = Evaluator(evaluator.networks["features"], None, tmp_path / "h.safetensors", tmp_path / "t.safetensors")
    with pytest.raises(ArtifactError, match="no such file"):
        half.measure(images("a"))
    save_file({"pixels": torch.zeros(2)}, tmp_path / "h.safetensors")
    with pytest.raises(UserError, match=r"has no tensor `images` .*; it holds pixels"):
        half.measure(images("a"))


def test_a_grid_has_a_row_a_name_and_a_column_a_seed(tmp_path: Path):
    path = grid({"baseline": images("a"), "final": images("b")}, tmp_path / "deep" / "grid.png", columns=5)
    with Image.open(path) as picture:
        assert picture.height == 4 + 2 * 52 and picture.width > 5 * 52


def test_pixels_are_enlarged_by_a_whole_factor_and_span_the_range():
    x = torch.tensor([-1.0, 0.0, 1.0, 5.0]).view(1, 1, 2, 2)
    pixels = to_pixels(x, cell=4)
    assert pixels.shape == (1, 4, 4, 3)
    np.testing.assert_array_equal(pixels[0, ::2, ::2, 0], [[0, 128], [255, 255]])


def test_a_grid_of_nothing_or_of_unlike_sizes_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="at least one"):
        grid({}, tmp_path / "g.png")
    with pytest.raises(UserError, match="different sizes"):
        grid({"a": images("a"), "b": torch.zeros(1, 1, 64, 64)}, tmp_path / "g.png")
    with pytest.raises(UserError, match="1 or 3"):
        grid({"a": torch.zeros(1, 2, 4, 4)}, tmp_path / "g.png")


@pytest.fixture(scope="module")
def wide(evaluator: Evaluator, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """All figures, a second feature network, scans with classes."""
    folder = tmp_path_factory.mktemp("wide")
    for name, n in (("training", 80), ("held-out", 20)):
        scans = {"images": images(name, n).half(), "labels": torch.arange(n) % CLASSES}
        save_file(scans, folder / f"{name}.safetensors")
    metrics = ("fd", "kid", "precision_recall", "density_coverage", "fd_per_class", "class_accuracy", "psnr")
    features = evaluator.networks["features"]
    return Evaluator(features, evaluator._classifier, folder / "held-out.safetensors", folder / "training.safetensors", replicates=20, metrics=metrics, further={"second": features})  # fmt: skip


def test_further_networks_and_figures_come_with_intervals_and_paired_differences(wide: Evaluator, labels: torch.Tensor):
    found = wide.measure(images("a"), labels, baseline=images("b"))
    for key in ("fd_second", "precision", "recall", "density", "coverage", "fd_per_class", "precision_second"):
        assert found[key]["low"] <= found[key]["value"] <= found[key]["high"]
        assert key in found["difference"]
    assert found["fd_second"]["value"] == found["fd"]["value"], "the second network is the first one again"
    assert "ssim" not in found and "endpoint_error" not in found and "fd_second_held_out" not in found
    json.dumps(found, allow_nan=False)


def test_fd_of_a_class_is_between_its_own_images_and_its_own_scans(wide: Evaluator, labels: torch.Tensor):
    found = wide.measure(images("a"), labels)["fd_per_class"]
    subject = wide.judge(images("a"), labels)
    own = [
        frechet_distance(wide.scan_features["all"][wide.scan_labels == c], subject.features[labels.numpy() == c])
        for c in range(CLASSES)
    ]
    np.testing.assert_allclose(found["per_class"], own, rtol=1e-9)
    assert found["value"] == max(found["per_class"]) and found["classes"] == [0, 1, 2]


def test_a_class_with_too_few_images_is_left_out_with_the_reason(wide: Evaluator):
    few = torch.tensor([0] * 30 + [1] * 26 + [2] * 4)
    found = wide.measure(images("a"), few)["fd_per_class"]
    assert found["classes"] == [0, 1]
    assert found["left_out"]["2"].startswith("4 images and 32 real ones for 8 features: with fewer than 9")
    none = wide.measure(images("a", 6), torch.tensor([0, 0, 1, 1, 2, 2]))["fd_per_class"]
    assert none["value"] is None and len(none["left_out"]) == CLASSES


def test_fd_of_fewer_images_than_features_says_that_it_is_biased(evaluator: Evaluator, labels: torch.Tensor):
    assert "note" not in evaluator.measure(images("a"))["fd"]
    note = evaluator.measure(images("a", 8))["fd"]["note"]
    assert note.startswith(
        "8 images and 100 real ones for 8 features: with fewer than 9 a covariance is rank-deficient"
    )


def test_no_images_to_compare_is_said(evaluator: Evaluator):
    with pytest.raises(UserError, match="0 images given; a distribution needs at least 2"):
        evaluator.measure(torch.zeros(0, 1, 16, 16))


def test_without_a_classifier_there_is_no_accuracy(evaluator: Evaluator, labels: torch.Tensor):
    paths = evaluator._scan_paths
    blind = Evaluator(evaluator.networks["features"], None, paths["held_out"], paths["training"], replicates=20)
    assert "class_accuracy" not in blind.measure(images("a"), labels)
    with pytest.raises(UserError, match="class accuracy needs one"):
        _ = blind.classifier


def test_lpips_without_weights_is_refused(evaluator: Evaluator):
    paths = evaluator._scan_paths
    asks = Evaluator(evaluator.networks["features"], None, paths["held_out"], paths["training"], replicates=20, metrics=("fd", "lpips"))  # fmt: skip
    with pytest.raises(UserError, match="the metric lpips needs weights"):
        asks.measure(images("a"), baseline=images("b"))
