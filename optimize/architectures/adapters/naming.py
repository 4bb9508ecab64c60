"""Which component of a pipeline a layer's name in a LoRA file is for, and what it tells of the network it was made for.

kohya and OneTrainer write `lora_unet_`, `lora_transformer_`, `lora_te1_` before names with underscores for dots; diffusers,
peft and ai-toolkit `unet.`, `transformer.`, `text_encoder.`; ComfyUI `diffusion_model.` and `text_encoders.clip_l.`;
OneTrainer also `clip_l.`, `clip_g.`, `t5.`. A name without any of them is the denoiser's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

DENOISERS = ("unet", "transformer")
DENOISER = "denoiser"  # stands for the pipeline's, whichever it has
T5 = {"FluxTransformer2DModel": "text_encoder_2", "SD3Transformer2DModel": "text_encoder_3"}  # else the only encoder
PREFIXES = (
    (DENOISER, r"lora_unet[._]|lycoris[._]|(?:model\.)?diffusion_model\."),
    ("transformer", r"lora_transformer[._]|transformer\."),
    ("unet", r"unet\."),
    ("text_encoder", r"lora_te1?[._]|text_encoder\.|text_encoders\.clip_[lh]\.(?:transformer\.)?|clip_[lh]\.(?:transformer\.)?"),
    ("text_encoder_2", r"lora_te2[._]|text_encoder_2\.|(?:text_encoders\.)?clip_g\.(?:transformer\.)?"),
    ("text_encoder_3", r"text_encoder_3\."),
    ("t5", r"lora_te3[._]|(?:text_encoders\.)?t5(?:xxl)?\.(?:transformer\.)?"),
)  # fmt: skip
PEFT = "base_model.model."
# How names begin that only some networks have, so that a name is known even where no layer is called so.
UNETS = (
    *(r"down_blocks_", r"up_blocks_", r"mid_block_", r"mid_block_attentions_", r"conv_in$", r"conv_out$", r"time_embedding_"),
    *(r"input_blocks_", r"output_blocks_", r"middle_block_", r"middle_block_1_", r"time_embed_", r"label_emb_"),
    *(r"add_embedding_", r"class_embedding_", r".*motion_modules"),
)  # fmt: skip
TRANSFORMERS = (
    *(r"transformer_blocks_", r"transformer_blocks_\d+_attn[12]_", r"single_transformer_blocks_", r"time_text_embed_"),
    *(r"time_text_embed_guidance_embedder_", r"[xty]_embedder", r"context_embedder$", r"caption_projection_"),
    *(r"adaln_single_", r"double_blocks_", r"single_blocks_", r"img_in", r"txt_in", r"(time|vector)_in_", r"guidance_in_"),
    *(r"final_layer_", r"joint_blocks_", r"joint_blocks_\d+_x_block_attn2_", r"joint_transformer_blocks_"),
    *(r"(blocks|layers|noise_refiner|context_refiner)_\d", r"patch_embedding$"),
)  # fmt: skip
TEXTS = (r"(text_model_)?encoder_layers_\d", r"encoder_block_\d", r"text_projection$")


def component_of(name: str, denoiser: str, class_name: str = "") -> tuple[str, str]:
    """(component, the layer's name without the component's prefix); `denoiser` is the pipeline's, unet or transformer, of
    the class `class_name`, which tells where its T5 is."""
    component, rest = DENOISER, name
    for candidate, pattern in PREFIXES:
        if match := re.match(pattern, name.removeprefix(PEFT)):
            component, rest = candidate, name.removeprefix(PEFT)[match.end() :]
            break
    if component == "t5":
        component = T5.get(class_name, "text_encoder_3" if not class_name else "text_encoder")
    return (denoiser if component == DENOISER else component), rest.removeprefix(PEFT)


def denoiser_of(names: Iterable[str], class_name: str = "") -> str:
    """unet or transformer: the one of this class, or without it, the one whose layers are called so."""
    if class_name:
        return "unet" if "UNet" in class_name else "transformer"
    own = [flat(rest) for part, rest in (component_of(name, DENOISER) for name in names) if part == DENOISER]
    return "transformer" if any(re.match("|".join(TRANSFORMERS), name) for name in own) else "unet"


def flat(name: str) -> str:
    """A name with underscores for dots, as kohya writes it."""
    return name.replace(".", "_")


def spellings(name: str) -> tuple[str, ...]:
    """A layer's name, and those that the same layer has where the file calls it by diffusers' old attention processors."""
    plain = name.replace(".processor.", ".")
    if not (match := re.fullmatch(r"(.+\.)(\w+)_lora", plain)):
        return (name, f"{name}.0") if name.endswith("to_out") else (name,)
    outer, inner = match[1], match[2]
    texts = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
    own = f"{outer}to_out.0" if inner == "to_out" else f"{outer}{inner}"
    return (name, own, f"{outer}{texts[inner]}") if inner in texts else (name, own)


def tell_foreign(known: Iterable[str]) -> Callable[[str], bool]:
    """Tells of a name that no layer has whether it is still of a naming that is known: one of the network's own, `known`,
    but for a number, or one of another kind of network."""
    own = {flat(name) for name in known}
    forms = {_numberless(name) for name in own}
    others = [stem for stem in (*UNETS, *TRANSFORMERS, *TEXTS) if not any(re.match(stem, name) for name in own)]

    def is_foreign(name: str) -> bool:
        text = flat(name)
        return _numberless(text) in forms or any(re.match(stem, text) for stem in others)

    return is_foreign


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)
