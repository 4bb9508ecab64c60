"""The folder that the documentation speaks of: a reader's models, data and judges, all tiny, under the names it uses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from support.original_names import write_checkpoint
from support.tiny_model import make_tiny_folder
from support.tiny_pipelines import lora_tensors, write_pipeline, write_transformer_pipeline

from optimize import rng

ROOT = Path(__file__).parents[2]
SMALL: dict[str, dict[str, Any]] = {  # fields of a recipe's passes that make it a matter of seconds
    "prune": {"batch": 8, "stride": 200},
    "recover": {"steps": 2, "batch": 4},
    "distill": {"steps": 2, "batch": 4},
    "quantize": {"samples": 8},
}


def make_workspace(folder: Path) -> Path:
    """`my/…`, `style.safetensors`, and the shipped example under `examples/`."""
    (folder / "examples").symlink_to(ROOT / "examples")
    make_tiny_folder(folder / "my/pipeline")
    _write_data(folder / "my")
    for judge in ("features", "classifier"):
        (folder / "my" / judge).symlink_to(ROOT / "examples/digits" / judge)
    write_checkpoint(folder / "my/style-model.safetensors", write_pipeline(folder / "my/stable-diffusion"))
    write_transformer_pipeline(folder / "my/flux", "flux")
    _write_pixart(folder / "my/pixart")
    tensors = {
        f"unet.{k.removesuffix('.A').removesuffix('.B')}.lora_{k[-1]}.weight": v for k, v in lora_tensors().items()
    }
    save_file(tensors, folder / "style.safetensors")
    return folder


def _write_data(folder: Path) -> None:
    for name, count in (("training", 64), ("held_out", 40)):
        images = torch.from_numpy(rng.normal((count, 1, 16, 16), name)).clamp(-1, 1)
        save_file({"images": images, "labels": torch.arange(count) % 10}, folder / f"{name}.safetensors")


def _write_pixart(folder: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    torch.manual_seed(3)
    sizes = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "cross_attention_dim": 16}
    PixArtTransformer2DModel(sample_size=8, caption_channels=12, **sizes).save_pretrained(folder / "transformer")
    DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    index = {"_class_name": "PixArtAlphaPipeline", "transformer": ["diffusers", "PixArtTransformer2DModel"]}
    (folder / "model_index.json").write_text(yaml.safe_dump(index, default_flow_style=True))


def shrunk(text: str, passes: Sequence[str] = tuple(SMALL)) -> str:
    """A recipe of the documentation with little to do at each station, and of its passes those named."""
    recipe = yaml.safe_load(text)
    recipe["passes"] = [step for step in recipe["passes"] if set(step) <= set(passes)]
    for step in recipe["passes"]:
        ((name, fields),) = step.items()
        step[name] = {**fields, **SMALL[name]}
    recipe["sampler"]["steps"] = 4
    recipe["benchmark"] |= {
        "batch": [2],
        "runners": ["torch", "onnxruntime"],
        "source_runners": [],
        "rounds": 2,
        "seconds": 0.02,
        "warm_up": 0.05,
    }
    recipe["quality"] |= {"images": 32, "endpoint_images": 4, "endpoint_steps": 8, "replicates": 20}
    recipe["fair"] = {"solvers": ["ddim"], "steps": [2], "spacings": ["trailing"]}
    recipe["gates"] = {"fd": {"max_ratio": 1e9}, "class_accuracy": {"max_drop": 1.0}, "parity": {"int8": 1.0}}
    recipe["targets"] = {}
    return yaml.safe_dump(recipe, sort_keys=False)
