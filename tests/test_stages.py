"""Where passes compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from optimize import environment, stages
from optimize.recipe import load
from optimize.targets import targets


@pytest.mark.parametrize(
    ("found", "asked", "torch_can", "device"),
    [
        ("a100", "here", True, "cuda"),
        ("a100", "a100", True, "cuda"),
        ("a100", "cpu", True, "cpu"),
        ("a100", "here", False, "cpu"),
        ("cpu", "here", True, "cpu"),
    ],
)
def test_passes_compute_on_the_gpu_found_unless_the_recipe_is_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, found: str, asked: str, torch_can: bool, device: str
) -> None:
    facts: dict[str, Any] = {}
    monkeypatch.setattr(stages, "here", lambda: (targets()[found], facts))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_can)
    recipe = load("smoke").model_copy(update={"target": asked})
    assert stages.pass_device(recipe) == device


@pytest.mark.parametrize(
    ("asked", "threads"), [("1", 1), ("7", 7), ("", environment.cores()), ("0", environment.cores())]
)
def test_results_are_kept_by_the_threads_that_made_them(
    monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert stages._numerics()["threads"] == threads
