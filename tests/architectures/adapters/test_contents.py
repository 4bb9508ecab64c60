"""What is no plain LoRA is named, every kind of it, with what is wrong; nothing is left out without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimize.architectures.adapters.contents import read_updates
from optimize.errors import ArtifactError

Tensors = dict[str, torch.Tensor]


def pair(layer: str = "lora_unet_a", rank: int = 2, alpha: Any = 1.0) -> Tensors:
    found = {f"{layer}.lora_down.weight": torch.ones(rank, 3), f"{layer}.lora_up.weight": torch.ones(4, rank)}
    return found | ({} if alpha is None else {f"{layer}.alpha": torch.as_tensor(alpha)})


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Tensors], str]:
    def said(tensors: Tensors) -> str:
        path = tmp_path / "style.safetensors"
        save_file({k: v.clone() for k, v in tensors.items()}, path)
        with pytest.raises(ArtifactError) as error:
            read_updates(path)
        assert str(error.value).startswith(f"{path}: it holds ") and len(str(error.value)) < 2000
        return str(error.value).removeprefix(f"{path}: it holds ")

    return said


ONE = torch.ones(1)
KINDS = {
    "DoRA": "lora_unet_a.dora_scale",
    "DoRA ": "unet.a.lora_magnitude_vector.weight",
    "LoHa": "lora_unet_a.hada_w1_a",
    "LoKr": "lycoris_a.lokr_w1",
    "OFT or BOFT": "lora_unet_a.oft_blocks",
    "OFT or BOFT ": "unet.a.boft_R",
    "GLoRA": "lora_unet_a.b1.weight",
    "VeRA": "base_model.model.a.vera_lambda_b",
    "(IA)3": "lora_unet_a.on_input",
    "LoRA of a lookup table": "text_encoder.a.lora_embedding_A",
    "a third factor between down and up (lora_mid)": "lora_unet_a.lora_mid.weight",
    "differences of full rank": "lora_unet_b.diff",
    "differences of full rank ": "lora_unet_a.diff_b",
    "biases beside the update": "transformer.a.lora_B.bias",
    "biases beside the update ": "transformer.a.lora_B.default.bias",
    "scales of norms, as in a control LoRA of Flux": "double_blocks.0.img_attn.norm.query_norm.scale",
    "textual inversion": "emb_params",
    "textual inversion ": "clip_l",
    "textual inversion  ": "clip_g",
    "textual inversion   ": "string_to_param.*",
    "textual inversion    ": "bundle_emb.cat.clip_l",
    "textual inversion     ": "<cat-toy>",
    "a hypernetwork": "768.0.linear.0.weight",
    "an IP-adapter": "ip_adapter.1.to_k_ip.weight",
    "an IP-adapter ": "image_proj.proj.weight",
    "a ControlLoRA": "lora_controlnet",
    "a ControlNet": "control_model.zero_convs.0.0.weight",
    "a T2I-Adapter": "adapter.body.0.in_conv.weight",
    "weights that replace and do not add": "model.diffusion_model.out.2.weight",
    "tensors whose role is not known": "lora_unet_a.lora_sideways",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_lora_is_called_what_it_is(kind: str, refused: Callable[[Tensors], str]) -> None:
    """Alone, and beside layers that are plain LoRA."""
    for beside in ({}, pair()):
        said = refused({**beside, KINDS[kind]: ONE})
        assert said.startswith(f"{kind.strip()} ({KINDS[kind]}). Only plain LoRA is merged: down and up"), said
        assert (
            "Merge the file with the program it was made for and give the merged model, or leave the file out." in said
        )


WRONG: dict[str, tuple[Tensors, str]] = {
    "no tensor": ({}, "no tensor at all. Only"),
    "no up": ({"a.lora_A.weight": torch.ones(2, 3)}, "down without up (a.lora_A.weight)"),
    "no down": ({**pair(), "b.lora.up.weight": torch.ones(4, 2)}, "up without down (b.lora.up.weight)"),
    "no layer": ({**pair(), "b.alpha": ONE}, "an alpha without its layer (b.alpha)"),
    "nan": ({**pair(), "lora_unet_a.lora_up.weight": torch.full((4, 2), float("nan"))}, "values that are NaN or infinite (lora_unet_a.lora_up.weight)"),
    "inf": ({**pair(), "lora_unet_a.lora_down.weight": torch.full((2, 3), float("inf")).half()}, "values that are NaN or infinite (lora_unet_a.lora_down.weight)"),
    "nan alpha": (pair(alpha=float("nan")), "values that are NaN or infinite (lora_unet_a.alpha)"),
    "inf alpha": (pair(alpha=float("-inf")), "values that are NaN or infinite (lora_unet_a.alpha)"),
    "alphas": (pair(alpha=[1.0, 2.0]), "an alpha that is not one number (lora_unet_a.alpha [2])"),
    "no alpha": (pair(alpha=torch.ones(0)), "an alpha that is not one number (lora_unet_a.alpha [0])"),
    "ranks": ({**pair(), "lora_unet_a.lora_up.weight": torch.ones(4, 3)}, "shapes that are no update (lora_unet_a.lora_down.weight [2, 3] with up [4, 3])"),
    "rank 0": (pair(rank=0), "shapes that are no update (lora_unet_a.lora_down.weight [0, 3] with up [4, 0])"),
    "one dim": ({**pair(), "lora_unet_a.lora_up.weight": torch.ones(4)}, "shapes that are no update"),
    "wide up": ({**pair(), "lora_unet_a.lora_up.weight": torch.ones(4, 2, 3, 3)}, "shapes that are no update"),
    "whole numbers": ({**pair(), "lora_unet_a.lora_up.weight": torch.ones(4, 2).int()}, "values that are int32 (lora_unet_a.lora_up.weight)"),
    "complex": (pair(alpha=1j), "values that are complex64 (lora_unet_a.alpha)"),
    "yes": (pair(alpha=True), "values that are bool (lora_unet_a.alpha)"),
    "two namings": ({**pair(), "lora_unet_a.lora_A.weight": torch.ones(2, 3)}, "one role of a layer twice (lora_unet_a.lora_A.weight and lora_unet_a.lora_down.weight)"),
    "two adapters": ({f"a.lora_A.{n}.weight": ONE for n in ("x", "y")}, "one role of a layer twice (a.lora_A.x.weight and a.lora_A.y.weight)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_update_is_named(case: str, refused: Callable[[Tensors], str]) -> None:
    tensors, said = WRONG[case]
    assert said in refused(tensors)


def test_at_most_ten_names_are_told_and_long_ones_are_cut(refused: Callable[[Tensors], str]) -> None:
    many = {f"lora_unet_{i}.diff": ONE for i in range(8)} | {f"lora_unet_{i}.hada_w1_a": ONE for i in range(8)}
    said = refused(many)
    assert said.count("lora_unet_") == 10 and "LoHa (lora_unet_0.hada_w1_a" in said and "and 6 more)" in said
    said = refused({**many, "x\ny" * 5000 + ".lokr_w1": ONE, **{f"{i}.dora_scale": ONE for i in range(20)}})
    assert "and 10 more" in said and "LoHa (8 tensors)" in said and "LoKr (1 tensors)" in said and "\n" not in said


def test_an_update_keeps_its_own_alpha_of_any_kind_of_number(tmp_path: Path) -> None:
    alphas = {"a": 3, "b": torch.tensor([2.5]).bfloat16(), "c": torch.tensor([[-1.0]]).double(), "d": 0.0, "e": None}
    path = tmp_path / "style.safetensors"
    save_file({k: v for name, alpha in alphas.items() for k, v in pair(name, alpha=alpha).items()}, path)
    assert {k: u.alpha for k, u in read_updates(path).items()} == {"a": 3, "b": 2.5, "c": -1, "d": 0, "e": None}


def test_weights_of_a_byte_are_read_as_numbers(tmp_path: Path) -> None:
    path = tmp_path / "style.safetensors"
    save_file({k: v.to(torch.float8_e4m3fn) for k, v in pair(alpha=None).items()}, path)
    assert read_updates(path)["lora_unet_a"].up.dtype == torch.float32
