"""Where passes compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimize import environment, stages
from optimize.errors import UserError
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


def test_options_that_a_kind_of_source_does_not_take_are_refused() -> None:
    recipe = load("smoke")
    asked = recipe.source.model_copy(update={"network": "a:B"})
    with pytest.raises(UserError, match=r"source: kind diffusers does not take all of network"):
        stages._source(recipe.model_copy(update={"source": asked}))


def test_training_data_may_be_latents_with_conditions_by_input_name(tmp_path: Path) -> None:
    latents, text = torch.randn(4, 4, 8, 8) * 3, torch.randn(4, 7, 32)
    save_file({"latents": latents, "encoder_hidden_states": text}, tmp_path / "d.safetensors")
    data = stages.load_data(tmp_path / "d.safetensors", "data.training")
    assert torch.equal(data.images, latents) and torch.equal(data.conditions["encoder_hidden_states"], text)
    save_file({"images": latents}, tmp_path / "d.safetensors")
    with pytest.raises(UserError, match=r"images must be finite and in \[-1, 1\]"):
        stages.load_data(tmp_path / "d.safetensors", "data.training")
    save_file({"latents": latents / 0}, tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="latents must be finite"):
        stages.load_data(tmp_path / "d.safetensors", "data.training")
    save_file({"text": text}, tmp_path / "d.safetensors")
    with pytest.raises(UserError, match=r"has no tensor `images` .* it holds text"):
        stages.load_data(tmp_path / "d.safetensors", "data.training")
