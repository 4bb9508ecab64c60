"""Every layer of a network, in the naming of every program, is merged with its own alpha, whatever diffusers makes of it;
where diffusers reads a naming right, both find the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.lora_files import (
    BARE,
    DEFAULT,
    LINEAR,
    OLD,
    PEFT,
    Naming,
    apart,
    config_of,
    farthest,
    original,
    own,
    write,
    xlabs,
)
from support.tiny_pipelines import XL, flux, sd3, t5_encoder, text_config, unet

from optimize.architectures.adapters.contents import Delta
from optimize.architectures.adapters.naming import flat
from optimize.architectures.lora import merge, read_lora


def processors(layer: str) -> str:
    """diffusers' attention processors of old, which had the four matrices of attention alone."""
    outer, _, inner = layer.removesuffix(".0").rpartition(".")
    return f"unet.{outer}.processor.{inner}_lora" if inner in ("to_q", "to_k", "to_v", "to_out") else ""


PROCESSORS = (".down.weight", ".up.weight")
Case = tuple[Callable[[], Any], Callable[[Any], Any], Naming]
CASES: dict[str, Case] = {
    "unet-diffusers": (unet, own, Naming(lambda n: f"unet.{n}", PEFT)),
    "unet-diffusers-old": (unet, own, Naming(lambda n: f"unet.{n}", OLD, alphas=False)),
    "unet-diffusers-processors": (unet, own, Naming(processors, PROCESSORS, alphas=False)),
    "unet-peft": (unet, own, Naming(lambda n: f"base_model.model.{n}", PEFT, alphas=False)),
    "unet-peft-default": (unet, own, Naming(lambda n: f"unet.base_model.model.{n}", DEFAULT)),
    "unet-bare": (unet, own, Naming(lambda n: n, BARE)),
    "unet-kohya": (unet, own, Naming(lambda n: f"lora_unet_{flat(n)}")),
    "unet-lycoris": (unet, own, Naming(lambda n: f"lycoris_{flat(n)}")),
    "unet-onetrainer": (unet, own, Naming(lambda n: f"lora_unet.{n}")),
    "unet-onetrainer-omi": (unet, original, Naming(lambda n: f"unet.{n}")),
    "unet-comfyui": (unet, original, Naming(lambda n: f"diffusion_model.{n}")),
    "unet-whole": (unet, original, Naming(lambda n: f"model.diffusion_model.{n}")),
    "xl-kohya": (lambda: unet(**XL), original, Naming(lambda n: f"lora_unet_{flat(n)}")),
    "xl-linear-projections": (lambda: unet(**XL, use_linear_projection=True), original, Naming(lambda n: f"lora_unet_{flat(n)}")),
    "flux-ai-toolkit": (flux, own, Naming(lambda n: f"transformer.{n}", PEFT, alphas=False)),
    "flux-diffusers-alphas": (flux, own, Naming(lambda n: f"transformer.{n}")),
    "flux-peft": (flux, own, Naming(lambda n: f"base_model.model.{n}", PEFT)),
    "flux-onetrainer": (flux, own, Naming(lambda n: f"lora_transformer_{flat(n)}")),
    "flux-onetrainer-dotted": (flux, own, Naming(lambda n: f"lora_transformer.{n}")),
    "flux-onetrainer-omi": (flux, apart, Naming(lambda n: f"transformer.{n}")),
    "flux-kohya": (flux, original, Naming(lambda n: f"lora_unet_{flat(n)}")),
    "flux-comfyui": (flux, original, Naming(lambda n: f"diffusion_model.{n}", PEFT)),
    "flux-bfl": (flux, original, Naming(lambda n: n, PEFT, alphas=False)),
    "flux-fal": (flux, original, Naming(lambda n: f"base_model.model.{n}", PEFT)),
    "flux-xlabs": (flux, xlabs, Naming(lambda n: n, PROCESSORS, alphas=False)),
    "flux-xlabs-comfyui": (flux, xlabs, Naming(lambda n: f"diffusion_model.{n}", PROCESSORS, alphas=False)),
    "sd3-diffusers": (sd3, own, Naming(lambda n: f"transformer.{n}", PEFT)),
    "sd3-onetrainer": (sd3, own, Naming(lambda n: f"lora_transformer_{flat(n)}")),
    "sd3-onetrainer-omi": (sd3, apart, Naming(lambda n: f"transformer.{n}")),
    "sd3-kohya": (sd3, original, Naming(lambda n: f"lora_unet_{flat(n)}")),
    "sd3-comfyui": (sd3, original, Naming(lambda n: f"diffusion_model.{n}", PEFT)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_every_layer_of_every_naming_is_merged_with_its_own_alpha(case: str, tmp_path: Path) -> None:
    build, names, naming = CASES[case]
    before, after, path = build(), build(), tmp_path / "style.safetensors"
    _, expected = write(path, before, names(before), naming)
    component = "unet" if "unet" in type(before).__name__.lower() else "transformer"
    lora = read_lora(path, 0.7, config_of(before))
    assert set(lora.deltas) == {component} and merge(after, lora, component) == len(expected)
    assert farthest(after, before, {k: 0.7 * v for k, v in expected.items()}) < 1e-4
    if names is not xlabs and naming.called is not processors:
        assert set(expected) == set(own(before))  # no layer was left out


@pytest.mark.parametrize("case", ["unet-kohya", "flux-kohya", "flux-onetrainer", "sd3-comfyui"])
def test_without_a_config_the_names_are_told_when_the_network_is_there(case: str, tmp_path: Path) -> None:
    build, names, naming = CASES[case]
    before, after, path = build(), build(), tmp_path / "style.safetensors"
    _, expected = write(path, before, names(before), naming)
    merge(after, read_lora(path), "unet" if case.startswith("unet") else "transformer")
    assert farthest(after, before, expected) < 1e-4


def clip() -> Any:
    from transformers import CLIPTextModel

    torch.manual_seed(1)
    return CLIPTextModel(text_config()).eval()


def clip_g() -> Any:
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(2)
    return CLIPTextModelWithProjection(text_config()).eval()


FLUX, SD3 = {"_class_name": "FluxTransformer2DModel"}, {"_class_name": "SD3Transformer2DModel"}
SD, PIXART = {"_class_name": "UNet2DConditionModel"}, {"_class_name": "PixArtTransformer2DModel"}
TEXTS = [
    ("lora_te_", clip, SD, "text_encoder"),
    ("lora_te1_", clip, SD, "text_encoder"),
    ("lora_te2_", clip_g, SD, "text_encoder_2"),
    ("lora_te1.", clip, FLUX, "text_encoder"),
    ("lora_te2_", t5_encoder, FLUX, "text_encoder_2"),
    ("lora_te3_", t5_encoder, FLUX, "text_encoder_2"),
    ("lora_te3_", t5_encoder, SD3, "text_encoder_3"),
    ("clip_l.", clip, SD, "text_encoder"),
    ("clip_g.", clip_g, SD3, "text_encoder_2"),
    ("t5.", t5_encoder, FLUX, "text_encoder_2"),
    ("t5.", t5_encoder, SD3, "text_encoder_3"),
    ("t5.", t5_encoder, PIXART, "text_encoder"),
    ("text_encoder.", clip, SD, "text_encoder"),
    ("text_encoder_2.base_model.model.", clip_g, SD, "text_encoder_2"),
    ("text_encoder_3.", t5_encoder, SD3, "text_encoder_3"),
    ("text_encoders.clip_l.transformer.", clip, FLUX, "text_encoder"),
    ("text_encoders.clip_h.transformer.", clip, SD, "text_encoder"),
    ("text_encoders.clip_g.transformer.", clip_g, SD3, "text_encoder_2"),
    ("text_encoders.t5xxl.transformer.", t5_encoder, SD3, "text_encoder_3"),
]


@pytest.mark.parametrize(("prefix", "build", "config", "component"), TEXTS, ids=[f"{t[0]}{t[2]['_class_name'][:4]}" for t in TEXTS])  # fmt: skip
@pytest.mark.parametrize("marks", [PEFT, LINEAR])
def test_text_encoders_are_found_by_every_programs_names(
    prefix: str,
    build: Callable[[], Any],
    config: dict[str, Any],
    component: str,
    marks: tuple[str, str],
    tmp_path: Path,
) -> None:
    def called(layer: str) -> str:
        name = layer if build is t5_encoder or layer.startswith("text_") else f"text_model.{layer}"
        return prefix + (flat(name) if prefix.endswith("_") else name)

    before, after, path = build(), build(), tmp_path / "style.safetensors"
    _, expected = write(path, before, own(before), Naming(called, marks))
    lora = read_lora(path, 1.0, config, {component: config_of(before)})
    assert merge(after, lora, component) == len(expected) and set(lora.deltas) == {component}
    assert farthest(after, before, expected) < 1e-4


def reference(read: Any, tensors: dict[str, torch.Tensor], **options: Any) -> dict[str, torch.Tensor]:
    """{component.layer: update} as diffusers reads a file: its names, its alphas over the rank."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    named, alphas = read.lora_state_dict(dict(tensors), **options)
    named = convert_unet_state_dict_to_peft(named)
    given = convert_unet_state_dict_to_peft({k.removesuffix(".alpha"): v for k, v in (alphas or {}).items()})
    downs = {k.removesuffix(".lora_A.weight"): v for k, v in named.items() if k.endswith(".lora_A.weight")}
    scales = {k: given.get(f"{k}.lora_A.weight", len(down)) / len(down) for k, down in downs.items()}
    assert sum(f"{k}.lora_A.weight" in given for k in downs) == len(given)
    return {k: scales[k] * named[f"{k}.lora_B.weight"].flatten(1) @ down.flatten(1) for k, down in downs.items()}


@pytest.mark.parametrize(
    ("case", "reads"),
    [
        ("unet-kohya", "attn"),
        ("xl-kohya", "attn"),
        ("flux-onetrainer", "attn.to_q"),
        ("flux-kohya", "double_blocks"),
        ("flux-xlabs", "double_blocks"),
        ("flux-ai-toolkit", ""),
    ],
)
def test_where_diffusers_reads_a_naming_right_it_finds_the_same(case: str, reads: str, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from diffusers import loaders

    build, names, naming = CASES[case]
    network, path = build(), tmp_path / "style.safetensors"
    some = {name: pieces for name, pieces in names(network).items() if reads in name}
    tensors, _ = write(path, network, some, naming)
    ours = {
        f"{part}.{layer}": delta.product().flatten(1)
        for part, deltas in read_lora(path, 1.0, config_of(network)).deltas.items()
        for layer, delta in deltas.items()
    }
    if "transformer" in next(iter(ours)).split(".")[0]:
        theirs = reference(loaders.FluxLoraLoaderMixin, tensors, return_alphas=True)
    else:
        options = {"unet_config": SimpleNamespace(**network.config)} if case.startswith("xl") else {}
        theirs = reference(loaders.StableDiffusionXLLoraLoaderMixin, tensors, **options)
    assert set(ours) == set(theirs)
    assert all(torch.allclose(ours[layer], theirs[layer], atol=1e-5) for layer in ours)


def test_an_update_is_taken_apart_by_rows() -> None:
    delta = Delta(torch.eye(2), torch.arange(8.0).reshape(4, 2), 0.5)
    assert torch.equal(delta.rows(((2, 4), (0, 1))).product(), delta.product()[[2, 3, 0]])
    assert delta.rows(()) is delta
