"""A diffusers pipeline folder as it is on disk: which class, which networks, and whether all of it is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

from optimize.architectures.components import class_name
from optimize.architectures.known import ARCHITECTURES
from optimize.architectures.original import is_single, part_weights
from optimize.architectures.recognized import recognized
from optimize.errors import ArtifactError, UserError, unknown
from optimize.storage.variants import Weights, weights_of
from optimize.storage.weights import read_json

INDEX = "model_index.json"
PIPELINES = {  # those that optimum has a class for, and the folder of their denoiser
    "StableDiffusionPipeline": "unet",
    "StableDiffusionImg2ImgPipeline": "unet",
    "StableDiffusionInpaintPipeline": "unet",
    "StableDiffusionXLPipeline": "unet",
    "StableDiffusionXLImg2ImgPipeline": "unet",
    "StableDiffusionXLInpaintPipeline": "unet",
    "LatentConsistencyModelPipeline": "unet",
    "LatentConsistencyModelImg2ImgPipeline": "unet",
    "StableDiffusion3Pipeline": "transformer",
    "StableDiffusion3Img2ImgPipeline": "transformer",
    "StableDiffusion3InpaintPipeline": "transformer",
    "FluxPipeline": "transformer",
}
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")
COPIED = ("scheduler", *TOKENIZERS, "feature_extractor")  # read by their libraries as they are


@dataclass(frozen=True)
class Pipeline:
    """A pipeline folder: its index, and which networks and other parts it has. `checkpoint` is a single file that holds
    some of its networks' weights, the folder those of the others."""

    folder: Path
    index: dict[str, Any]
    checkpoint: Path | None = None

    def has(self, name: str) -> bool:
        """Whether the index names a part of a class (optional ones stand there as [null, null])."""
        entry = self.index.get(name)
        return isinstance(entry, list) and len(entry) == 2 and entry[1] is not None

    @property
    def name(self) -> str:
        """The pipeline's class."""
        return str(self.index["_class_name"])

    @property
    def denoiser(self) -> str:
        """The folder of the network that is called again and again: unet or transformer."""
        return PIPELINES[self.name]

    @property
    def encoders(self) -> list[str]:
        """The text encoders."""
        return [name for name in ENCODERS if self.has(name)]

    @property
    def networks(self) -> tuple[str, ...]:
        """The folders that weights are read from."""
        return (self.denoiser, "vae", *self.encoders)

    @property
    def left_out(self) -> list[str]:
        """Parts that the layout has no place for, e.g. a safety checker."""
        known = {*ENCODERS, *COPIED, self.denoiser, "vae"}
        return [name for name in self.index if self.has(name) and name not in known]

    def config(self, part: str) -> dict[str, Any]:
        """The config of a part."""
        config = read_json(self.folder / part / "config.json")
        if not isinstance(config, dict):
            raise ArtifactError(
                f"{self.folder / part / 'config.json'}: a config is a JSON object, this is a {type(config).__name__}."
            )
        return config

    def weights(self, part: str) -> Weights:
        """Where the weights of a part are: in the single file where it holds them, else in the part's folder."""
        config = self.config(part)
        single = part_weights(self.checkpoint, part, class_name(config), config) if self.checkpoint else None
        if self.checkpoint and single is None and not any((self.folder / part).glob("*.safetensors*")):
            raise ArtifactError(
                f"{self.checkpoint}: it does not hold the weights of the pipeline's {part}, and neither does {self.folder / part}. Put them there."
            )
        return single or weights_of(self.folder / part)

    def files(self, part: str, weights: bool) -> list[Path]:
        """The files that are read for a part: its config and, if so, its weights."""
        return [self.folder / part / "config.json", *(self.weights(part).files if weights else ())]


def pipeline_of(path: Path, config: Path | None) -> Pipeline:
    """The pipeline in a folder, or in a checkpoint of one file with the folder `config` of its configs. Raises what
    `open_pipeline` does, and UserError where one is given without the other."""
    if is_single(path):
        if config is None:
            raise ArtifactError(recognized(path))
        return replace(open_pipeline(config), checkpoint=path)
    if config is not None:
        raise UserError(
            f"--config: {config}: for a checkpoint in one .safetensors file, and {path} is none. Leave it out."
        )
    return open_pipeline(path)


def open_pipeline(folder: Path) -> Pipeline:
    """The pipeline in a folder. Raises UserError where there is none, or one of a class that has no layout (with what can
    be done instead), ArtifactError where a part that the index names is missing."""
    if not (folder / INDEX).is_file():
        reason = (
            f"{folder}: there is no {INDEX} in it. Give a pipeline folder of diffusers, as save_pretrained writes it. "
            if folder.is_dir()
            else ""
        )
        raise UserError(f"{reason}{recognized(folder)}")
    index = read_json(folder / INDEX)
    name = index.get("_class_name", "") if isinstance(index, dict) else ""
    if not isinstance(name, str) or name not in PIPELINES:
        raise _refused(folder, str(name)[:60])
    _check_entries(folder, index)
    found = Pipeline(folder, index)
    if missing := _missing(found):
        raise ArtifactError(
            f"{folder}: {', '.join(f'{n}/' for n in missing)} is missing, and {name} cannot be used without. Copy the whole pipeline folder."
        )
    return found


def _refused(folder: Path, name: str) -> UserError:
    """A class without a layout: the nearest name for one that diffusers has not; for one that it has, what can be done."""
    import diffusers

    if name not in dir(diffusers):
        return unknown(f"{folder / INDEX}: _class_name", name, PIPELINES)
    said = f"{folder / INDEX}: {name} has no layout, since optimum has no class for it here. Allowed: {', '.join(sorted(PIPELINES))}."
    for part in ("transformer", "unet"):
        if (config := folder / part / "config.json").is_file() and class_name(read_json(config)) in ARCHITECTURES:
            return UserError(
                f"{said} Its {part} alone can be exported: optimize export {quote(str(folder))} --format onnx --out {quote(str(Path('exported', folder.resolve().name)))}."
            )
    return UserError(said)


def _check_entries(folder: Path, index: dict[str, Any]) -> None:
    """Raise ArtifactError where the index's entry of a part is no pair of library and class."""
    for name in (*dict.fromkeys(PIPELINES.values()), "vae", *ENCODERS, *COPIED):
        entry = index.get(name, [None, None])
        pair = isinstance(entry, list) and len(entry) == 2 and all(_named(text) for text in entry)
        if not pair:
            raise ArtifactError(
                f"{folder / INDEX}: {name}: expected [library, class] or [null, null], found {ascii(entry)[:100]}. Copy the whole pipeline folder."
            )


def _named(text: Any) -> bool:
    return text is None or (isinstance(text, str) and text.isprintable())


def _missing(pipeline: Pipeline) -> list[str]:
    """Parts that the index names and the folder has not, and those that no pipeline of the class does without."""
    wanted = {
        **dict.fromkeys(pipeline.networks, "config.json"),
        **{name: "" for name in COPIED if pipeline.has(name)},
    }
    missing = [name for name, file in wanted.items() if not (pipeline.folder / name / file).exists()]
    return missing + [name for name in _needed(pipeline) if name not in wanted]


def _needed(pipeline: Pipeline) -> list[str]:
    """SDXL's refiner has only the second text encoder and tokenizer; Stable Diffusion 3 may go without its third."""
    texts = ["tokenizer", "text_encoder"]
    if pipeline.denoiser == "transformer":
        texts += ["tokenizer_2", "text_encoder_2"]
    elif pipeline.has("tokenizer_2") and pipeline.has("text_encoder_2"):
        texts = []
    pairs = [
        t for t, e in zip(TOKENIZERS, ENCODERS) if pipeline.has(e)
    ]  # a text encoder reads what its tokenizer wrote
    return ["scheduler", *dict.fromkeys([*texts, *pairs])]
