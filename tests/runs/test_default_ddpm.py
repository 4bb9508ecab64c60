"""A DDPM as diffusers trains it by default (epsilon, linear betas, clipped x^) through the whole run, distilled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from support.tiny_model import make_tiny_folder

from optimize import rng
from optimize.architectures.artifact import load_model
from optimize.recipes.read import parse
from optimize.runs.execute import run
from optimize.storage.weights import read_json

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def default_schedule(folder: Path) -> Path:
    """The model folder with the scheduler of diffusers' defaults."""
    from diffusers import DDPMScheduler

    DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder


def recipe(source: Path, judges: Path, scans: Path, passes: list[Any], **more: Any) -> Any:
    value = {
        "name": "ddpm",
        "source": {"path": str(source), "null_class": 10},
        "sampler": {"steps": 4, "clip": 1.0, "guidance": {"cfg": 0.5}},
        "data": {k: str(scans / f"{k}.safetensors") for k in ("training", "held_out")},
        "passes": passes,
        "benchmark": {"batch": [2], "runners": ["torch"], "source_runners": [], "rounds": 2, "seconds": 0.02},
        "quality": {
            "images": 32, "features": str(judges / "features"), "classifier": str(judges / "classifier"), "endpoint_images": 4,
            "endpoint_steps": 8, "replicates": 20,
        },
        "fair": None,
        **more,
    }  # fmt: skip
    return parse(yaml.safe_dump(value))


def test_a_run_says_that_the_head_was_re_read(tmp_path: Path) -> None:
    from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig

    source = default_schedule(make_tiny_folder(tmp_path / "model"))
    for name in ("training", "held_out"):
        images = torch.from_numpy(rng.normal((40, 1, 16, 16), name)).clamp(-1, 1)
        save_file({"images": images, "labels": torch.arange(40) % 10}, tmp_path / f"{name}.safetensors")
    for name in ("features", "classifier"):
        ImageClassifier(ImageClassifierConfig(widths=(4, 8), feature_dim=8)).save(tmp_path / name)
    passes = [{"distill": {"steps": 2, "reread_steps": 2, "batch": 4}}]
    gates = {"fd": {"max_ratio": 1e9}, "class_accuracy": {"max_drop": 1.0}}
    found = run(recipe(source, tmp_path, tmp_path, passes, gates=gates), tmp_path / "exported")
    assert found["gates_passed"]
    assert {r["variant"]: r["head"] for r in found["rows"]} == {"baseline": "epsilon", "distill": "v", "final": "v"}
    record = next(s["record"] for s in found["stages"] if s["name"] == "distill")
    assert record["head"] == "epsilon re-read as v" and record["reread"]["steps"] == 2
    folder = tmp_path / "exported" / "ddpm"
    assert "distill: epsilon re-read as v" in (folder / "report.md").read_text()
    assert read_json(folder / "final" / "sampler.json")["parameterization"]["prediction"] == "v"
    assert load_model(folder / "final").nfe == 2


def trained(folder: Path, steps: int, seed: int = 0) -> Path:
    """A small class-conditional U-Net trained on the digits with DDPMScheduler() as it comes."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(seed)
    data, noise = load_file(DIGITS / "training.safetensors"), DDPMScheduler()
    network = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), num_class_embeds=11,
    )  # fmt: skip
    adam = torch.optim.AdamW(network.parameters(), lr=2e-3)
    falling = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(data["images"]), (64,))
        x, t = data["images"][rows].float(), torch.randint(1000, (64,))
        labels = torch.where(torch.rand(64) < 0.15, 10, data["labels"][rows])
        eps = torch.randn_like(x)
        loss = (network(noise.add_noise(x, eps, t), t, class_labels=labels).sample - eps).square().mean()
        loss.backward()
        adam.step()
        adam.zero_grad()
        falling.step()
    network.eval().save_pretrained(folder / "unet")
    return default_schedule(folder)


@pytest.mark.slow
def test_a_trained_ddpm_is_distilled_to_two_calls_and_quantized_within_its_gates(tmp_path: Path) -> None:
    """Kept as it was, the head loses everything: its FD is many times the baseline's."""
    source = trained(tmp_path / "model", 1000)
    quality = {"images": 300, "features": str(DIGITS / "features"), "classifier": str(DIGITS / "classifier")}
    common = {
        "sampler": {"steps": 25, "clip": 1.0, "guidance": {"cfg": 0.5}},
        "quality": {**quality, "endpoint_images": 4, "endpoint_steps": 8},
        "gates": {"fd": {"max_ratio": 1.3, "slack": "half_split"}, "class_accuracy": {"max_drop": 0.05}},
    }
    taught = {"nfe": 2, "steps": 250, "learning_rate": 1.0e-3}
    quantized = {"quantize": {"format": "int8", "linear": "weight_only"}}
    found = run(recipe(source, DIGITS, DIGITS, [{"distill": taught}, quantized], **common), tmp_path / "exported")
    fd = {r["variant"]: r["quality"]["fd"]["value"] for r in found["rows"]}
    assert found["gates_passed"], (fd, found["gates"])
    kept = {"distill": {**taught, "head": "keep"}}
    lost = run(recipe(source, DIGITS, DIGITS, [kept], **common), tmp_path / "exported")
    assert not lost["gates_passed"]
    other = next(r["quality"]["fd"]["value"] for r in lost["rows"] if r["variant"] == "distill")
    assert other > 3 * fd["distill"]
