"""Images and features split over processes: the same bits from one process and from two."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from optimize import rng
from optimize.architectures.artifact import save_model
from optimize.diffusion.model import Model
from optimize.errors import EnvironmentLacks, OptimizeError, UserError
from optimize.quality import features, shards, worker
from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig
from optimize.quality.metrics import FeatureNetwork
from optimize.storage.commit import commit


@pytest.fixture
def classifier(tmp_path: Path) -> FeatureNetwork:
    torch.manual_seed(0)
    ImageClassifier(ImageClassifierConfig(widths=(4, 8), feature_dim=8)).eval().save(tmp_path / "classifier")
    return FeatureNetwork(source=str(tmp_path / "classifier"))


def pixels(n: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal((n, 1, 16, 16), "shards")).clamp(-1, 1)


def test_two_processes_draw_the_very_images_that_one_draws(tiny_model: Model, tmp_path: Path):
    commit(tmp_path / "artifact", lambda folder: save_model(folder, tiny_model) or {})
    one = tiny_model.sample(range(11), batch=4)
    sampler = tiny_model.sampler.to_json()
    two = shards.images(tmp_path / "artifact", "torch", {}, sampler, count=11, batch=4, processes=2)
    assert two.shape == (11, 1, 16, 16) and torch.equal(one, two)


def test_two_processes_extract_the_very_features_that_one_extracts(classifier: FeatureNetwork):
    one = features.extract(features.open_network(classifier), pixels(13), batch=5)
    np.testing.assert_array_equal(one, shards.features(classifier, pixels(13), 5, "features", processes=2))


def test_an_error_in_a_worker_is_the_error_here(classifier: FeatureNetwork, tmp_path: Path):
    (tmp_path / "judging.py").write_text("def flat(images): return images\n")
    flat = FeatureNetwork.model_validate({"import": "judging:flat"})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(UserError, match="it must give a tensor"):
            shards.features(flat, pixels(4), 2, "features", processes=2)


def test_a_worker_that_dies_is_quoted(tmp_path: Path):
    from subprocess import CompletedProcess

    with pytest.raises(OptimizeError, match=r"ended with code 9(.|\n)*out of memory"):
        shards._raise(tmp_path, CompletedProcess([], 9, "", "much\nout of memory"))


@pytest.mark.parametrize(
    ("count", "batch", "found"), [(7, 3, [(0, 3), (3, 6), (6, 7)]), (2, 5, [(0, 2)]), (4, 2, [(0, 2), (2, 4)])]
)
def test_batches_are_those_of_one_process(count: int, batch: int, found: list[tuple[int, int]]):
    assert shards.parts(count, batch) == found


@pytest.mark.parametrize(
    ("visible", "devices", "rank", "own"),
    [
        (None, 4, 2, "2"),
        (None, 2, 5, "1"),
        ("6,7", 2, 1, "7"),
        (None, 1, 1, None),
        (None, 0, 1, None),
        ("3", 1, 4, "3"),
    ],
)
def test_every_process_sees_one_gpu_in_turn(
    visible: str | None, devices: int, rank: int, own: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    worker.own_gpu(rank)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == own


@pytest.mark.gpu
def test_features_of_a_gpu_are_those_of_the_cpu_within_rounding(classifier: FeatureNetwork):
    one = features.extract(features.open_network(classifier), pixels(13), batch=5)
    two = shards.features(classifier, pixels(13), 5, "features", processes=1, device="cuda")
    np.testing.assert_allclose(one, two, atol=1e-3)


def test_a_gpu_that_is_not_there_is_said(classifier: FeatureNetwork, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentLacks, match=r"finds no CUDA device\. Give cpu, or install a CUDA build"):
        features.open_network(classifier, "cuda")
