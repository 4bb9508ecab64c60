"""Spoiled inputs that users give: recipes, model folders, weights, checkpoints, judges, data, LoRA files, prices.

Each kind is a function that gives its inputs in an order that the seed decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from corpus import tensors
from corpus.cases import A100, OF_RECIPES, OUT, SEED, Asked, Input, Spoiling, at, text, turns
from corpus.documents import TEXTS, Document, Place, spoiled
from corpus.files import INSTEAD, Spoil, put
from corpus.inputs import PRICES, SMALL, WHOLE, Base


def recipes(base: Base) -> Iterator[Input]:
    """Recipes, by value, by text, by file."""

    def one(name: str, file: str, spoil: Spoiling, refused: bool) -> Input:
        asked = [Asked(("plan", f"../in/{file}", *A100), refused)]
        if refused or file == "small.yaml":
            asked.append(Asked(("run", f"../in/{file}", *OUT, "--quiet"), refused))
        return Input("recipe", f"{file}: {name}", (*OF_RECIPES, "small.yaml", "whole.yaml"), spoil, tuple(asked))

    def by_value(file: str, value: Any) -> Iterator[Input]:
        for bad in spoiled(Document(value, yaml=True, typed=_in_recipe), f"{SEED} {file}"):
            yield one(bad.name, file, text(f"in/{file}", bad.text), bad.refused)

    texts = (one(name, "small.yaml", text("in/small.yaml", told), True) for name, told in TEXTS.items())
    files = (one(name, "small.yaml", at("in/small.yaml", spoil), True) for name, spoil in INSTEAD.items())
    whole = by_value("whole.yaml", WHOLE)
    yield from turns(whole, by_value("small.yaml", SMALL), texts, whole, files)


def _in_recipe(place: Place) -> bool:
    return True


def models(base: Base) -> Iterator[Input]:
    """Model folders: configs of every part, the index, files in their places."""
    unet, scheduler = (
        json.loads((base.part("model") / p).read_text())
        for p in ("unet/config.json", "scheduler/scheduler_config.json")
    )
    index, vae, encoder = (
        json.loads((base.part("pipeline") / p).read_text())
        for p in ("model_index.json", "vae/config.json", "text_encoder/config.json")
    )

    def of_model(path: str, name: str, spoil: Spoiling, refused: bool, recipe: bool = True) -> Input:
        asked = [
            Asked((c, "../in/model", *A100, *more), refused)
            for c, more in (("plan", ()), ("inspect", ("--no-measure",)))
        ]
        if "scheduler" in path:
            asked = asked[:1]
        asked.append(Asked(("export", "../in/model", "--format", "onnx", "--out", "../out/made", *OUT), refused))
        return Input("model", f"{path}: {name}", ("model",), spoil, tuple(asked))

    def of_pipeline(path: str, name: str, spoil: Spoiling, refused: bool) -> Input:
        asked = [Asked(("inspect", "../in/pipeline", "--no-measure", *A100)), Asked(("plan", "../in/pipeline", *A100))]
        asked.append(Asked(("export", "../in/pipeline", "--out", "../out/made"), refused))
        return Input("pipeline", f"{path}: {name}", ("pipeline",), spoil, tuple(asked))

    def values(
        path: str, value: Any, typed: Callable[[Place], bool], made: Callable[..., Input], folder: str
    ) -> Iterator[Input]:
        for bad in spoiled(Document(value, typed=typed), f"{SEED} {path}"):
            yield made(path, bad.name, text(f"in/{folder}/{path}", bad.text), bad.refused)

    def files(path: str, made: Callable[..., Input], folder: str) -> Iterator[Input]:
        for name, spoil in INSTEAD.items():
            yield made(path, name, at(f"in/{folder}/{path}", spoil), not (name == "missing" and "scheduler" in path))

    yield from turns(
        values("unet/config.json", unet, _in(UNET), of_model, "model"),
        values("scheduler/scheduler_config.json", scheduler, lambda p: p[0] != "_diffusers_version", of_model, "model"),
        values("model_index.json", index, lambda p: len(p) == 1 and p[0] in INDEX, of_pipeline, "pipeline"),
        values("vae/config.json", vae, _in(VAE), of_pipeline, "pipeline"),
        values("text_encoder/config.json", encoder, _in(ENCODER), of_pipeline, "pipeline"),
        files("unet/config.json", of_model, "model"),
        files("model_index.json", of_pipeline, "pipeline"),
        files("scheduler/scheduler_config.json", of_model, "model"),
        files("text_encoder/config.json", of_pipeline, "pipeline"),
        files("vae/diffusion_pytorch_model.safetensors", of_pipeline, "pipeline"),
    )


UNET = ("in_channels", "out_channels", "layers_per_block", "block_out_channels", "down_block_types", "up_block_types", "norm_num_groups", "num_class_embeds", "sample_size", "_class_name", "attention_head_dim")  # fmt: skip
VAE = ("in_channels", "out_channels", "layers_per_block", "block_out_channels", "down_block_types", "up_block_types", "norm_num_groups", "latent_channels", "_class_name", "scaling_factor")  # fmt: skip
ENCODER = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "max_position_embeddings", "hidden_act")  # fmt: skip
INDEX = ("_class_name", "unet", "vae", "scheduler", "text_encoder", "tokenizer")


def _in(names: Iterable[str]) -> Callable[[Place], bool]:
    return lambda place: place[0] in names


def weights(base: Base) -> Iterator[Input]:
    """Weights: of a model folder, of a text encoder."""
    for name, spoil in (*tensors.SPOILED.items(), *INSTEAD.items()):
        file = "unet/diffusion_pytorch_model.safetensors"
        asked = [Asked(("export", "../in/model", "--format", "onnx", "--out", "../out/made", *OUT), True)]
        asked += [Asked(("plan", "../in/model", *A100)), Asked(("inspect", "../in/model", "--no-measure", *A100))]
        yield Input("weights", f"{file}: {name}", ("model",), at(f"in/model/{file}", spoil), tuple(asked))
        file = "text_encoder/model.safetensors"
        asked = [Asked(("export", "../in/pipeline", "--out", "../out/made"), True)]
        yield Input("weights", f"{file}: {name}", ("pipeline",), at(f"in/pipeline/{file}", spoil), tuple(asked))


def checkpoints(base: Base) -> Iterator[Input]:
    """Checkpoints in one file, and the configs that are given beside them."""
    file, configs = "checkpoint.safetensors", ("--config", "../in/pipeline")
    for name, spoil in (*tensors.SPOILED.items(), *INSTEAD.items()):
        asked = (
            Asked(("plan", f"../in/{file}", *configs, *A100)),
            Asked(("inspect", f"../in/{file}", *configs, "--no-measure", *A100)),
            Asked(("export", f"../in/{file}", *configs, "--format", "onnx", "--out", "../out/made", *OUT)),
            Asked(("inspect", f"../in/{file}", "--no-measure", *A100), True),
        )
        yield Input("checkpoint", name, ("pipeline", file), at(f"in/{file}", spoil), asked)


def judges(base: Base) -> Iterator[Input]:
    """Networks that judge: their configs and weights."""
    config = json.loads((base.part("judges") / "features" / "config.json").read_text())

    def one(path: str, name: str, spoil: Spoil, refused: bool) -> Input:
        asked = (Asked(("run", "../in/small.yaml", *OUT, "--quiet"), refused),)
        return Input("judge", f"{path}: {name}", (*OF_RECIPES, "small.yaml"), at(f"in/judges/{path}", spoil), asked)

    def values() -> Iterator[Input]:
        for bad in spoiled(Document(config), f"{SEED} judges"):
            if bad.refused:
                yield one("features/config.json", bad.name, put(bad.text.encode()), True)

    yield from turns(
        values(),
        (one("features/config.json", name, spoil, True) for name, spoil in INSTEAD.items()),
        (one("classifier/model.safetensors", name, spoil, True) for name, spoil in tensors.SPOILED.items()),
    )


def data(base: Base) -> Iterator[Input]:
    """Files of samples."""
    for name, spoil in (*tensors.SPOILED.items(), *INSTEAD.items()):
        for file in ("training", "held_out"):
            asked = (Asked(("run", "../in/small.yaml", *OUT, "--quiet"), True),)
            parts = (*OF_RECIPES, "small.yaml")
            yield Input("data", f"{file}: {name}", parts, at(f"in/data/{file}.safetensors", spoil), asked)


def loras(base: Base) -> Iterator[Input]:
    """LoRA files."""
    for name, spoil in (*tensors.SPOILED.items(), *INSTEAD.items()):
        asked = (Asked(("export", "../in/pipeline", "--lora", "../in/lora.safetensors", "--out", "../out/made"), True),)
        yield Input("lora", name, ("pipeline", "lora.safetensors"), at("in/lora.safetensors", spoil), asked)


def prices(base: Base) -> Iterator[Input]:
    """Price tables."""

    def one(name: str, spoil: Spoiling, refused: bool) -> Input:
        asked = [Asked(("plan", "../in/small.yaml", *A100, "--prices", "../in/prices.yaml"), refused)]
        if refused:
            asked.append(Asked(("run", "../in/small.yaml", "--quiet", "--prices", "../in/prices.yaml", *OUT), True))
        return Input("prices", name, (*OF_RECIPES, "small.yaml"), spoil, tuple(asked))

    values = spoiled(Document(PRICES, yaml=True), f"{SEED} prices")
    yield from turns(
        (one(bad.name, text("in/prices.yaml", bad.text), bad.refused) for bad in values),
        (one(name, text("in/prices.yaml", told), True) for name, told in TEXTS.items()),
        (one(name, at("in/prices.yaml", spoil), True) for name, spoil in INSTEAD.items()),
    )
