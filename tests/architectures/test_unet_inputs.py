"""Inputs of other uses of a U-Net (a mask and masked image to paint in, a ControlNet's residuals) survive the passes, the
export and a runner, and the exported file agrees with torch at sizes other than those it was traced at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import pytest
import torch

import optimize
from optimize.architectures.artifact import load_model, save_model
from optimize.diffusion.backend import open_runner
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.network import example_inputs
from optimize.exporters.onnx import Onnx
from optimize.passes.prune import Prune
from optimize.passes.quantize import Quantize
from optimize.storage.commit import commit

KINDS = ["inpainting", "controlnet"]


def artifact(folder: Path, model: Model) -> Path:
    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        return {"id": "x", "export": Onnx().export(model, temporary, Context())}

    commit(folder, write)
    return folder


@pytest.mark.parametrize("name", [pytest.param("inpainting", marks=pytest.mark.slow), "controlnet"])
def test_inputs_survive_pruning_export_and_reload(name: str, tmp_path: Path) -> None:
    whole = networks.model(networks.TINY[name])
    pruned = optimize.apply(whole, Prune(budget={"macs": 0.3}, importance="magnitude"))
    names = [spec.name for spec in whole.inputs]
    assert [spec.name for spec in pruned.inputs] == names and load_sizes(pruned) < load_sizes(whole)
    folder = artifact(tmp_path / "pruned", pruned)
    feed = example_inputs(pruned.inputs, 2, H=24, W=32, L=5)
    if name == "controlnet":
        assert sum("residual" in n for n in names) == 5
    else:
        assert feed["sample"].shape == (2, 9, 24, 32)
    with torch.inference_mode(), open_runner(folder, "onnxruntime", threads=1) as runner:
        assert sorted(spec.name for spec in runner.inputs) == sorted(names)
        got, expected = runner(**feed), load_model(folder).denoiser.network(**feed)
    assert float((got - expected).norm() / expected.norm()) < 1e-5


def load_sizes(model: Model) -> int:
    return sum(p.numel() for p in model.module.parameters())


def test_an_embedded_guidance_weight_is_an_input() -> None:
    from optimize.architectures.known import architecture

    entry = architecture("UNet2DConditionModel")
    specs = entry.inputs({"time_cond_proj_dim": 256})
    assert ("timestep_cond", ("B", 256)) in [(s.name, s.dims) for s in specs]
    assert "timestep_cond" in [s.name for s in entry.conditioning({"time_cond_proj_dim": 256}).tensors]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_inputs_survive_quantization_too(name: str, tmp_path: Path) -> None:
    quantized = optimize.apply(networks.model(networks.TINY[name]), Quantize(samples=4, batch=4))
    folder = artifact(tmp_path / "quantized", quantized)
    feed = example_inputs(quantized.inputs, 2)
    with torch.inference_mode(), open_runner(folder, "onnxruntime", threads=1, int8="as_is") as runner:
        got, expected = runner(**feed), quantized.denoiser.network(**feed)
    assert float((got - expected).norm() / expected.norm()) < 5e-2


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_every_further_input_has_an_effect_in_the_exported_file(name: str, tmp_path: Path) -> None:
    model = networks.model(networks.TINY[name])
    folder = artifact(tmp_path / "whole", model)
    feed = example_inputs(model.inputs, 1)
    with open_runner(folder, "onnxruntime", threads=1) as runner:
        before = runner(**feed)
        for key in (n for n in feed if n != "timestep"):
            changed = {**feed, key: feed[key] + 1 if key != "sample" else feed[key].flip(1)}
            assert not torch.allclose(runner(**changed), before, atol=1e-5), key
