"""The corpus: for every kind of input, seeded ways to spoil it and the commands that are given it.

Each kind is a function that gives its inputs in an order that the seed decides; `corpus` takes the first of each.
A command of an input `refuses` it, or may also take it (a field left out that has a default, a file that it never reads).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from corpus import tensors
from corpus.documents import TEXTS, Document, Place, Raw, Spoiled, spoiled, written
from corpus.files import INSTEAD, Spoil, put
from corpus.inputs import PRICES, SMALL, WHOLE, Base, measured

SEED = 20261127
Spoiling = Callable[[Path], object]  # of a file


@dataclass(frozen=True)
class Asked:
    """A command, and whether it must refuse; paths are as seen from the folder cwd."""

    arguments: tuple[str, ...]
    refuses: bool = False


@dataclass(frozen=True)
class Input:
    """A spoiled input: parts copied to in/, and to out/ those that a command writes into; what is done to them."""

    kind: str
    name: str
    parts: tuple[str, ...]
    spoil: Spoiling
    asked: tuple[Asked, ...]
    own: tuple[str, ...] = ()


OUT = ("--exported", "../out")
A100 = ("--target", "a100")
OF_RECIPES = ("model", "data", "judges", "prices.yaml")


def text(path: str, content: str) -> Spoiling:
    """The file at `path` holds this text."""
    return lambda place: put(content.encode("utf-8", "surrogatepass"))(place / path)


def at(path: str, spoil: Spoil) -> Spoiling:
    """A file is spoiled."""
    return lambda place: spoil(place / path)


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


def reseal(folder: Path) -> None:
    """The manifest names the files as they are now."""
    from optimize.storage.commit import hash_files

    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    text("manifest.json", json.dumps(manifest | {"files": hash_files(folder)}))(folder)


def sealed(path: str, spoil: Spoil) -> Spoiling:
    """A file of the artifact is spoiled, and the manifest names it as it is; in both copies."""

    def change(place: Path) -> None:
        for folder in (place / "in" / "final", place / "out" / "final"):
            spoil(folder / path)
            if path != "manifest.json":
                reseal(folder)

    return change


BENCH = ("--rounds", "1", "--seconds", "0.001", "--warm-up", "0", "--threads", "1")


def artifacts(base: Base) -> Iterator[Input]:
    """Artifacts that are sealed again after they were spoiled."""
    documents = {
        n: json.loads((base.part("final") / n).read_text()) for n in ("structure.json", "sampler.json", "manifest.json")
    }

    def one(path: str, name: str, spoil: Spoil, refused: bool) -> Input:
        about = path == "manifest.json"
        asked = (
            Asked(("verify", "../in/final"), refused and about),
            Asked(("plan", "../in/final", *A100), refused),
            Asked(("inspect", "../in/final", "--no-measure", *A100), refused and path != "sampler.json"),
            Asked(("bench", "../in/final", "--runner", "torch", *BENCH), refused),
            Asked(("bench", "../in/final", "--runner", "onnxruntime", *BENCH), refused and path == "sampler.json"),
            Asked(("serve", "../in/final", "--runner", "onnxruntime"), refused and path == "sampler.json"),
            Asked(("serve", "../in/final", "--triton", "../out/triton"), refused and path == "sampler.json"),
            Asked(
                ("export", "../out/final", "--target", "v100", "--batch", "1", "--kits", "../out/kits", *OUT),
                refused and path == "sampler.json",
            ),
        )
        return Input("artifact", f"{path}: {name}", ("final",), sealed(path, spoil), asked, ("final",))

    def values(path: str, typed: Callable[[Place], bool]) -> Iterator[Input]:
        for bad in spoiled(Document(documents[path], typed=typed), f"{SEED} {path}"):
            yield one(path, bad.name, put(bad.text.encode()), bad.refused)

    def files(path: str, spoils: dict[str, Spoil]) -> Iterator[Input]:
        yield from (one(path, name, spoil, True) for name, spoil in spoils.items() if name != "missing")

    sampler = values("sampler.json", _in_sampler)
    yield from turns(
        values("structure.json", _in_structure),
        sampler,
        values("manifest.json", _in_manifest),
        sampler,
        files("model.safetensors", tensors.SPOILED),
        files("structure.json", INSTEAD),
        files("sampler.json", INSTEAD),
        files("manifest.json", INSTEAD),
    )


def edited(base: Base) -> Iterator[Input]:
    """Artifacts of passes: the records that a pruned and quantized network is built again from, and its weights."""
    structure = json.loads((base.part("edited") / "structure.json").read_text())

    def one(path: str, name: str, spoil: Spoil, refused: bool) -> Input:
        def change(place: Path) -> None:
            spoil(place / "in" / "edited" / path)
            reseal(place / "in" / "edited")

        asked = (
            Asked(("plan", "../in/edited", *A100), refused),
            Asked(("inspect", "../in/edited", "--no-measure", *A100), refused and path == "structure.json"),
            Asked(("bench", "../in/edited", "--runner", "torch", *BENCH), refused),
        )
        return Input("edited", f"{path}: {name}", ("edited",), change, asked)

    def values() -> Iterator[Input]:
        for bad in spoiled(Document(structure["edits"], typed=_in_edits), f"{SEED} edits"):
            text = written(structure | {"edits": Raw(bad.text)})
            yield one("structure.json", bad.name, put(text.encode("utf-8", "surrogatepass")), bad.refused)

    every = values()
    yield from turns(every, every, (one("model.safetensors", n, spoil, True) for n, spoil in tensors.SPOILED.items()))


def _in_edits(place: Place) -> bool:
    """What a network is built again from; the rest of a record is told and not read."""
    rebuilt = ("shapes", "attributes", "quantizers", "kept_dtype")
    return len(place) < 3 or (place[2] in rebuilt)


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


def _in_structure(place: Place) -> bool:
    own = set(UNET) - {"_class_name"}  # the structure names the architecture itself
    return place[0] != "config" or (len(place) > 1 and place[1] in own)


def _in_sampler(place: Place) -> bool:
    return place[0] not in ("nfe", "steps")  # what others read, and a Model does not


def _in_manifest(place: Place) -> bool:
    return place[0] in ("schema", "files", "passes")


def onnx_files(base: Base) -> Iterator[Input]:
    """ONNX files of an artifact that is sealed again."""
    from corpus.graphs import SPOILED

    for name, spoil in (*SPOILED.items(), *INSTEAD.items()):
        asked = [
            Asked(("bench", "../in/final", "--runner", "onnxruntime", *BENCH), True),
            Asked(("bench", "../in/final", "--runner", "openvino", *BENCH), name != "a value that is no number"),
            Asked(("export", "../out/final", "--target", "v100", "--batch", "1", "--kits", "../out/kits", *OUT)),
            Asked(("serve", "../in/final", "--triton", "../out/triton")),
        ]
        yield Input("onnx", name, ("final",), sealed("onnx/model.onnx", spoil), tuple(asked), ("final",))


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


def kits(base: Base) -> Iterator[Input]:
    """Finished build kits that are brought back."""
    kit = base.part("kits") / "kit"
    documents = {n: json.loads((kit / n).read_text()) for n in ("kit.json", "result.json")}

    def one(path: str, name: str, spoil: Spoil, refused: bool) -> Input:
        asked = (Asked(("export", "../out/kits/final", "--adopt", "../in/kits/kit"), refused),)
        return Input("kit", f"{path}: {name}", ("kits",), at(f"in/kits/kit/{path}", spoil), asked, ("kits",))

    def values(path: str) -> Iterator[Input]:
        for bad in spoiled(Document(documents[path], typed=lambda place: False), f"{SEED} {path}"):
            yield one(path, bad.name, put(bad.text.encode()), bad.refused)

    def files(path: str) -> Iterator[Input]:
        yield from (one(path, name, spoil, True) for name, spoil in INSTEAD.items())

    result = values("result.json")
    yield from turns(values("kit.json"), result, files("kit.json"), files("result.json"), result)


def reports(base: Base) -> Iterator[Input]:
    """Summaries and measurements."""
    summary = json.loads((base.part("run") / "summary.json").read_text())

    def of_summary(name: str, spoil: Spoil, refused: bool) -> Input:
        def both(place: Path) -> None:
            for folder in ("in", "out"):
                spoil(place / folder / "run" / "summary.json")

        asked = (Asked(("report", "../out/run"), refused), Asked(("compare", "../in/run", "../in/run"), refused))
        return Input("summary", name, ("run",), both, asked, ("run",))

    def of_measurements(name: str, spoil: Spoil, refused: bool) -> Input:
        file = "../in/measurements.jsonl"
        asked = (
            Asked(("compare", file, file), refused),
            Asked(("plan", "../in/model", *A100, "--measurements", file), refused),
        )
        return Input("measurements", name, ("model", "measurements.jsonl"), at("in/measurements.jsonl", spoil), asked)

    other = json.dumps(measured("final/onnxruntime/2", 0.005))

    def lines(bad: Spoiled) -> bytes:
        return f"{bad.text}\n{other}\n".encode("utf-8", "surrogatepass")

    summaries = spoiled(Document(summary, typed=_in_summary), f"{SEED} summary")
    rows = spoiled(Document(measured("baseline/torch/2", 0.02), typed=_in_measured), f"{SEED} measurements")
    written_so = {
        **INSTEAD,
        "two on a line": put((other + other).encode()),
        "an empty line": put(f"{other}\n\n{other}\n".encode()),
    }
    yield from turns(
        (of_summary(b.name, put(b.text.encode("utf-8", "surrogatepass")), b.refused) for b in summaries),
        (of_measurements(b.name, put(lines(b)), b.refused) for b in rows),
        (of_summary(name, spoil, True) for name, spoil in INSTEAD.items()),
        (of_measurements(name, spoil, name != "an empty line") for name, spoil in written_so.items()),
    )


def _in_summary(place: Place) -> bool:
    return place[0] in ("rows", "gates", "targets") and len(place) == 1


def _in_measured(place: Place) -> bool:
    return place[0] in ("variant", "call_s", "image_s", "nfe", "memory") and len(place) == 1


def turns(*kinds: Iterable[Input]) -> Iterator[Input]:
    """One of each in its turn until all have ended; one that stands there twice comes twice as often."""
    iterators = [iter(kind) for kind in kinds]
    while iterators:
        for one in list(iterators):
            found = next(one, None)
            if found is None:
                iterators.remove(one)
            else:
                yield found


def kinds() -> dict[str, tuple[Callable[[Base], Iterator[Input]], int, int]]:
    """(inputs of a kind, how many of them are the corpus, how many of those come with every test run)."""
    from corpus.options import options

    return {
        "recipe": (recipes, 170, 24),
        "model": (models, 150, 6),
        "weights": (weights, 90, 4),
        "artifact": (artifacts, 130, 6),
        "edited": (edited, 80, 3),
        "onnx": (onnx_files, 70, 0),
        "checkpoint": (checkpoints, 40, 2),
        "judge": (judges, 60, 3),
        "data": (data, 90, 3),
        "lora": (loras, 72, 2),
        "prices": (prices, 80, 10),
        "kit": (kits, 80, 5),
        "report": (reports, 130, 16),
        "options": (options, 300, 12),
    }


def corpus(base: Base, kind: str) -> list[Input]:
    """The inputs of a kind."""
    made, count, _ = kinds()[kind]
    return list(islice(made(base), count))
