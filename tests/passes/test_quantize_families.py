"""Quantization of every named network: what is quantized and what stays, loading it again, and the graph's numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from moved import OWN, own_movement
from support.quantized_checks import differences

from optimize import rng
from optimize.architectures.artifact import load_model, save_model
from optimize.diffusion.backend import open_runner
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.parity import noise_levels, noised_inputs, parity
from optimize.diffusion.sampling import Sampler
from optimize.exporters.onnx import FILE, Onnx
from optimize.passes.quantize import Quantize
from optimize.quantization.eligible import layers
from optimize.storage.commit import commit

LIGHT: dict[str, Any] = {"inputs": "noise", "samples": 2, "batch": 2, "levels": 2, "weight_bits": 8}
# name -> one layer of each kind that is quantized, one that stays, at the tiny widths
FAMILIES = {
    "unet2d": ({"mid_block.resnets.0.conv1", "mid_block.attentions.0.to_q"}, {"conv_in", "time_embedding.linear_1"}),
    "sd": (
        {f"mid_block.attentions.0.{n}" for n in ("proj_in", "transformer_blocks.0.attn2.to_q", "transformer_blocks.0.ff.net.0.proj")},
        {"conv_out", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "mid_block.resnets.0.time_emb_proj"},
    ),
    "sdxl": ({"mid_block.attentions.0.transformer_blocks.1.ff.net.2"}, {"add_embedding.linear_1"}),
    "unet1d": ({"mid_block.resnets.1.conv_1", "mid_block.attentions.0.query"}, {"up_blocks.2.resnets.2.conv_2"}),
    "dit": ({"transformer_blocks.0.attn1.to_out.0", "transformer_blocks.1.ff.net.2"}, {"pos_embed.proj", "transformer_blocks.0.norm1.linear", "proj_out_2"}),
    "pixart": ({"transformer_blocks.0.attn2.to_q"}, {"adaln_single.linear", "caption_projection.linear_1", "transformer_blocks.0.attn2.to_v"}),
    "sd3": ({"transformer_blocks.0.attn.add_k_proj", "transformer_blocks.0.attn2.to_q", "transformer_blocks.0.ff_context.net.2"}, {"context_embedder", "transformer_blocks.0.norm1_context.linear", "proj_out"}),
    "flux": ({"single_transformer_blocks.0.proj_mlp", "single_transformer_blocks.1.proj_out"}, {"x_embedder", "single_transformer_blocks.0.norm.linear", "norm_out.linear"}),
}  # fmt: skip


class Made(dict[tuple[str, str], tuple[Model, dict[str, Any]]]):
    """(network, format) -> quantized model and record, made when it is asked for."""

    def __missing__(self, key: tuple[str, str]) -> tuple[Model, dict[str, Any]]:
        self[key] = Quantize(format=key[1], **LIGHT).apply(networks.model(networks.TINY[key[0]]), Context())
        return self[key]


@pytest.fixture(scope="module")
def made() -> Made:
    return Made()


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_bulk_of_a_network_is_quantized_and_its_edges_stay(name: str, format: str, made: dict[Any, Any]) -> None:
    model, record = made[name, format]
    narrow = {row["module"] for row in record["quantizers"] if row["input"]}
    quantized, kept = FAMILIES[name]
    assert quantized <= narrow and kept <= set(record["kept"])
    assert narrow | set(record["kept"]) == {path for path, _ in layers(model.module)}
    assert 0 < record["error"] < {"int8": 0.1, "fp8": 0.2}[format]
    assert max(record["layer_error"].values()) < 0.2


@pytest.mark.parametrize("format", ["int8", "fp8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantized_network_loads_to_the_same_bits(
    name: str, format: str, made: dict[Any, Any], tmp_path: Path
) -> None:
    model, _ = made[name, format]
    commit(tmp_path / "a", lambda folder: (save_model(folder, model), {"id": "x"})[1])
    loaded, feed = load_model(tmp_path / "a"), noised_inputs(model, 100.0 if "flux" not in name else 0.5, 2, 0)
    with torch.inference_mode():
        assert torch.equal(loaded.denoiser.network(**feed), model.denoiser.network(**feed))


def test_frequencies_that_multiply_a_time_are_stored_exactly(made: dict[Any, Any]) -> None:
    state = made["unet1d", "int8"][0].module.state_dict()
    assert (
        state["time_proj.weight"].dtype == torch.float32
        and state["up_blocks.2.resnets.2.conv_2.bias"].dtype == torch.float16
    )
    plain = networks.model(networks.TINY["unet1d"]).module
    assert torch.equal(state["time_proj.weight"], plain.time_proj.weight)


def test_stored_tables_are_rounded_as_they_are_stored(made: dict[Any, Any]) -> None:
    module = made["sd3", "int8"][0].module
    assert torch.equal(module.pos_embed.pos_embed.half().float(), module.pos_embed.pos_embed)
    assert module.state_dict()["pos_embed.pos_embed"].dtype == torch.float16


@pytest.mark.parametrize("inputs", ["trajectory", "noise"])
def test_given_conditions_are_what_a_network_is_calibrated_with(inputs: str) -> None:
    text = torch.from_numpy(rng.normal((3, 7, 32), "given")) * 50
    plain = networks.model(networks.TINY["sd"], Sampler(steps=2))
    feeds = {}
    for name, model in (("given", replace(plain, conditions={"encoder_hidden_states": text})), ("seeded", plain)):
        feeds[name] = Quantize(inputs=inputs, samples=3, batch=2, levels=2).feeds(model, seed=0)
    states = torch.cat([f["encoder_hidden_states"] for f in feeds["given"]])
    assert states.shape == (6, 7, 32)  # two calls each of three samples, every row used
    assert {int(i) for s in states for i in range(3) if torch.equal(s, text[i])} == {0, 1, 2}
    assert float(feeds["seeded"][0]["encoder_hidden_states"].abs().max()) < 10


SLOW = [(n, f) for n in FAMILIES for f in ("int8", "fp8") if (n, f) != ("flux", "int8")]


def _agrees(name: str, format: str, made: dict[Any, Any], folder: Path) -> None:
    model, record = made[name, format]
    said = Onnx().export(model, folder, Context())
    assert said[f"{format}_layers"] == sum(row["input"] is not None for row in record["quantizers"])
    with open_runner(folder, "onnxruntime", int8="as_is", threads=1) as network:
        found = parity(model, network, levels=2, batch=2)
    # values on the edge between two codes may fall to either side; what that costs is far below what rounding does, but
    # in a network that such a change grows in (an untrained one in FP8): there, no more than float rounding costs itself
    feeds = [noised_inputs(model, t, 2, 0) for t in noise_levels(model, 2)]
    own = max(own_movement(model, feed, draws=2) for feed in feeds)
    assert found["relative_l2"] < max(0.2 * record["error"], OWN * own)
    assert [differences(model, folder / FILE, feed) for feed in feeds] == [[], []]


@pytest.mark.parametrize(("name", "format"), [("flux", "int8")])  # the rest is slow; U-Nets are in onnx/test_qdq.py
def test_the_graph_computes_what_the_network_does(name: str, format: str, made: dict[Any, Any], tmp_path: Path) -> None:
    _agrees(name, format, made, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "format"), SLOW)
def test_every_graph_computes_what_its_network_does(
    name: str, format: str, made: dict[Any, Any], tmp_path: Path
) -> None:
    _agrees(name, format, made, tmp_path)
