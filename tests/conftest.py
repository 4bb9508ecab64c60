"""Shared fixtures: a tiny diffusers pipeline folder, models on it, and data."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # tests start processes beside torch's own threads
if "PYTEST_XDIST_WORKER" in os.environ:  # a core for each of the processes that tests are shared out to
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from support.tiny_model import make_tiny_folder

from optimize import rng
from optimize.diffusion.context import Data
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.sources.diffusers import DiffusersSource


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny_model(tiny_folder: Path) -> Model:
    return DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=4, guidance=Guidance(cfg=0.5)))


@pytest.fixture
def tiny_data() -> Data:
    images = torch.from_numpy(rng.normal((64, 1, 16, 16), "tiny-data")).clamp(-1, 1)
    return Data(images, torch.arange(64) % 10)


LONG = (
    "runs/test_execute.py",
    "tests/test_docs_carried_out.py",
    "pipelines/test_whole.py",
    "serving/test_repository.py",
    "delivery/test_as_onnx.py",
    "pruning/test_blocks.py",
    "runners/test_runners.py",
    "exporters/test_onnx.py",
    "onnx/test_qdq.py",
    "passes/test_quantize_families.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that no process is left alone with them at the end."""
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if item.path.match(name)), len(LONG)))
