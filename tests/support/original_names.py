"""Networks of diffusers and transformers under the names that their authors' programs give: LDM, OpenCLIP, SD3.

The inverse of what diffusers reads, written from the layouts themselves, so that a round trip proves both.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]
UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.", "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
}  # fmt: skip
UNET_LAYERS = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
CLIP_LAYERS = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}  # fmt: skip
SD3_ENDS = {
    "pos_embed.pos_embed": "pos_embed", "pos_embed.proj.": "x_embedder.proj.", "context_embedder.": "context_embedder.",
    "time_text_embed.timestep_embedder.linear_1.": "t_embedder.mlp.0.", "time_text_embed.timestep_embedder.linear_2.": "t_embedder.mlp.2.",
    "time_text_embed.text_embedder.linear_1.": "y_embedder.mlp.0.", "time_text_embed.text_embedder.linear_2.": "y_embedder.mlp.2.",
    "proj_out.": "final_layer.linear.", "norm_out.linear.": "final_layer.adaLN_modulation.1.",
}  # fmt: skip
SD3_LAYERS = {
    "attn.norm_q": "x_block.attn.ln_q", "attn.norm_k": "x_block.attn.ln_k", "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k", "attn.to_out.0": "x_block.attn.proj", "attn.to_add_out": "context_block.attn.proj",
    "attn2.to_out.0": "x_block.attn2.proj", "attn2.norm_q": "x_block.attn2.ln_q", "attn2.norm_k": "x_block.attn2.ln_k",
    "norm1.linear": "x_block.adaLN_modulation.1", "norm1_context.linear": "context_block.adaLN_modulation.1",
    "ff.net.0.proj": "x_block.mlp.fc1", "ff.net.2": "x_block.mlp.fc2", "ff_context.net.0.proj": "context_block.mlp.fc1", "ff_context.net.2": "context_block.mlp.fc2",
}  # fmt: skip
SD3_JOINED = {"attn.to_": "x_block.attn", "attn.add_": "context_block.attn", "attn2.to_": "x_block.attn2"}


FLUX_JOINED = {"attn.to_q": ("to_{}", "img"), "attn.add_q_proj": ("add_{}_proj", "txt")}
FLUX_SINGLE = {
    "norm.linear": "modulation.lin.{}", "proj_out": "linear2.{}",
    "attn.norm_q": "norm.query_norm.scale", "attn.norm_k": "norm.key_norm.scale",
}  # fmt: skip
FLUX_DOUBLE = {
    "norm1.linear": "img_mod.lin.{}", "norm1_context.linear": "txt_mod.lin.{}", "attn.to_out.0": "img_attn.proj.{}",
    "attn.to_add_out": "txt_attn.proj.{}", "attn.norm_q": "img_attn.norm.query_norm.scale", "attn.norm_k": "img_attn.norm.key_norm.scale",
    "attn.norm_added_q": "txt_attn.norm.query_norm.scale", "attn.norm_added_k": "txt_attn.norm.key_norm.scale",
    "ff.net.0.proj": "img_mlp.0.{}", "ff.net.2": "img_mlp.2.{}", "ff_context.net.0.proj": "txt_mlp.0.{}", "ff_context.net.2": "txt_mlp.2.{}",
}  # fmt: skip
FLUX_ENDS = {
    "time_text_embed.timestep_embedder.linear_1.": "time_in.in_layer.", "time_text_embed.timestep_embedder.linear_2.": "time_in.out_layer.",
    "time_text_embed.text_embedder.linear_1.": "vector_in.in_layer.", "time_text_embed.text_embedder.linear_2.": "vector_in.out_layer.",
    "time_text_embed.guidance_embedder.linear_1.": "guidance_in.in_layer.", "time_text_embed.guidance_embedder.linear_2.": "guidance_in.out_layer.",
    "context_embedder.": "txt_in.", "x_embedder.": "img_in.", "proj_out.": "final_layer.linear.", "norm_out.linear.": "final_layer.adaLN_modulation.1.",
}  # fmt: skip


def ldm_unet(network: Any) -> State:
    """A UNet2DConditionModel's tensors under LDM's names, without a prefix."""
    state, each = network.state_dict(), network.config.layers_per_block + 1
    attended = {k.split(".")[1] for k in state if k.startswith("up_blocks.") and ".attentions." in k}

    def name(key: str) -> str:
        for ours, theirs in UNET_ENDS.items():
            if key.startswith(ours):
                return theirs + key.removeprefix(ours)
        block, index, kind, layer, rest = re.fullmatch(r"(\w+?)_blocks?\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.+)", key).groups()  # type: ignore[union-attr]
        if kind == "resnets":
            part, _, end = rest.rpartition(".")
            rest = f"{UNET_LAYERS[part]}.{end}"
        if block == "mid":
            return f"middle_block.{1 if kind == 'attentions' else 2 * int(layer)}.{rest}"
        first, side = int(index) * each, "input" if block == "down" else "output"
        if kind == "downsamplers":
            return f"input_blocks.{first + each}.0.op.{rest.removeprefix('conv.')}"
        if kind == "upsamplers":
            return f"output_blocks.{first + each - 1}.{2 if index in attended else 1}.{rest}"
        place = first + int(layer) + (1 if block == "down" else 0)
        return f"{side}_blocks.{place}.{1 if kind == 'attentions' else 0}.{rest}"

    return {name(key): value.clone() for key, value in state.items()}


def ldm_vae(network: Any) -> State:
    """An AutoencoderKL's tensors under LDM's names, without a prefix."""
    last, made = len(network.config.block_out_channels) - 1, {}
    for key, value in network.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm")
            name = re.sub(r"to_([qkv])\.", r"\1.", name).replace("to_out.0", "proj_out")
            value = value[:, :, None, None] if value.ndim == 2 else value
        made[name] = value.clone()
    return made


def openclip(state: State) -> State:
    """A CLIP text model's tensors under OpenCLIP's names, without a prefix."""
    made: State = {}
    for key, value in state.items():
        name = key.removeprefix("text_model.").replace("encoder.layers.", "transformer.resblocks.")
        name = name.replace("embeddings.position_embedding.weight", "positional_embedding")
        name = name.replace("embeddings.token_embedding", "token_embedding").replace("final_layer_norm", "ln_final")
        for ours, theirs in CLIP_LAYERS.items():
            name = name.replace(ours, theirs)
        if name == "text_projection.weight":
            name, value = "text_projection", value.T
        if found := re.fullmatch(r"(.+)\.self_attn\.([qkv])_proj\.(weight|bias)", name):
            name = f"{found[1]}.attn.in_proj_{found[3]}"
            before = key.rpartition(".self_attn.")[0]
            value = torch.cat([state[f"{before}.self_attn.{p}_proj.{found[3]}"] for p in "qkv"])
        made[name] = value.contiguous().clone()
    return made | {"logit_scale": torch.tensor(1.0)}


def original_sd3(network: Any) -> State:
    """An SD3Transformer2DModel's tensors under the names of the original, without a prefix. Its last layers shift first."""
    made: State = {}
    state, last = network.state_dict(), network.config.num_layers - 1
    for key, value in state.items():
        block = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if not block:
            ours, theirs = next((o, t) for o, t in SD3_ENDS.items() if key.startswith(o))
            made[theirs + key.removeprefix(ours)] = (
                _shift_first(value) if ours.startswith("norm_out") else value.clone()
            )
            continue
        index, layer, end = block.groups()
        if layer in SD3_LAYERS:
            turned = int(index) == last and layer == "norm1_context.linear"
            made[f"joint_blocks.{index}.{SD3_LAYERS[layer]}.{end}"] = _shift_first(value) if turned else value.clone()
        elif layer.endswith(("_q", "_q_proj")):
            ours, theirs = next((o, t) for o, t in SD3_JOINED.items() if layer.startswith(o))
            three = [state[f"transformer_blocks.{index}.{layer.replace('_q', f'_{p}')}.{end}"] for p in "qkv"]
            made[f"joint_blocks.{index}.{theirs}.qkv.{end}"] = torch.cat(three)
    return made


def _shift_first(value: torch.Tensor) -> torch.Tensor:
    scale, shift = value.chunk(2)
    return torch.cat([shift, scale])


def original_flux(network: Any) -> State:
    """A FluxTransformer2DModel's tensors under the names of the original, without a prefix."""
    made, state = {}, network.state_dict()
    for key, value in state.items():
        single = re.fullmatch(r"single_transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        double = re.fullmatch(r"transformer_blocks\.(\d+)\.(.+)\.(weight|bias)", key)
        if single and single[2] == "attn.to_q":
            names = (f"single_transformer_blocks.{single[1]}.{n}.{single[3]}" for n in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))  # fmt: skip
            made[f"single_blocks.{single[1]}.linear1.{single[3]}"] = torch.cat([state[n] for n in names])
        elif double and double[2] in FLUX_JOINED:
            kind, side = FLUX_JOINED[double[2]]
            names = (f"transformer_blocks.{double[1]}.attn.{kind.format(p)}.{double[3]}" for p in "qkv")
            made[f"double_blocks.{double[1]}.{side}_attn.qkv.{double[3]}"] = torch.cat([state[n] for n in names])
        elif single and single[2] in FLUX_SINGLE:
            made[f"single_blocks.{single[1]}.{FLUX_SINGLE[single[2]].format(single[3])}"] = value
        elif double and double[2] in FLUX_DOUBLE:
            made[f"double_blocks.{double[1]}.{FLUX_DOUBLE[double[2]].format(double[3])}"] = value
        elif not single and not double:
            ours, theirs = next((o, t) for o, t in FLUX_ENDS.items() if key.startswith(o))
            made[theirs + key.removeprefix(ours)] = value
    return made


def write_header(file: Path, state: State) -> Path:
    """A safetensors file of tensors without data: zeros that take no room on disk."""
    entries, end = {}, 0
    for name, value in state.items():
        entries[name] = {
            "dtype": "F8_E4M3",
            "shape": list(value.shape),
            "data_offsets": [end, end := end + value.numel()],
        }
    text = json.dumps(entries).encode()
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)
    return file


def write_checkpoint(file: Path, pipeline: Path, **more: torch.Tensor) -> Path:
    """A Stable Diffusion or SDXL pipeline folder of diffusers as one file in the original layout, all of it."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import load_file

    unet, vae = (cls.from_pretrained(pipeline / part) for cls, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")))  # fmt: skip
    made = {f"model.diffusion_model.{k}": v for k, v in ldm_unet(unet).items()}
    made |= {f"first_stage_model.{k}": v for k, v in ldm_vae(vae).items()}
    texts = [load_file(file) for file in sorted(pipeline.glob("text_encoder*/model.safetensors"))]
    if len(texts) == 1:
        made |= {f"cond_stage_model.transformer.{k}": v for k, v in texts[0].items()}
    else:
        made |= {f"conditioner.embedders.0.transformer.{k}": v for k, v in texts[0].items()}
        made |= {f"conditioner.embedders.1.model.{k}": v for k, v in openclip(texts[1]).items()}
    save_file({**made, "alphas_cumprod": torch.ones(1000), **more}, file)
    return file


def configs_of(pipeline: Path, folder: Path) -> Path:
    """A copy of a pipeline's folder without its weights."""
    import shutil

    return Path(shutil.copytree(pipeline, folder, ignore=shutil.ignore_patterns("*.safetensors")))
