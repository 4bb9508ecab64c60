"""The layout's graphs one by one: names, types and dims to the letter, and the same numbers at other sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnx import TensorProto
from support.pipeline_checks import FLOAT, ends, session
from support.tiny_pipelines import XL, flux, sd3, t5_encoder, unet

from optimize.onnx.file import save
from optimize.pipelines import layout as graphs
from optimize.pipelines.whole import unet_part

INT64 = TensorProto.INT64


@pytest.mark.slow
def test_an_inpainting_unet_keeps_its_nine_channels(tmp_path: Path) -> None:
    part = unet_part(unet(in_channels=9), 0)
    save(graphs.graph_of(part, 18), tmp_path / "model.onnx")
    assert ends(tmp_path / "model.onnx")["sample"] == (FLOAT, ["batch_size", 9, "height", "width"])
    assert graphs.distance(part, session(tmp_path / "model.onnx"), 1, 2) < 1e-5


@pytest.mark.slow
def test_the_inputs_of_sdxl_are_those_its_config_asks_for(tmp_path: Path) -> None:
    part = unet_part(unet(**XL), 32)
    save(graphs.graph_of(part, 18), tmp_path / "model.onnx")
    found = ends(tmp_path / "model.onnx")
    assert found["text_embeds"] == (FLOAT, ["batch_size", 32]) and found["time_ids"] == (FLOAT, ["batch_size", 6])
    assert graphs.distance(part, session(tmp_path / "model.onnx"), 2, 1) < 1e-5


def test_a_t5_encoder_takes_any_length(tmp_path: Path) -> None:
    part = graphs.text_encoder("text_encoder_3", t5_encoder())
    save(graphs.graph_of(part, 18), tmp_path / "model.onnx")
    assert ends(tmp_path / "model.onnx") == {
        "input_ids": (INT64, ["batch_size", "sequence_length"]),
        "last_hidden_state": (FLOAT, ["batch_size", "sequence_length", 32]),
    }
    assert part.words > 16  # the fed texts reach beyond the farthest distance that has a bias of its own
    far = [distance_at(part, tmp_path / "model.onnx", words) for words in (1, 9, 256)]
    assert max(far) < 1e-5, far


@pytest.mark.parametrize("broken", [0, 1])
def test_a_file_or_a_network_that_gives_nan_is_infinitely_far(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """max(0.0, nan) is 0.0 in Python: such a file had no distance at all."""
    part = graphs.text_encoder("text_encoder_3", t5_encoder())
    given = torch.zeros(1, 2, 3), torch.full((1, 2, 3), torch.nan)
    monkeypatch.setattr(graphs, "run", lambda *_: [given[broken]])
    made = SimpleNamespace(run=lambda *_: [given[1 - broken].numpy()])
    assert graphs.distance(part, made, 1, 1) == float("inf")


def distance_at(part: graphs.Part, file: Path, words: int) -> float:
    return graphs.distance(replace(part, words=words - 1), session(file), 1, 2)


SD3 = {
    "hidden_states": (FLOAT, ["batch_size", 4, "height", "width"]),
    "timestep": (FLOAT, ["batch_size"]),
    "encoder_hidden_states": (FLOAT, ["batch_size", "sequence_length", 32]),
    "pooled_projections": (FLOAT, ["batch_size", 64]),
    "out_hidden_states": (FLOAT, ["batch_size", 4, "height", "width"]),
}
PACKED = (FLOAT, ["batch_size", "packed_height_width", 16])
FLUX = {
    "hidden_states": PACKED,
    "timestep": (FLOAT, ["batch_size"]),
    "encoder_hidden_states": (FLOAT, ["batch_size", "sequence_length", 32]),
    "pooled_projections": (FLOAT, ["batch_size", 32]),
    "img_ids": (FLOAT, ["packed_height_width", 3]),
    "txt_ids": (FLOAT, ["sequence_length", 3]),
    "guidance": (FLOAT, ["batch_size"]),
    "out_hidden_states": PACKED,
}


@pytest.mark.parametrize(("network", "expected"), [(sd3, SD3), (flux, FLUX)], ids=["sd3", "flux"])
def test_a_transformer_has_optimums_names_and_the_same_numbers_at_any_size(
    tmp_path: Path, network: Callable[[], Any], expected: dict[str, Any]
) -> None:
    part = graphs.transformer(network())
    save(graphs.graph_of(part, 18), tmp_path / "model.onnx")
    assert ends(tmp_path / "model.onnx") == expected
    run = session(tmp_path / "model.onnx")
    assert max(graphs.distance(part, run, seed, batch) for seed, batch in ((1, 1), (2, 2), (3, 5))) < 1e-5


def test_a_flux_without_distilled_guidance_has_no_such_input() -> None:
    part = graphs.transformer(flux(guidance_embeds=False))
    assert [s.name for s in part.inputs] == [n for n in FLUX if n not in ("guidance", "out_hidden_states")]


def test_a_transformers_feed_has_times_of_its_own_range_and_positions_of_a_grid() -> None:
    feed = graphs.feed_of(graphs.transformer(flux()), 0, 2)
    assert feed["timestep"].tolist() == [0.0, 1.0] and feed["guidance"].tolist() == [3.5, 3.5]
    assert feed["img_ids"].tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0]][: len(feed["img_ids"])]
    feed = graphs.feed_of(graphs.transformer(sd3()), 0, 2)
    assert feed["timestep"].tolist() == [0.0, 999.0] and feed["hidden_states"].shape[2] % 2 == 0
