"""Layers on the meta device: counts against closed forms and optimize.diffusion.macs, live memory, and what is left untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optimize.architectures.components import component, skeleton
from optimize.diffusion import macs
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.network import example_inputs, nested
from optimize.roofline import layers as l
from optimize.roofline.layers import Layer, kind_of, layers


class Small(nn.Module):
    """One layer of each kind, of known sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.blocks = nn.ModuleList([nn.Linear(8, 16)])
        self.table = nn.Embedding(5, 16)
        self.spare = nn.Parameter(torch.zeros(7))

    def forward(self, sample: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm(self.conv(sample)))  # (B,8,4,4)
        x = self.blocks[0](x.flatten(2).transpose(1, 2)) + self.table(label)[:, None]  # (B,16,16)
        q = x.unflatten(2, (2, 8)).transpose(1, 2)  # (B,2,16,8)
        x = F.scaled_dot_product_attention(q, q, q)
        return F.interpolate(x, scale_factor=2.0) @ x.new_ones(16, 3)


def small(batch: int = 2) -> list[Layer]:
    feed = {"sample": torch.zeros(batch, 3, 4, 4), "label": torch.zeros(batch, dtype=torch.int64)}
    return layers(Small(), feed=feed)


def of_kind(kind: str, found: list[Layer]) -> Layer:
    return next(layer for layer in found if layer.kind == kind)


def test_every_kind_counts_what_its_formula_says() -> None:
    found, image = small(), 2 * 8 * 16
    conv, norm, silu = of_kind("conv", found), of_kind("norm", found), of_kind("elementwise", found)
    assert (conv.path, conv.macs, conv.weights) == ("conv", 2 * 16 * 8 * 3 * 9, 224)
    assert (conv.inputs, conv.outputs) == (2 * 3 * 16, image)
    assert (norm.path, norm.weights, norm.other_flops, norm.inputs) == ("norm", 16, 8 * image, image)
    assert (silu.path, silu.macs, silu.other_flops, silu.outputs) == ("", 0, 4 * image, image)
    linear, attention = of_kind("linear", found), of_kind("attention", found)
    assert (linear.path, linear.macs) == ("blocks.0", 2 * 16 * 8 * 16)
    assert sum(x.weights for x in found if x.path == "blocks.0") == 144  # the bias may be an addition of its own
    assert attention.macs == 2 * 2 * 16 * 16 * (8 + 8)
    assert attention.inputs == 2 * 16 * 16  # query, key and value are one tensor, read once
    assert of_kind("embedding", found).weights == 80 and of_kind("embedding", found).inputs == 0
    assert of_kind("resample", found).macs == 0


def test_weights_that_nothing_reads_close_the_list_so_that_parameters_add_up() -> None:
    found = small()
    assert found[-1] == Layer("", "unused", weights=7)
    assert l.params(found) == sum(p.numel() for p in Small().parameters())


def test_counts_grow_with_the_batch_and_weights_do_not() -> None:
    one, three = small(1), small(3)
    assert l.macs(three) == 3 * l.macs(one) and l.params(three) == l.params(one)


def test_attention_in_separate_products_counts_the_same_as_fused() -> None:
    class Attention(nn.Module):
        def __init__(self, fused: bool) -> None:
            super().__init__()
            self.fused, self.project = fused, nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = self.project(x)
            if self.fused:
                return F.scaled_dot_product_attention(q, x, x)
            return torch.bmm(torch.bmm(q, x.transpose(1, 2)).softmax(-1), x)

    feed = {"x": torch.zeros(2, 6, 8)}
    fused, apart = layers(Attention(True), feed=feed), layers(Attention(False), feed=feed)
    assert l.macs(fused) == l.macs(apart) == 2 * 6 * 8 * 8 + 2 * 2 * 6 * 6 * 8
    assert {x.kind for x in fused} >= {"linear", "attention"} and "attention" not in {x.kind for x in apart}
    assert sum(x.kind == "matmul" for x in apart) == 2


def test_live_memory_is_what_is_held_at_once() -> None:
    class Skip(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            held = x * 2  # 10 more
            for _ in range(5):
                x = x + 1  # the first keeps the input, the others let go of the one before
            return x + held

    found = layers(Skip(), feed={"x": torch.zeros(10)})
    # input + held + the sum before + the sum now, at most; the input is the caller's and stays
    assert [layer.live for layer in found] == [20, 30, 40, 40, 40, 40, 40]


def test_a_tied_weight_counts_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x))

    found = layers(Tied(), feed={"x": torch.zeros(2, 4)})
    assert [layer.weights for layer in found if layer.kind == "linear"] == [16, 0]
    assert l.macs(found) == 2 * 2 * 16


def by_module(found: list[Layer]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for layer in found:
        sums[layer.path] = sums.get(layer.path, 0) + layer.macs
    return {path: n for path, n in sums.items() if n}


def test_a_model_agrees_with_optimize_macs_module_by_module(tiny_model: Model) -> None:
    found = layers(tiny_model)
    assert macs.count(tiny_model) == {"params": l.params(found), "macs": l.macs(found)}
    assert by_module(found) == macs.by_module(tiny_model)


def test_tracing_leaves_the_model_as_it_was(tiny_model: Model) -> None:
    before = {k: v.clone() for k, v in tiny_model.module.state_dict().items()}
    first = layers(tiny_model, 2)
    assert layers(tiny_model, 2) == first
    assert all(torch.equal(before[k], v) for k, v in tiny_model.module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_model.module.modules())
    assert not torch.nn.modules.module._global_forward_hooks


def test_a_pruned_model_agrees_with_optimize_macs(tiny_model: Model, tiny_data: object) -> None:
    from optimize.passes.prune import Prune

    pruned, _ = Prune(budget={"macs": 0.4}, importance="magnitude").apply(tiny_model, Context(data=tiny_data))
    found = layers(pruned)
    assert macs.count(pruned) == {"params": l.params(found), "macs": l.macs(found)}
    assert l.macs(found) < 0.7 * l.macs(layers(tiny_model))


def test_a_quantized_model_has_the_layers_of_the_plain_one_and_says_which_are_int8(
    tiny_model: Model, tiny_data: object
) -> None:
    from optimize.passes.quantize import Quantize

    quantized, record = Quantize().apply(tiny_model, Context(data=tiny_data))
    plain, found = layers(tiny_model), layers(quantized)
    assert [(x.path, x.kind, x.macs, x.weights) for x in found] == [(x.path, x.kind, x.macs, x.weights) for x in plain]
    assert macs.count(quantized) == {"params": l.params(found), "macs": l.macs(found)}
    int8 = {x.path for x in found if x.format == "int8"}
    assert int8 == {row["module"] for row in record["quantizers"] if row["input"] is not None} != set()
    assert all(m.is_enabled for m in quantized.module.modules() if hasattr(m, "disable_quant") and m.amax is not None)


def test_a_module_alone_must_say_what_it_is_fed() -> None:
    with pytest.raises(TypeError, match="give feed="):
        layers(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("name", "weights", "kind"),
    [
        ("addmm", True, "linear"),
        ("addmm", False, "matmul"),
        ("convolution", True, "conv"),
        ("_softmax", False, "softmax"),
        ("_scaled_dot_product_flash_attention_for_cpu", False, "attention"),
        ("native_group_norm", True, "norm"),
        ("upsample_nearest2d", False, "resample"),
        ("avg_pool2d", False, "resample"),
        ("cat", False, "copy"),
        ("mean", False, "reduce"),
        ("silu_", False, "elementwise"),
    ],
)
def test_kinds_of_operators(name: str, weights: bool, kind: str) -> None:
    assert kind_of(name, weights) == kind


TEXT_UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
    "cross_attention_dim": 16, "attention_head_dim": 2, "block_out_channels": (16, 32), "layers_per_block": 1,
    "norm_num_groups": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 40}


@pytest.mark.parametrize("extra", [{}, XL], ids=["text", "text and sizes"])
def test_a_config_without_weights_gives_the_layers_of_the_real_network(extra: dict[str, object]) -> None:
    config = TEXT_UNET | extra
    ghost, inputs = skeleton(config)
    feed = example_inputs(inputs, 2)
    real = component("UNet2DConditionModel").build(config).eval()
    assert {p.device.type for p in ghost.parameters()} == {"meta"}
    assert layers(ghost, feed=feed) == layers(real, feed=feed)
    assert real(**nested(feed)).sample.shape == (2, 4, 8, 8)


def test_names_with_a_dot_are_entries_of_a_dictionary_argument() -> None:
    assert nested({"a": 1, "b.c": 2, "b.d": 3}) == {"a": 1, "b": {"c": 2, "d": 3}}
