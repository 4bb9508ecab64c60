"""What a folder or file is that is no model here, and what to give instead: one sentence each, for every command."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from optimize.architectures.components import class_name
from optimize.architectures.known import ARCHITECTURES
from optimize.architectures.original import DENOISERS, OURS, is_single
from optimize.errors import ArtifactError
from optimize.storage.weights import header, read_json, refuse_pickle

INDEX, NETWORKS = "model_index.json", ("unet", "transformer")
PIPELINE = "Give the pipeline's folder (unet/config.json or transformer/config.json, and scheduler/)"
LORA = "a LoRA. It is merged into a pipeline while that is exported: optimize export PIPELINE --out FOLDER --lora"
CONTROLNET = (
    "a ControlNet alone ({0}). It is a network beside the U-Net, and only the U-Net that it steers is worked on. "
    f"{PIPELINE}, in a recipe with source.controlnet: true: the U-Net then takes the ControlNet's residuals as inputs"
)
PARTS = (  # classes by their names, and what they are
    (r".*ControlNet.*", CONTROLNET),
    (r".*(Adapter|IPAdapter).*", f"an adapter alone ({{0}}), which does nothing without its network. {PIPELINE}"),
    (r"Autoencoder.*|VQModel|.*VAE.*|AsymmetricAutoencoderKL|ConsistencyDecoderVAE", f"an autoencoder alone ({{0}}), a part that is exported with its pipeline. {PIPELINE}; optimize inspect looks at it alone"),
    (r"CLIPText.*|T5.*|UMT5.*|.*TextModel.*|.*ForCausalLM|.*EncoderModel", f"a text encoder or language model alone ({{0}}), a part that is exported with its pipeline. {PIPELINE}; optimize inspect looks at it alone"),
    (r".*(ImageProcessor|Vision|CLIPModel|Dinov2).*", f"a network that looks at images ({{0}}), no denoiser. {PIPELINE}; a recipe judges with it in quality.features"),
    (r".*Scheduler", f"a scheduler alone ({{0}}). {PIPELINE}"),
)  # fmt: skip
FILES = (  # beginnings and ends of tensors' names in a file, and what holds them
    (r".*(lora_[AB]|lora_up|lora_down|lora\.up|lora\.down|hada_w|lokr_w)\w*(\..+)?", LORA),
    (r"control_model\..+|(.+\.)?(controlnet_.+|input_hint_block\..+)", CONTROLNET.format("by the names in it")),
    (r"(image_proj|ip_adapter)\..+", f"an IP-Adapter, which does nothing without its network. {PIPELINE}"),
    (r"emb_params|string_to_param.*|clip_[lg]|<.+>", f"a textual inversion: words for a text encoder, no network. {PIPELINE}"),
)  # fmt: skip
AUTOENCODER = re.compile(r"(first_stage_model\.|vae\.)?(encoder|decoder|post_quant_conv|quant_conv)\..+")
TEXT = re.compile(r"(text_model|transformer\.resblocks|encoder\.block|shared)\..+")


def recognized(path: Path) -> str:
    """ "PATH: what it is. What to give instead.", for a path that holds no model which is read; never raises."""
    try:
        said = _of_file(path) if path.is_file() else _of_folder(path)
    except ArtifactError as error:
        return str(error)
    return f"{path}: {said}."


def _of_file(path: Path) -> str:
    if not is_single(path):
        try:
            refuse_pickle(path)
        except ArtifactError as error:
            return str(error).removeprefix(f"{path}: ").rstrip(".")
        return f"no safetensors file. {PIPELINE}"
    names = list(header(path))
    for pattern, said in FILES:
        if any(re.fullmatch(pattern, name) for name in names):
            return f"{said} {path}" if said is LORA else said
    if not any(name.startswith((*DENOISERS, *OURS)) for name in names):
        if names and all(AUTOENCODER.fullmatch(name) for name in names):
            return f"an autoencoder alone, a part that is exported with its pipeline. {PIPELINE}"
        if any(TEXT.match(name) for name in names):
            return f"a text encoder alone, a part that is exported with its pipeline. {PIPELINE}"
    return single_file(path)


def single_file(path: Path) -> str:
    """That a checkpoint in one file needs a folder of configs, and whose, as far as its names say."""
    kind, repository = _family(path)
    known = f"of the kind {kind}: download all but the weights of {repository}, and give that folder"
    whose = f". By its names it is {known}" if repository else ""
    return (
        "a checkpoint in one file, which does not hold the configs of its networks, and nothing is fetched. Give the folder of the "
        f"pipeline it belongs to, whose weights are not needed (unet/config.json or transformer/config.json, scheduler/scheduler_config.json): --config FOLDER, in a recipe source.config{whose}"
    )


def _family(path: Path) -> tuple[str, str]:
    """(kind, repository with its configs) as diffusers tells by names and shapes; empty where it does not."""
    from diffusers.loaders import single_file_utils as tables

    known = tables.CHECKPOINT_KEY_NAMES
    try:
        stored = header(path)
        marks = [m for k in known.values() for m in ([k] if isinstance(k, str) else k)]
        kind = tables.infer_diffusers_model_type(stored) if any(m in stored for m in marks) else ""
    except (KeyError, IndexError, UnboundLocalError):
        kind = ""
    about = tables.DIFFUSERS_DEFAULT_PIPELINE_PATHS.get(kind, {})
    return kind, about.get("pretrained_model_name_or_path", "")


def _of_folder(folder: Path) -> str:
    if not folder.is_dir():
        return f"no such file or folder. {PIPELINE}, an artifact's folder (manifest.json), or a single .safetensors file with --config"
    for tell in (_artifact, _pipeline, _network, _adapter, _loose):
        if said := tell(folder):
            return said
    return (
        f"no model in it. {PIPELINE}, an artifact's folder (manifest.json), or a single .safetensors file with --config"
    )


def _artifact(folder: Path) -> str:
    if not (folder / "manifest.json").is_file():
        return ""
    return "an artifact or an exported pipeline of this library. Its network is one where structure.json is in it: then give it to plan, bench, inspect or load"  # fmt: skip


def _pipeline(folder: Path) -> str:
    if not (folder / INDEX).is_file():
        return ""
    index = read_json(folder / INDEX, object)
    name = _plain(class_name(index)) or "of a class that is not named"
    if any((folder / n / "model.onnx").is_file() for n in NETWORKS):
        return f"a pipeline in ONNX ({name}), which is what this library makes of one. {PIPELINE} with its weights as safetensors"
    held = {n: _plain(class_name(read_json(folder / n / "config.json", object))) for n in _with_config(folder)}
    unknown = [f"{n}/ ({c})" for n, c in held.items() if n in NETWORKS and c not in ARCHITECTURES]
    shown = ", ".join(unknown) if unknown else f"no {NETWORKS[0]}/ or {NETWORKS[1]}/ with a config.json"
    return f"a whole pipeline ({name}) whose denoiser is not known here: {shown}. Known are {', '.join(sorted(ARCHITECTURES))}"


def _network(folder: Path) -> str:
    """A folder with a config.json of its own."""
    if not (folder / "config.json").is_file():
        return _scheduler(folder)
    name = _plain(class_name(read_json(folder / "config.json", object)))
    if name in ARCHITECTURES:
        around = folder.resolve().parent
        beside = f": {around}" if (around / "scheduler" / "scheduler_config.json").is_file() else ""
        return f"the folder of a network alone ({name}), and how it is sampled stands in scheduler/ beside it. Give the folder around it, where it is called unet or transformer{beside}"
    for pattern, said in PARTS:
        if re.fullmatch(pattern, name):
            return said.format(name)
    return f"the folder of a network that is not known here ({name or 'it names no class'}). Known denoisers are {', '.join(sorted(ARCHITECTURES))}"  # fmt: skip


def _scheduler(folder: Path) -> str:
    return PARTS[-1][1].format("scheduler_config.json") if (folder / "scheduler_config.json").is_file() else ""


def _adapter(folder: Path) -> str:
    """A LoRA or adapter in a folder, as diffusers, peft and training programs save it."""
    loras = _first(folder, lambda n: re.fullmatch(r"(pytorch_lora_weights|adapter_model).*\.safetensors", n))
    if loras or (folder / "adapter_config.json").is_file():
        return f"the folder of {LORA} {folder / (loras or 'adapter_model.safetensors')}"
    return "an IP-Adapter, which does nothing without its network. " + PIPELINE if _first(folder, lambda n: n.startswith("ip-adapter")) else ""  # fmt: skip


def _loose(folder: Path) -> str:
    """Networks one level down, or checkpoints in one file."""
    held = _with_config(folder)
    if held:
        name = _plain(class_name(read_json(folder / held[0] / "config.json", object)))
        return f"no {NETWORKS[0]}/config.json and no {NETWORKS[1]}/config.json in it; it holds {held[0]}/ ({name or 'no class'}). {PIPELINE}"
    if single := _first(folder, lambda n: n.endswith(".safetensors")):
        return f"the folder of a checkpoint in one file. Give the file itself: {folder / single}"
    if other := _first(folder, lambda n: n.lower().endswith((".gguf", ".ckpt", ".bin", ".pt", ".pth"))):
        return _of_file(folder / other)
    return ""


def _with_config(folder: Path) -> list[str]:
    return sorted(p.parent.name for p in folder.glob("*/config.json"))


def _first(folder: Path, fits: Callable[[str], object]) -> str:
    names: Iterable[str] = sorted(p.name for p in folder.iterdir() if p.is_file())
    return next((name for name in names if fits(name)), "")


def _plain(name: str) -> str:
    """A class's name as it may stand in a message."""
    return name[:60] if name.isprintable() else ascii(name)[:60]
