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


def write_text_encoder(folder: Path, projected: bool = False, seed: int = 1, **changes: Any) -> None:
    """A CLIP text model with the weights' names that checkpoints have, whatever this transformers calls them."""
    from safetensors.torch import save_file
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed + projected)
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


def vae(**changes: Any) -> Any:
    from diffusers import AutoencoderKL

    torch.manual_seed(4)
    about: dict[str, Any] = {
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "sample_size": 16,
    }
    return AutoencoderKL(**{**about, **changes}).eval()


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


WORDS = [
    "\u2581",
    *(f"\u2581{c}" for c in LETTERS),
    *LETTERS,
    "\u2581cat",
    "\u2581dog",
]  # of T5: pieces, marked where a word starts
T5_MARKS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def write_t5_tokenizer(folder: Path) -> None:
    """A unigram tokenizer in the one file that transformers 4 and 5 both read, without sentencepiece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pieces = [(mark, 0.0) for mark in T5_MARKS.values()] + [(w, -2.0 / len(w)) for w in WORDS]
    made = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(list(T5_MARKS.values()))
    folder.mkdir(parents=True)
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **T5_MARKS}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "special_tokens_map.json").write_text(json.dumps(T5_MARKS))


def t5_encoder() -> Any:
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(7)
    config = T5Config(
        vocab_size=len(T5_MARKS) + len(WORDS), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", relative_attention_num_buckets=8, relative_attention_max_distance=16,
    )  # fmt: skip
    return T5EncoderModel(config).eval().requires_grad_(False)


def write_t5_encoder(folder: Path) -> None:
    """A T5 encoder as checkpoints have it: the shared table of words once, under its own name."""
    from safetensors.torch import save_file

    model = t5_encoder()
    folder.mkdir(parents=True)
    about = {"architectures": ["T5EncoderModel"], "model_type": "t5", **model.config.to_diff_dict()}
    about |= {"num_decoder_layers": about["num_layers"], "dense_act_fn": "gelu_new", "is_gated_act": True}
    (folder / "config.json").write_text(json.dumps(about))
    state = {k: v.contiguous() for k, v in model.state_dict().items() if k != "encoder.embed_tokens.weight"}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def sd3(**changes: Any) -> Any:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(3)
    about: dict[str, Any] = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 4,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 4,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pooled_projection_dim": 64,
        "pos_embed_max_size": 32,
        "qk_norm": "rms_norm",
        "dual_attention_layers": (0,),
    }
    return SD3Transformer2DModel(**{**about, **changes}).eval().requires_grad_(False)


def flux(**changes: Any) -> Any:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(3)
    about: dict[str, Any] = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }
    return FluxTransformer2DModel(**{**about, **changes}).eval().requires_grad_(False)


SHIFTED = {"scaling_factor": 1.5, "shift_factor": 0.06, "use_quant_conv": False, "use_post_quant_conv": False}


def write_transformer_pipeline(
    folder: Path, kind: str = "sd3", name: str = "", t5: bool = True, **changes: Any
) -> Path:
    """A Stable Diffusion 3 ("sd3") or Flux ("flux") pipeline folder; SD3's may go without T5."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    network = {"sd3": sd3, "flux": flux}[kind](**changes)
    network.save_pretrained(folder / "transformer")
    channels = network.config.in_channels // {"sd3": 1, "flux": 4}[kind]  # Flux packs 2x2 latents
    vae(**SHIFTED, latent_channels=channels).save_pretrained(folder / "vae")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=kind == "flux")
    scheduler.save_pretrained(folder / "scheduler")
    index: dict[str, Any] = {
        "_class_name": name or {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}[kind],
        "_diffusers_version": "0.36.0",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "transformer": ["diffusers", type(network).__name__],
        "vae": ["diffusers", "AutoencoderKL"],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        **_write_texts(
            folder, ["clip", "clip", "t5" if t5 else ""] if kind == "sd3" else ["clip", "t5"], kind == "sd3"
        ),
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _write_texts(folder: Path, kinds: list[str], projected: bool) -> dict[str, Any]:
    """Text encoders and tokenizers in their order; the index's entries."""
    entries: dict[str, Any] = {}
    for i, kind in enumerate(kinds):
        encoder, tokenizer = (f"{n}{f'_{i + 1}' if i else ''}" for n in ("text_encoder", "tokenizer"))
        if kind == "t5":
            write_t5_encoder(folder / encoder)
            write_t5_tokenizer(folder / tokenizer)
            entries |= {encoder: ["transformers", "T5EncoderModel"], tokenizer: ["transformers", "T5TokenizerFast"]}
        elif kind:
            write_text_encoder(folder / encoder, projected, seed=1 + 10 * i)
            write_tokenizer(folder / tokenizer)
            name = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
            entries |= {encoder: ["transformers", name], tokenizer: ["transformers", "CLIPTokenizer"]}
        else:
            entries |= {encoder: [None, None], tokenizer: [None, None]}
    return entries


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


def transformer_lora_tensors(network: Any, seed: int = 8, rank: int = 3) -> dict[str, torch.Tensor]:
    """Updates of a transformer's layers: attention of the first block, and the last one."""
    random, made = torch.Generator().manual_seed(seed), {}
    layers = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.add_k_proj", "proj_out"]
    for layer in layers:
        out, into = network.get_submodule(layer).weight.shape
        made[f"{layer}.A"] = 0.3 * torch.randn(rank, into, generator=random)
        made[f"{layer}.B"] = 0.3 * torch.randn(out, rank, generator=random)
    return made
