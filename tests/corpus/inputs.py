"""The valid inputs that are spoiled: tiny ones of every kind that a command reads, each made once and only when asked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

JUDGES = ("features", "classifier")


@dataclass(frozen=True)
class Base:
    """A folder that holds each part once it was asked for."""

    root: Path

    def part(self, name: str) -> Path:
        """The part of this name: a folder, or a file."""
        path = self.root / name
        if not path.exists():
            MADE[name](self, path)
        return path

    def copy(self, names: tuple[str, ...], to: Path) -> None:
        """Copies of some parts, each under its name."""
        for name in names:
            path = self.part(name)
            shutil.copytree(path, to / name) if path.is_dir() else shutil.copyfile(path, to / name)


def _model(base: Base, path: Path) -> None:
    """A class-conditional U-Net of pixels and its scheduler."""
    from support.tiny_model import make_tiny_folder

    make_tiny_folder(path)


def _data(base: Base, path: Path) -> None:
    """Samples for training and judging, in the model's shape."""
    import torch
    from safetensors.torch import save_file

    from optimize import rng

    path.mkdir()
    for name, count in (("training", 48), ("held_out", 40)):
        images = torch.from_numpy(rng.normal((count, 1, 16, 16), name)).clamp(-1, 1)
        save_file({"images": images, "labels": torch.arange(count) % 10}, path / f"{name}.safetensors")


def _judges(base: Base, path: Path) -> None:
    """Untrained networks that judge."""
    import torch

    from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig

    for name in JUDGES:
        torch.manual_seed(len(name))
        ImageClassifier(ImageClassifierConfig(widths=(4, 8), feature_dim=8)).save(path / name)


SMALL: dict[str, Any] = {  # a recipe that runs in a second or two
    "version": 1,
    "name": "small",
    "seed": 0,
    "target": "here",
    "source": {"path": "model", "kind": "diffusers"},
    "sampler": {"solver": "ddim", "steps": 2, "clip": 1.0},
    "data": {"training": "data/training.safetensors", "held_out": "data/held_out.safetensors"},
    "benchmark": {"batch": [2], "runners": ["torch"], "source_runners": [], "rounds": 1, "seconds": 0.001, "warm_up": 0, "threads": 1},
    "quality": {
        "images": 16, "batch": 8, "features": "judges/features", "classifier": "judges/classifier",
        "endpoint_images": 2, "endpoint_steps": 4, "replicates": 20, "metrics": ["fd", "class_accuracy", "psnr"],
    },
    "fair": None,
    "gates": {"fd": {"max_ratio": 1e9, "slack": "none"}, "class_accuracy": {"max_drop": 1.0}, "parity": {"fp32": 1.0}},
    "targets": {"size_ratio": 2.0},
}  # fmt: skip
WHOLE: dict[str, Any] = SMALL | {  # a recipe of every section, which is planned and never run
    "sampler": {"solver": "ddim", "steps": 4, "spacing": "trailing", "guidance": {"cfg": 0.5, "interval": [0.1, 0.9]}, "clip": 1.0},
    "passes": [
        {"prune": {"budget": {"macs": 0.4}, "importance": "diffusion_taylor", "batch": 16, "round_to": 8}},
        {"recover": {"steps": 10, "batch": 16, "learning_rate": 1e-4}},
        {"distill": {"method": "multistep_consistency", "nfe": 2, "steps": 12, "batch": 16}},
        {"quantize": {"format": "int8", "samples": 32}},
    ],
    "exports": [{"onnx": {"opset": 18, "precision": "fp32"}}],
    "fair": {"solvers": ["ddim"], "steps": [2, 4], "spacings": ["trailing"], "guided": [False]},
    "pinned": {"model/unet/config.json": "0" * 64},
    "prices": "prices.yaml",
}  # fmt: skip
PRICES: dict[str, Any] = {
    "currency": "EUR",
    "prices": {
        "a100": {"per_hour": 1.5, "source": "a price list", "date": "2026-01"},
        "cpu": {"per_core_hour": 0.04, "source": "a price list", "date": "2026-01-31"},
    },
}


def _json(value: Any) -> Callable[[Base, Path], None]:
    return lambda base, path: void(path.write_text(json.dumps(value)))


def void(_: object) -> None:
    """Nothing, whatever was given."""


def _artifact(base: Base, path: Path) -> None:
    """The model as a finished artifact with its ONNX file."""
    from optimize.architectures.artifact import save_model
    from optimize.diffusion.context import Context
    from optimize.diffusion.sampling import Sampler
    from optimize.exporters.onnx import Onnx
    from optimize.sources.diffusers import DiffusersSource
    from optimize.storage.commit import commit

    model = DiffusersSource(base.part("model")).load(Sampler(steps=2))

    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        record = Onnx().export(model, temporary, Context())
        about = {
            "id": "0123456789abcdef",
            "parent": "fedcba9876543210",
            "seed": 0,
            "source": {"path": "model", "license": "none"},
        }
        return about | {"passes": [{"name": "prune", "config": {}, "record": {}}], "exports": {"onnx": record}}

    commit(path, write)


def _edited(base: Base, path: Path) -> None:
    """The model as an artifact that was pruned and quantized, without an ONNX file."""
    from support.restored import saved

    from optimize.diffusion.context import Context
    from optimize.diffusion.sampling import Sampler
    from optimize.passes.prune import Prune
    from optimize.passes.quantize import Quantize
    from optimize.sources.diffusers import DiffusersSource

    model, _ = Prune.model_validate({"budget": {"macs": 0.3}, "importance": "magnitude"}).apply(
        DiffusersSource(base.part("model")).load(Sampler(steps=2)), Context()
    )
    saved(Quantize(samples=8, batch=8).apply(model, Context())[0], path)


def _checkpoint(base: Base, path: Path) -> None:
    """The pipeline's weights in one file, under their original names."""
    from support.original_names import write_checkpoint

    write_checkpoint(path, base.part("pipeline"))


def _pipeline(base: Base, path: Path) -> None:
    """A Stable Diffusion pipeline."""
    from support.tiny_pipelines import write_pipeline

    write_pipeline(path)


def _lora(base: Base, path: Path) -> None:
    """A LoRA of the pipeline's U-Net."""
    from safetensors.torch import save_file
    from support.tiny_pipelines import lora_tensors

    role = {"A": "lora_A.weight", "B": "lora_B.weight"}
    named = {f"unet.{k[:-2]}.{role[k[-1]]}": v for k, v in lora_tensors().items()}
    save_file(named, path)


def _run(base: Base, path: Path) -> None:
    """A finished run's folder, as far as reports read it."""
    from support.summaries import whole_summary

    path.mkdir()
    (path / "summary.json").write_text(json.dumps(whole_summary()))


def measured(key: str, factor: float) -> dict[str, Any]:
    """A line of a measurements file."""
    from optimize.diffusion.sampling import Sampler
    from optimize.measure.record import Measurement, Variant

    name, runner, batch = key.split("/")
    variant = Variant(key=key, folder=name, runner=runner, batch=int(batch), sampler=Sampler(steps=2), threads=1)
    times = [[factor * (1 + 0.01 * i), factor] for i in range(4)]
    about: dict[str, Any] = {
        "runner": {"name": runner, "device": "cpu", "precision": "fp32", "clock": "perf_counter"},
        "environment": {"device": "cpu", "cpu": "a processor", "cores": 2},
        "threads": {"OMP_NUM_THREADS": 1},
        "memory": {"peak_bytes": 10**8, "file_bytes": 10**6},
        "cold": {"process_s": 1.0, "load_s": 0.1},
        "energy": {"joules": 3.0, "images": 8, "counter": "rapl"},
        "conditions": [{"load": 0.5, "throttled": []}],
    }
    return Measurement(variant, bench="b", artifact_id=name, call_s=times, image_s=times, nfe=2, **about).to_json()


def _measurements(base: Base, path: Path) -> None:
    """A measurements file of two rows."""
    rows = (measured("baseline/torch/2", 0.02), measured("final/onnxruntime/2", 0.005))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _kits(base: Base, path: Path) -> None:
    """A finished build kit, and the artifact that it was made of."""
    import pytest
    from support.kits import artifact_of, built, kit_of

    artifact = artifact_of(path / "final")
    with pytest.MonkeyPatch.context() as patch:
        built(kit_of(artifact, path / "kit"), patch)


MADE: dict[str, Callable[[Base, Path], None]] = {
    "model": _model,
    "data": _data,
    "judges": _judges,
    "small.yaml": _json(SMALL),
    "whole.yaml": _json(WHOLE),
    "prices.yaml": _json(PRICES),
    "final": _artifact,
    "edited": _edited,
    "pipeline": _pipeline,
    "checkpoint.safetensors": _checkpoint,
    "lora.safetensors": _lora,
    "kits": _kits,
    "run": _run,
    "measurements.jsonl": _measurements,
}
