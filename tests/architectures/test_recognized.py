"""What is no model is called what it is, with what to give instead, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optimize.architectures.recognized import recognized


def config(name: str) -> str:
    return json.dumps({"_class_name": name})


FOLDERS: list[tuple[dict[str, str], str]] = [
    ({"config.json": config("ControlNetModel")}, r"a ControlNet alone \(ControlNetModel\).*source.controlnet: true.*residuals"),
    ({"config.json": config("FluxControlNetModel")}, "a ControlNet alone"),
    ({"config.json": config("T2IAdapter")}, r"an adapter alone \(T2IAdapter\)"),
    ({"config.json": config("MotionAdapter")}, "an adapter alone"),
    ({"config.json": config("AutoencoderKL")}, r"an autoencoder alone \(AutoencoderKL\).*optimize inspect looks at it alone"),
    ({"config.json": config("AutoencoderTiny")}, "an autoencoder alone"),
    ({"config.json": '{"architectures": ["CLIPTextModel"]}'}, "a text encoder or language model alone"),
    ({"config.json": '{"architectures": ["T5EncoderModel"]}'}, "a text encoder or language model alone"),
    ({"config.json": '{"architectures": ["CLIPVisionModelWithProjection"]}'}, "a network that looks at images"),
    ({"config.json": config("WanTransformer3DModel")}, r"a network that is not known here \(WanTransformer3DModel\)"),
    ({"config.json": "[]"}, "it names no class"),
    ({"config.json": "{"}, "not readable JSON"),
    ({"net/config.json": config("UNet2DConditionModel"), "scheduler/scheduler_config.json": "{}"}, r"no unet/config.json .* it holds net/ \(UNet2DConditionModel\)"),
    ({"scheduler_config.json": "{}"}, "a scheduler alone"),
    ({"pytorch_lora_weights.safetensors": ""}, r"the folder of a LoRA.*--lora .*pytorch_lora_weights.safetensors"),
    ({"adapter_config.json": "{}"}, "the folder of a LoRA"),
    ({"ip-adapter_sd15.safetensors": ""}, "an IP-Adapter"),
    ({"v1-5.safetensors": ""}, "the folder of a checkpoint in one file. Give the file itself: .*v1-5.safetensors"),
    ({"flux-q4.gguf": ""}, "a GGUF file"),
    ({"v1-5.ckpt": ""}, "pickled checkpoints are never loaded"),
    ({"model_index.json": config("WanPipeline"), "transformer/config.json": config("WanTransformer3DModel")}, r"a whole pipeline \(WanPipeline\) whose denoiser is not known here: transformer/ \(WanTransformer3DModel\)"),
    ({"model_index.json": config("MusicPipeline")}, r"a whole pipeline \(MusicPipeline\) .*: no unet/ or transformer/"),
    ({"model_index.json": config("ORTPipeline"), "unet/model.onnx": ""}, "a pipeline in ONNX"),
    ({"manifest.json": "{}"}, "an artifact or an exported pipeline of this library"),
    ({"notes.txt": ""}, "no model in it"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "said"), FOLDERS)
def test_a_folder_is_called_what_it_is(files: dict[str, str], said: str, tmp_path: Path) -> None:
    import re

    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = recognized(tmp_path)
    assert re.search(said, found) and "\n" not in found and len(found) < 1000, found


def test_the_folder_of_a_network_alone_names_the_one_around_it(tiny_folder: Path) -> None:
    said = recognized(tiny_folder / "unet")
    assert "the folder of a network alone (UNet2DModel)" in said and said.endswith(f"{tiny_folder.resolve()}.")


FILES: list[tuple[str, str]] = [
    ("unet.down_blocks.0.lora_A.weight", "a LoRA. It is merged into a pipeline"),
    ("lora_unet_down_blocks_0.lora_down.weight", "a LoRA"),
    ("lora_unet_x.hada_w1_a", "a LoRA"),
    ("control_model.input_blocks.0.0.weight", "a ControlNet alone"),
    ("controlnet_cond_embedding.conv_in.weight", "a ControlNet alone"),
    ("image_proj.proj.weight", "an IP-Adapter"),
    ("emb_params", "a textual inversion"),
    ("decoder.conv_in.weight", "an autoencoder alone"),
    ("first_stage_model.decoder.conv_in.weight", "an autoencoder alone"),
    ("text_model.embeddings.token_embedding.weight", "a text encoder alone"),
    ("model.diffusion_model.output_blocks.11.0.skip_connection.weight", r"of the kind v1: download all but the weights of stable-diffusion-v1-5/stable-diffusion-v1-5"),
    ("conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias", r"of the kind xl_base: download all but the weights of stabilityai/stable-diffusion-xl-base-1.0"),
    ("double_blocks.0.img_attn.norm.key_norm.scale", "of the kind flux-schnell: download all but the weights of black-forest-labs/FLUX.1-schnell"),
    ("anything.else", "a checkpoint in one file, which does not hold the configs.*--config FOLDER"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "said"), FILES)
def test_a_safetensors_file_is_called_what_it_is(name: str, said: str, tmp_path: Path) -> None:
    import re

    save_file({name: torch.zeros(1)}, tmp_path / "f.safetensors")
    found = recognized(tmp_path / "f.safetensors")
    assert re.search(said, found) and "\n" not in found and len(found) < 1000, found
    assert ("download all but" in found) == ("of the kind" in said)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.gguf", b"GGUF", "a GGUF file"),
        ("m.ckpt", b"PK\x03\x04", "pickled checkpoints are never loaded"),
        ("m.safetensors", b"GGUF" + bytes(32), "a GGUF file"),
        ("m.safetensors", b"", "not a whole safetensors file"),
        ("m.onnx", b"", "no safetensors file. Give the pipeline's folder"),
    ],
)
def test_other_files_are_called_what_they_are(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert said in recognized(tmp_path / name)


def test_what_is_not_there_is_said() -> None:
    assert "no such file or folder" in recognized(Path("nowhere"))
