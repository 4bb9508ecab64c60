"""A checkpoint in one file, with the tensor names of its authors' programs (LDM, ComfyUI): its parts by diffusers' names.

diffusers' own tables convert the names. The file does not say which config belongs to it, and nothing is fetched: the user
gives a folder of configs. Every tensor of a part that is read must arrive in its network.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from optimize.architectures.bounded import WRONG
from optimize.architectures.entry import Config
from optimize.errors import ArtifactError
from optimize.storage.accounting import in_memory, listed, refuse_scales
from optimize.storage.variants import Weights, as_float32
from optimize.storage.weights import Stored, header, metadata, read_tensors

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
DENOISING, AUTOENCODING, TEXT, OPEN_TEXT = "denoiser", "autoencoder", "text", "open text"
DENOISER = "model.diffusion_model."  # the prefix that diffusers' tables expect
DENOISERS = (DENOISER, "diffusion_model.")
AUTOENCODER = "first_stage_model."
AUTOENCODERS = (AUTOENCODER, "vae.")
NETWORKS = ("unet", "transformer")
# Prefixes by the folder that a part has in a pipeline; "open" text encoders have OpenCLIP's names.
PREFIXES = {
    **dict.fromkeys(NETWORKS, dict.fromkeys(DENOISERS, DENOISING)),
    "vae": dict.fromkeys(AUTOENCODERS, AUTOENCODING),
    "text_encoder": {"cond_stage_model.transformer.": TEXT, "conditioner.embedders.0.transformer.": TEXT, "cond_stage_model.model.": OPEN_TEXT},
    "text_encoder_2": {"conditioner.embedders.1.model.": OPEN_TEXT, "conditioner.embedders.0.model.": OPEN_TEXT},
}  # fmt: skip
OTHERS = ("cond_stage_model.", "conditioner.", "text_encoders.", "model_ema.", "control_model.", *AUTOENCODERS)
# Of training and of the schedule, no part of a network: the scheduler's config says the same.
SCHEDULE = re.compile(
    r"(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|sqrt_.*|log_one_.*|betas|posterior_.*|logvar|scale_factor"
    r"|global_step|lvlb_weights|ztsnr|v_pred|edm_.*|edm|denoiser\..*|model_ema\.(decay|num_updates)"
)
# Of OpenCLIP's text encoder: what no text encoder of diffusers has, what is taken apart or turned, and the last layer of
# Stable Diffusion 2's, whose text is that of the layer before.
NOT_CARRIED = re.compile(
    r"(.+\.)?(logit_scale|attn_mask|position_ids|text_projection|in_proj_weight|in_proj_bias)|transformer\.resblocks\.23\..+"
)
OURS = (
    "conv_in.",
    "down_blocks.",
    "transformer_blocks.",
    "single_transformer_blocks.",
    "time_text_embed.",
)  # diffusers' own names


def is_single(path: Path) -> bool:
    """Whether a path is a safetensors file."""
    return path.is_file() and path.suffix.lower() == ".safetensors"


def part_weights(file: Path, part: str, name: str, config: Config) -> Weights | None:
    """The weights of a part of a pipeline ("unet", "vae", "text_encoder", …) in a single file, by the names of its class
    `name`; None where the file does not hold this part. Raises ArtifactError where the names are not those of the class."""
    stored = header(file)
    found = _of_part(part, stored)
    if found is None:
        return None
    kind, prefix, names = found
    refuse_scales(list(names), file)

    def convert(tensors: Mapping[str, Tensor]) -> Tensors:
        return _converted(file, kind, prefix, name, config, {own: tensors[given] for own, given in names.items()})

    return Weights(
        file,
        (file,),
        lambda: in_memory(convert({given: _hollow(file, stored[given]) for given in names.values()})),
        lambda: {own: t.contiguous() for own, t in convert(_read(file, names.values())).items()},
    )


def check_schedule(file: Path, scheduler: Mapping[str, Any]) -> None:
    """Raise ArtifactError where a single file says of itself that its network predicts something else than the scheduler's
    config says, or was trained with zero terminal SNR and the config is not."""
    names, about = header(file), metadata(file)
    spec = {"epsilon": "epsilon", "v": "v_prediction"}.get(about.get("modelspec.prediction_type", ""))
    says = "v_prediction" if "v_pred" in names else spec
    given = scheduler.get("prediction_type", "epsilon")
    if says and given != says and "FlowMatch" not in str(scheduler.get("_class_name")):
        raise ArtifactError(
            f"{file}: it says of itself that it predicts {says}, and prediction_type in scheduler_config.json is {given}. Give a folder of configs whose scheduler has prediction_type {says}."
        )
    if "ztsnr" in names and not scheduler.get("rescale_betas_zero_snr"):
        raise ArtifactError(
            f"{file}: it says of itself that it was trained with zero terminal SNR, and rescale_betas_zero_snr in scheduler_config.json is not true. Set it in the folder of configs."
        )


def _of_part(part: str, stored: Mapping[str, Stored]) -> tuple[str, str, dict[str, str]] | None:
    """(kind, prefix, {name behind the prefix: name in the file}); None where the file has no such part."""
    prefixes = PREFIXES.get(part, {})
    for prefix, kind in prefixes.items():
        if found := {name.removeprefix(prefix): name for name in stored if name.startswith(prefix)}:
            return kind, prefix, found
    alone = part in NETWORKS and not any(name.startswith((*OTHERS, *DENOISERS)) for name in stored)
    return (DENOISING, "", {n: n for n in stored if not SCHEDULE.fullmatch(n)}) if alone else None


def _read(file: Path, names: Iterable[str]) -> Tensors:
    """Tensors of a file by name, floats as float32; the other parts of the file stay on disk."""
    return {name: as_float32(tensor) for name, tensor in read_tensors(file, names).items()}


def _hollow(file: Path, about: Stored) -> Tensor:
    """A tensor on the meta device, of a header's shape and kind of number."""
    import torch

    try:
        return torch.empty(about.shape, dtype=torch.float32 if about.floats else torch.int8, device="meta")
    except RuntimeError as error:
        raise ArtifactError(f"{file}: a tensor of shape {str(list(about.shape))[:100]} cannot be.") from error


def _converted(file: Path, kind: str, prefix: str, name: str, config: Config, tensors: Tensors) -> Tensors:
    """Tensors under diffusers' names. Raises ArtifactError where its tables do not know theirs, or lose one."""
    if kind == TEXT or (kind == DENOISING and any(n.startswith(OURS) for n in tensors)):
        return tensors
    table, prefix = _table(file, kind, prefix, name, config)
    given = {prefix + own: t for own, t in tensors.items()}
    try:
        made: Tensors = table(given)
    except WRONG as error:
        raise ArtifactError(
            f"{file}: its names are not those of a {name} with this config ({type(error).__name__}: {str(error)[:200]}). Give the folder of configs that belongs to it."
        ) from error
    _check_carried(file, kind, tensors, made, {n.removeprefix(prefix) for n in given})
    return made


def _table(file: Path, kind: str, prefix: str, name: str, config: Config) -> tuple[Callable[[Tensors], Tensors], str]:
    """(diffusers' conversion of a kind's names, the prefix that it looks for)."""
    from diffusers.loaders import single_file_utils as tables
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES as classes

    if kind == OPEN_TEXT:
        about = SimpleNamespace(config=SimpleNamespace(**config))
        return lambda given: tables.convert_open_clip_checkpoint(about, given, prefix=prefix), prefix
    if name not in classes:
        raise ArtifactError(
            f"{file}: a single file is read as one of these classes, not as a {name}: AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel. Give the network's folder (config.json, diffusion_pytorch_model.safetensors)."
        )
    convert, prefix = classes[name]["checkpoint_mapping_fn"], AUTOENCODER if kind == AUTOENCODING else DENOISER
    return lambda given: convert(config=config, checkpoint=given), prefix


def _check_carried(file: Path, kind: str, tensors: Tensors, made: Tensors, left: set[str]) -> None:
    """Raise ArtifactError where tensors of a part were left behind. diffusers' tables take what they use out of what they
    are given, or hand it on as it is, or as a view."""
    arrived = {id(t) for t in made.values()} | {id(t._base) for t in made.values() if t._base is not None}
    if kind == OPEN_TEXT:
        lost = [n for n, t in tensors.items() if id(t) not in arrived and not NOT_CARRIED.fullmatch(n)]
    elif sum(t.numel() for t in made.values()) == sum(t.numel() for t in tensors.values()):
        return
    else:
        lost = [n for n, t in tensors.items() if n in left and id(t) not in arrived]
    if lost:
        raise ArtifactError(
            f"{file}: {len(lost)} of its tensors have no place in the network that the config describes ({listed(lost)}). Give the folder of configs that belongs to it."
        )
