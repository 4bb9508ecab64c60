"""Whole pipelines of a few thousand random weights, in the layout and with the names that real ones have on disk."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = string.ascii_lowercase + string.digits


def vocabulary() -> dict[str, int]:
    """Every letter inside and at the end of a word, one merged pair, and CLIP's two marks, the end mark last."""
    tokens = [*LETTERS, *(f"{c}</w>" for c in LETTERS), "ca", "cat</w>", START, END]
    return {token: i for i, token in enumerate(tokens)}


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "special_tokens_map.json").write_text(json.dumps(marks))


def text_config(**changes: Any) -> Any:
    from transformers import CLIPTextConfig

    size = len(vocabulary())
    about = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    marks = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    return CLIPTextConfig(
        vocab_size=size, max_position_embeddings=77, projection_dim=32, **{**about, **marks, **changes}
    )


def write_text_encoder(folder: Path, projected: bool = False, **changes: Any) -> None:
    """A CLIP text model with the weights' names that checkpoints have, whatever this transformers calls them."""
    from safetensors.torch import save_file
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(1 + projected)
    model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(text_config(**changes))
    folder.mkdir(parents=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    state = {k if k.startswith("text_") else f"text_model.{k}": v.contiguous() for k, v in model.state_dict().items()}
    state = {k: 0.3 * torch.randn_like(v) if "weight" in k and v.ndim == 2 else v for k, v in state.items()}
    save_file({k: v for k, v in state.items() if v.is_floating_point()}, folder / "model.safetensors", {"format": "pt"})


def unet(**changes: Any) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(3)
    about: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**about, **changes}).eval().requires_grad_(False)


def vae() -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(4)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    ).eval()


XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "cross_attention_dim": 64,
}


def write_pipeline(folder: Path, xl: bool = False, scheduler: str = "EulerDiscreteScheduler", **changes: Any) -> Path:
    """A Stable Diffusion, or Stable Diffusion XL, pipeline folder."""
    import diffusers

    unet(**{**(XL if xl else {}), **changes}).save_pretrained(folder / "unet")
    vae().save_pretrained(folder / "vae")
    getattr(diffusers, scheduler)(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).save_pretrained(
        folder / "scheduler"
    )
    write_text_encoder(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    index: dict[str, Any] = {
        "_class_name": "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline",
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if xl:
        write_text_encoder(folder / "text_encoder_2", projected=True)
        write_tokenizer(folder / "tokenizer_2")
        index |= {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": True,
        }
    else:
        index |= {"safety_checker": [None, None], "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"


def lora_tensors(seed: int = 5, rank: int = 3) -> dict[str, torch.Tensor]:
    """Updates of the tiny U-Net's layers (a linear one of each kind and a convolution), by layer and role."""
    random = torch.Generator().manual_seed(seed)
    network, made = unet(), {}
    for layer in (f"{ATTENTION}.to_q", f"{ATTENTION}.to_k", f"{ATTENTION}.to_out.0", "mid_block.resnets.0.conv1"):
        weight = network.get_submodule(layer).weight
        inner = tuple(weight.shape[1:])
        made[f"{layer}.A"] = 0.3 * torch.randn(rank, *inner, generator=random)
        made[f"{layer}.B"] = 0.3 * torch.randn(len(weight), rank, *(1 for _ in inner[1:]), generator=random)
    return made


def text_lora_tensors(seed: int = 6, rank: int = 2) -> dict[str, torch.Tensor]:
    """Updates of a text encoder's layer."""
    random = torch.Generator().manual_seed(seed)
    layer = "text_model.encoder.layers.1.self_attn.q_proj"
    return {
        f"{layer}.A": torch.randn(rank, 32, generator=random),
        f"{layer}.B": torch.randn(32, rank, generator=random),
    }
