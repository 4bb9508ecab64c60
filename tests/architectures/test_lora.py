"""LoRA: every naming gives the same update, merging is W + s B A, and a switch is off, on, and in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_pipelines import ATTENTION, flux, lora_tensors, sd3, text_lora_tensors, transformer_lora_tensors, unet

from optimize.architectures.lora import Switch, add_switch, lora_option, merge, read_lora
from optimize.errors import ArtifactError, UserError

Tensors = dict[str, torch.Tensor]
ALPHA, RANK = 6.0, 3


def peft(tensors: Tensors, prefix: str = "unet.") -> Tensors:
    names = {".A": ".lora_A.weight", ".B": ".lora_B.weight"}
    return {f"{prefix}{k[:-2]}{names[k[-2:]]}": v for k, v in tensors.items()}


def bare(tensors: Tensors) -> Tensors:
    return peft(tensors, "")


def diffusers_old(tensors: Tensors) -> Tensors:
    names = {".A": ".lora.down.weight", ".B": ".lora.up.weight"}
    return {f"unet.{k[:-2]}{names[k[-2:]]}": v for k, v in tensors.items()}


def kohya(tensors: Tensors) -> Tensors:
    names = {".A": ".lora_down.weight", ".B": ".lora_up.weight"}
    flat = {f"lora_unet_{k[:-2].replace('.', '_')}{names[k[-2:]]}": v for k, v in tensors.items()}
    return flat | {f"lora_unet_{k[:-2].replace('.', '_')}.alpha": torch.tensor(ALPHA) for k in tensors if k[-1] == "A"}


def written(folder: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    path = folder / "style.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata)
    return path


def named(network: Any) -> dict[str, Any]:
    """A network's config as it is on disk."""
    return {**network.config, "_class_name": type(network).__name__}


def inputs(seed: int = 0) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(2, 4, 8, 8, generator=random),
        "timestep": torch.tensor(10.0),
        "encoder_hidden_states": torch.randn(2, 5, 32, generator=random),
    }


@pytest.mark.parametrize(("named", "scale"), [(peft, 1.0), (bare, 1.0), (diffusers_old, 1.0), (kohya, ALPHA / RANK)])
@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_every_naming_merges_to_w_plus_s_b_a(
    tmp_path: Path, named: Callable[[Tensors], Tensors], scale: float, strength: float
) -> None:
    tensors, before, after = lora_tensors(rank=RANK), unet(), unet()
    lora = read_lora(written(tmp_path, named(tensors)), strength)
    assert merge(after, lora, "unet") == len(tensors) // 2
    changed = {k for k, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[k])}
    assert changed == {f"{k[:-2]}.weight" for k in tensors}
    for layer in {k[:-2] for k in tensors}:
        a, b = tensors[f"{layer}.A"], tensors[f"{layer}.B"]
        product = torch.einsum("or,r...->o...", b.flatten(1).double(), a.double())
        expected = before.get_submodule(layer).weight.double() + strength * scale * product
        assert torch.allclose(after.get_submodule(layer).weight.double(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("about", "scale"),
    [
        ({"unet.r": 3, "unet.lora_alpha": 9}, 3.0),
        ({"r": 3, "lora_alpha": 9}, 3.0),
        ({"unet.lora_alpha": 9, "unet.alpha_pattern": {f"{ATTENTION}.to_q": 6}}, 2.0),
        ({"unet.lora_alpha": 9, "unet.use_rslora": True}, 9 / 3**0.5),
    ],
)
def test_the_strength_that_peft_describes_beside_the_weights_is_kept(
    tmp_path: Path, about: dict[str, object], scale: float
) -> None:
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(about)}
    lora = read_lora(written(tmp_path, peft(lora_tensors()), metadata))
    assert lora.deltas["unet"][f"{ATTENTION}.to_q"].scale == pytest.approx(scale)


def test_a_text_encoders_layers_are_found_under_the_names_of_old_and_new_libraries(tmp_path: Path) -> None:
    from support.tiny_pipelines import text_config
    from transformers import CLIPTextModel

    lora = read_lora(written(tmp_path, peft(text_lora_tensors(), "text_encoder.")))
    encoder = CLIPTextModel(text_config())
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    assert merge(encoder, lora, "text_encoder") == 1 and merge(encoder, lora, "unet") == 0
    changed = [k for k, v in encoder.state_dict().items() if not torch.equal(v, before[k])]
    assert [k.removeprefix("text_model.") for k in changed] == ["encoder.layers.1.self_attn.q_proj.weight"]


def test_merging_equals_diffusers_own_fused_network(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="the reference wants peft")
    tensors = lora_tensors()
    path, ours, theirs = written(tmp_path, peft(tensors, "unet.")), unet(), unet()
    theirs.load_lora_adapter({k.removeprefix("unet."): v for k, v in peft(tensors).items()}, prefix=None)
    theirs.fuse_lora(lora_scale=0.7)
    merge(ours, read_lora(path, 0.7), "unet")
    with torch.inference_mode():
        a, b, plain = ours(**inputs()).sample, theirs(**inputs()).sample, unet()(**inputs()).sample
    assert float((a - b).norm() / b.norm()) < 1e-6
    assert float((plain - b).norm() / b.norm()) > 1e-2  # the update is not lost in the noise


@pytest.mark.parametrize("network", [sd3, flux], ids=["sd3", "flux"])
@pytest.mark.parametrize("prefix", ["transformer.", ""], ids=["named", "bare"])
def test_a_transformers_updates_are_merged_as_diffusers_fuses_them(
    tmp_path: Path, network: Callable[[], Any], prefix: str
) -> None:
    pytest.importorskip("peft", reason="the reference wants peft")
    ours, theirs = network(), network()
    tensors = transformer_lora_tensors(ours)
    lora = read_lora(written(tmp_path, peft(tensors, prefix)), 0.7, named(ours))
    assert merge(ours, lora, "transformer") == 3 and set(lora.deltas) == {"transformer"}
    theirs.load_lora_adapter(peft(tensors, ""), prefix=None)
    theirs.fuse_lora(lora_scale=0.7)
    for name, layer in dict(ours.named_modules()).items():
        if f"{name}.A" in tensors:
            expected = dict(theirs.named_modules())[name].base_layer.weight
            assert torch.allclose(layer.weight, expected, atol=1e-5) and not torch.equal(
                layer.weight, network().get_submodule(name).weight
            )


def test_kohyas_names_for_flux_are_read_with_their_alpha(tmp_path: Path) -> None:
    """The attention's q, k and v are one update there, taken apart by rows."""
    network, random = flux(), torch.Generator().manual_seed(1)
    down, up = torch.randn(RANK, 32, generator=random), torch.randn(96, RANK, generator=random)
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    both = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    lora = read_lora(written(tmp_path, both), 1.0, named(network))
    expected = ALPHA / RANK * up @ down
    for i, part in enumerate("qkv"):
        delta = lora.deltas["transformer"][f"transformer_blocks.0.attn.to_{part}"]
        assert torch.allclose(delta.product(), expected[32 * i : 32 * (i + 1)], atol=1e-5)


def test_a_switch_is_the_base_bit_for_bit_at_0_and_merged_at_1_and_half_way_between(tmp_path: Path) -> None:
    lora, base, switched = read_lora(written(tmp_path, peft(lora_tensors())), 0.8), unet(), unet()
    switch = Switch()
    assert add_switch(switched, lora, "unet", switch) == 4
    with torch.inference_mode():
        assert torch.equal(switched(**inputs()).sample, base(**inputs()).sample)
        for strength in (1.0, 0.5, -1.0):
            switch.value, merged = torch.tensor(strength), unet()
            merge(merged, read_lora(lora.path, 0.8 * strength), "unet")
            a, b = switched(**inputs()).sample, merged(**inputs()).sample
            assert float((a - b).norm() / b.norm()) < 1e-6


def test_two_loras_add_up(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    one, two = (written(p, peft(lora_tensors(s))) for p, s in ((tmp_path, 5), (tmp_path / "two", 9)))
    merged, switched, switch = unet(), unet(), Switch()
    for path, strength in ((one, 0.5), (two, 2.0)):
        merge(merged, read_lora(path, strength), "unet")
        add_switch(switched, read_lora(path, strength), "unet", switch)
    switch.value = 1.0
    with torch.inference_mode():
        a, b = switched(**inputs()).sample, merged(**inputs()).sample
    assert float((a - b).norm() / b.norm()) < 1e-6


def test_a_lora_that_does_not_fit_names_the_first_layers(tmp_path: Path) -> None:
    lora = read_lora(written(tmp_path, peft(lora_tensors())))
    with pytest.raises(
        ArtifactError, match=r"4 of its 4 layers do not fit the pipeline's unet: .*no such layer"
    ) as error:
        merge(torch.nn.Linear(2, 2), lora, "unet")
    assert f"{ATTENTION}.to_k" in str(error.value) and "made for another network" in str(error.value)
    with pytest.raises(
        ArtifactError, match=r"1 of its 4 layers.*to_k \(\[32, 64\] in the network, \[32, 32\] in the file\)"
    ):
        merge(unet(block_out_channels=(16, 32), cross_attention_dim=64), lora, "unet")


def test_a_file_that_is_missing_pickled_or_broken_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file"):
        read_lora(tmp_path / "gone.safetensors")
    (tmp_path / "style.bin").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="pickled checkpoints are never loaded"):
        read_lora(tmp_path / "style.bin")
    (tmp_path / "half.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        read_lora(tmp_path / "half.safetensors")


def test_the_option_takes_a_strength_after_the_last_colon(tmp_path: Path) -> None:
    assert lora_option("a/b.safetensors") == (Path("a/b.safetensors"), 1.0)
    assert lora_option("a/b.safetensors:0.8") == (Path("a/b.safetensors"), 0.8)
    odd = tmp_path / "x:1"
    odd.write_bytes(b"")
    assert lora_option(str(odd)) == (odd, 1.0)
    for wrong in ("much", "nan", "-inf", "1e999", ""):
        with pytest.raises(UserError, match=rf'--lora: "{wrong}" is no number. Give FILE or FILE:strength'):
            lora_option(f"a.safetensors:{wrong}")
    assert lora_option(f"{'a' * 5000}:2") == (Path("a" * 5000), 2.0)
