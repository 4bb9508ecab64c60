"""A file that does not fit is told from one whose naming is not known; nothing is merged twice, or into no number."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.lora_files import config_of
from support.tiny_pipelines import XL, flux, sd3, t5_encoder, unet

from optimize.architectures.lora import Switch, add_switch, merge, read_lora
from optimize.errors import ArtifactError

OTHER, UNKNOWN = (
    "It was made for another network.",
    "This naming is not known: known are those of diffusers, peft, kohya,",
)
ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"


def style(folder: Path, layers: dict[str, tuple[int, int]], rank: int = 2, **alphas: float) -> Path:
    """A file of updates of (in, out) by name."""
    tensors = {f"{n}.lora_down.weight": torch.ones(rank, into) for n, (into, _) in layers.items()}
    tensors |= {f"{n}.lora_up.weight": torch.ones(out, rank) for n, (_, out) in layers.items()}
    save_file(tensors | {f"{n}.alpha": torch.tensor(a) for n, a in alphas.items()}, folder / "style.safetensors")
    return folder / "style.safetensors"


def refusal(path: Path, network: Any) -> str:
    """What the file is refused with, by the network's config; the same when the network itself is there."""
    with pytest.raises(ArtifactError) as early:
        read_lora(path, 1.0, config_of(network))
    before = {k: v.clone() for k, v in network.state_dict().items()}
    component = "unet" if "UNet" in type(network).__name__ else "transformer"
    with pytest.raises(ArtifactError) as late:
        merge(network, read_lora(path, 1.0, {"_class_name": f"A{type(network).__name__}"}), component)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert str(early.value) == str(late.value) and len(str(early.value)) < 2000
    return str(early.value)


@pytest.mark.parametrize(
    ("network", "name", "shape", "verdict"),
    [
        (flux, "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", (8, 8), OTHER),
        (flux, "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", (8, 8), OTHER),
        (flux, "transformer.transformer_blocks.18.attn.to_q", (32, 32), OTHER),
        (flux, "lora_unet_double_blocks_7_img_attn_qkv", (32, 96), OTHER),
        (flux, "lora_unet_double_blocks_0_img_attn_qkv", (64, 192), OTHER),
        (flux, "diffusion_model.joint_blocks.0.x_block.attn.qkv", (32, 96), OTHER),
        (flux, "diffusion_model.blocks.0.self_attn.q", (32, 32), OTHER),
        (flux, "lora_unet_double_blocks_0_img_attn_everything", (32, 96), UNKNOWN),
        (flux, "transformer.transformer_blocks.0.attn.to_qkv", (32, 96), UNKNOWN),
        (flux, "styles.0.to_q", (32, 32), UNKNOWN),
        (sd3, "lora_unet_double_blocks_0_img_attn_qkv", (32, 96), OTHER),
        (sd3, "transformer.single_transformer_blocks.0.attn.to_q", (32, 32), OTHER),
        (sd3, "lora_unet_joint_blocks_0_x_block_attn_kqv", (32, 96), UNKNOWN),
        (unet, "unet.down_blocks.1.attentions.0.transformer_blocks.4.attn1.to_q", (32, 32), OTHER),
        (unet, f"unet.{ATTENTION}.to_k", (64, 32), OTHER),
        (unet, "lora_unet_double_blocks_0_img_attn_qkv", (32, 96), OTHER),
        (unet, "lora_unet_down_blocks_0_motion_modules_0_proj_in", (32, 32), OTHER),
        (unet, "lora_unet_label_emb_0_0", (32, 32), OTHER),
        (lambda: flux(guidance_embeds=False), "lora_unet_guidance_in_in_layer", (256, 32), OTHER),
        (lambda: sd3(dual_attention_layers=()), "transformer.transformer_blocks.0.attn2.to_q", (32, 32), OTHER),
        (unet, "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.query", (32, 32), UNKNOWN),
        (unet, "resblocks.0.attn.in_proj", (32, 32), UNKNOWN),
    ],
)  # fmt: skip
def test_another_network_is_told_from_a_naming_that_is_not_known(
    network: Callable[[], Any], name: str, shape: tuple[int, int], verdict: str, tmp_path: Path
) -> None:
    said = refusal(style(tmp_path, {name: shape}), network())
    assert verdict in said and name in said and "1 of its 1 layers do not fit the pipeline's" in said


def test_a_layer_of_another_shape_is_told_with_both_shapes(tmp_path: Path) -> None:
    said = refusal(style(tmp_path, {"lora_unet_double_blocks_0_img_attn_qkv": (64, 192)}), flux())
    assert "img_attn_qkv ([96, 32] in the network, [192, 64] in the file). It was made for" in said


def test_a_control_lora_of_flux_widens_the_first_layer_and_fits_no_plain_flux(tmp_path: Path) -> None:
    said = refusal(style(tmp_path, {"img_in": (32, 32)}), flux())
    assert "img_in ([32, 16] in the network, [32, 32] in the file)" in said


def test_at_most_ten_layers_are_named(tmp_path: Path) -> None:
    said = refusal(style(tmp_path, {f"{'x' * 300}{i}.to_q": (2, 2) for i in range(30)}), flux())
    assert said.count("(no such layer)") == 8 and "and 22 more. This naming is not known" in said  # ten are too long
    said = refusal(style(tmp_path, {f"{i}.to_q": (2, 2) for i in range(30)}), flux())
    assert said.count("(no such layer)") == 10 and "and 20 more. This naming is not known" in said


def test_text_encoders_are_held_to_their_configs_too(tmp_path: Path) -> None:
    wrong = style(tmp_path, {"lora_te2_text_model_encoder_layers_0_mlp_fc1": (8, 8)})
    with pytest.raises(ArtifactError, match=r"do not fit the pipeline's text_encoder_2: lora_te2_text_model_encoder_layers_0_mlp_fc1 \(no such layer\)\. It was made for another"):  # fmt: skip
        read_lora(wrong, 1.0, config_of(flux()), {"text_encoder_2": config_of(t5_encoder())})


TWICE = [
    (flux, f"transformer.{'transformer_blocks.0.attn.to_q'}", "transformer_blocks.0.attn.to_q"),
    (flux, "lora_transformer_transformer_blocks_0_attn_to_q", "transformer.transformer_blocks.0.attn.to_q"),
    (flux, "lora_unet_double_blocks_0_img_attn_proj", "transformer.transformer_blocks.0.attn.to_out.0"),
    (unet, f"lora_unet_{ATTENTION.replace('.', '_')}_to_q", "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_q"),
    (unet, f"unet.{ATTENTION}.to_q", f"base_model.model.{ATTENTION}.to_q"),
]  # fmt: skip


@pytest.mark.parametrize(("network", "one", "other"), TWICE)
def test_two_names_of_one_layer_are_refused(network: Any, one: str, other: str, tmp_path: Path) -> None:
    path = style(tmp_path, {one: (32, 32), other: (32, 32)})
    said = refusal(path, network()) if network is flux or "input" in other else refusal(path, unet())
    assert "it has two updates of one layer: " in said and one in said and other in said
    assert "Take one of the two out of the file." in said


def test_a_part_of_a_fused_layer_beside_the_whole_is_refused(tmp_path: Path) -> None:
    path = style(tmp_path, {"diffusion_model.double_blocks.0.img_attn.qkv": (32, 96), "transformer_blocks.0.attn.to_k": (32, 32)})  # fmt: skip
    assert "qkv and transformer_blocks.0.attn.to_k (transformer_blocks.0.attn.to_k)" in refusal(path, flux())


def test_an_alpha_of_0_is_a_strength_of_0_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"unet_{i}" for i in range(2)]
    one, two = f"unet.{ATTENTION}.to_q", f"unet.{ATTENTION}.to_v"
    path = style(tmp_path, {one: (32, 32), two: (32, 32)}, **{one: 0.0, two: 4.0})
    network, before = unet(), unet()
    with caplog.at_level(logging.WARNING):
        assert merge(network, read_lora(path, 1.0, config_of(network)), "unet") == 2, names
    assert f"alpha is 0, so that nothing changes, of 1 layers: unet.{ATTENTION}.to_q" in caplog.text
    assert torch.equal(
        network.get_submodule(f"{ATTENTION}.to_q").weight, before.get_submodule(f"{ATTENTION}.to_q").weight
    )
    change = network.get_submodule(f"{ATTENTION}.to_v").weight - before.get_submodule(f"{ATTENTION}.to_v").weight
    assert torch.allclose(change, torch.full((32, 32), 4.0), atol=1e-5)


@pytest.mark.parametrize("put", [merge, lambda n, lora, c: add_switch(n, lora, c, Switch())], ids=["merge", "switch"])
def test_weights_that_would_not_be_finite_are_refused_by_name(put: Any, tmp_path: Path) -> None:
    name = f"unet.{ATTENTION}.to_q"
    path = style(tmp_path, {name: (32, 32)}, **{name: 3e38})
    with pytest.raises(
        ArtifactError, match=rf"at strength 10 the weights of {ATTENTION}\.to_q are not finite\. Give a lower"
    ):
        put(unet(), read_lora(path, 10.0), "unet")


def test_a_linear_update_is_merged_into_a_convolution_of_one_pixel_and_the_other_way_round(tmp_path: Path) -> None:
    name = "down_blocks.1.attentions.0.proj_in"
    for convolved, changes in ((False, {}), (True, {"use_linear_projection": True})):
        path = style(tmp_path, {f"lora_unet_{name.replace('.', '_')}": (32, 32)})
        if convolved:
            from safetensors.torch import load_file

            save_file({k: v.reshape(*v.shape, 1, 1) for k, v in load_file(path).items()}, path)
        network, before, switched, switch = unet(**changes), unet(**changes), unet(**changes), Switch()
        lora = read_lora(path, 1.0, config_of(network))
        assert merge(network, lora, "unet") == 1 and add_switch(switched, lora, "unet", switch) == 1
        change = network.get_submodule(name).weight - before.get_submodule(name).weight
        assert torch.allclose(change, torch.full_like(change, 2.0), atol=1e-5)
        switch.value, x = 1.0, torch.ones(1, 32, 3, 3) if not changes else torch.ones(1, 9, 32)
        assert torch.allclose(switched.get_submodule(name)(x), network.get_submodule(name)(x), rtol=1e-4)


def test_a_lora_for_sdxl_is_not_merged_into_its_smaller_kin(tmp_path: Path) -> None:
    path = style(tmp_path, {f"lora_unet_{ATTENTION.replace('.', '_')}_to_k": (64, 32)})
    merge(unet(**XL), read_lora(path, 1.0, config_of(unet(**XL))), "unet")
    assert OTHER in refusal(path, unet())


def test_a_file_for_another_kind_of_denoiser_is_never_passed_over(tmp_path: Path) -> None:
    lora = read_lora(style(tmp_path, {f"unet.{ATTENTION}.to_k": (32, 32)}))
    with pytest.raises(ArtifactError, match="it is for a unet, and this is a transformer"):
        merge(flux(), lora, "transformer")
    assert merge(unet(), lora, "text_encoder") == 0


def test_weights_in_double_precision_keep_it(tmp_path: Path) -> None:
    network, before = unet().double(), unet().double()
    merge(network, read_lora(style(tmp_path, {f"unet.{ATTENTION}.to_k": (32, 32)}), 1e-12), "unet")
    change = network.get_submodule(f"{ATTENTION}.to_k").weight - before.get_submodule(f"{ATTENTION}.to_k").weight
    assert torch.allclose(change, torch.full_like(change, 2e-12), rtol=1e-3)
