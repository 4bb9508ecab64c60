"""INT8 quantization: the arithmetic, what is kept, what is stored, and loading it again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from optimize import rng
from optimize.artifact import commit, load_model, save_model
from optimize.calibration import trajectory_inputs
from optimize.context import Context
from optimize.model import Model
from optimize.ops.quantization import bound, from_codes, relative_l2, step_size, to_codes
from optimize.passes.quantize import Quantize
from optimize.registry import PASSES
from optimize.sampling import Sampler
from optimize.sources.diffusers import DiffusersSource

QUICK = Quantize(samples=8, batch=8)


@pytest.fixture(scope="module")
def float_model(tiny_folder: Path) -> Model:
    return DiffusersSource(tiny_folder).load(Sampler(steps=2))


@pytest.fixture(scope="module")
def quantized(float_model: Model) -> tuple[Model, dict]:
    return QUICK.apply(float_model, Context())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([7, 8]))
def test_codes_are_within_half_a_step_and_rounding_twice_changes_nothing(seed: int, bits: int) -> None:
    x = torch.from_numpy(rng.normal((4, 9), "codes", seed))
    amax = x.abs().amax(1, keepdim=True)
    q = to_codes(x, amax, bits)
    again = from_codes(q, amax, bits)
    assert int(q.abs().max()) <= bound(bits)
    assert bool(((again - x).abs() <= step_size(amax, bits) * 0.5001).all())
    assert torch.equal(from_codes(to_codes(again, amax, bits), amax, bits), again)


def test_a_range_of_zero_quantizes_to_zero() -> None:
    x, amax = torch.ones(3), torch.zeros(1)
    assert torch.equal(from_codes(to_codes(x, amax), amax), torch.zeros(3))
    assert float(step_size(amax)) > 1e20


def test_our_rounding_is_modelopts_bit_for_bit(quantized: tuple[Model, dict]) -> None:
    model, record = quantized
    for row in record["quantizers"]:
        layer = model.module.get_submodule(row["module"])
        weight = torch.from_numpy(rng.normal(tuple(layer.weight.shape), "w", row["module"]))
        quantizer = layer.weight_quantizer
        assert torch.equal(
            quantizer(weight),
            from_codes(to_codes(weight, quantizer.amax, row["weight"]["bits"]), quantizer.amax, row["weight"]["bits"]),
        )


def test_calibration_inputs_follow_the_sampler_and_the_seed(tiny_model: Model) -> None:
    feeds = trajectory_inputs(tiny_model, samples=6, seed=3, batch=4)
    times = [float(f["timestep"][0]) for f in feeds]
    assert times == [float(t) for t in tiny_model.sampler.times(tiny_model.denoiser.schedule)[:-1]] * 2
    assert [f["sample"].shape[0] for f in feeds] == [8] * 4 + [4] * 4  # guided: both branches in one call
    again = trajectory_inputs(tiny_model, samples=6, seed=3, batch=4)
    assert all(torch.equal(a["sample"], b["sample"]) for a, b in zip(feeds, again))
    assert not torch.equal(feeds[0]["sample"], trajectory_inputs(tiny_model, 6, 4, 4)[0]["sample"])


def test_the_recipes_layers_are_kept_and_the_rest_is_quantized(quantized: tuple[Model, dict]) -> None:
    _, record = quantized
    names = {row["module"] for row in record["quantizers"] if row["input"]}
    kept = set(record["kept"])
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= kept and not names & kept
    assert any("conv_shortcut" in n for n in kept) and any("time_emb_proj" in n for n in kept)
    assert {row["module"] for row in record["quantizers"] if not row["input"]} < kept
    assert {"down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.to_q"} <= names


def test_the_record_is_json_and_says_what_it_cost(quantized: tuple[Model, dict]) -> None:
    record = json.loads(json.dumps(quantized[1]))
    assert 0 < record["error"] < 0.1
    assert [e["t"] for e in record["error_by_time"]] == [499.0, 999.0]
    assert set(record["layer_error"]) == {row["module"] for row in record["quantizers"]}


def test_the_float_model_is_untouched_and_the_result_is_deterministic(
    float_model: Model, quantized: tuple[Model, dict]
) -> None:
    assert not any("quantizer" in k for k in float_model.module.state_dict())
    again, record = QUICK.apply(float_model, Context())
    assert record == quantized[1]
    ours, theirs = again.module.state_dict(), quantized[0].module.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_weights_are_stored_in_8_bits_the_kept_in_16_and_load_to_the_same_network(
    quantized: tuple[Model, dict], tmp_path: Path
) -> None:
    model, record = quantized
    state = model.module.state_dict()
    assert all(state[f"{row['module']}.weight"].dtype == torch.int8 for row in record["quantizers"])
    assert state["conv_in.weight"].dtype == torch.float16
    assert all(v.dtype == torch.float32 for k, v in state.items() if k.endswith("_amax"))
    assert all(p.dtype == torch.float32 for p in model.module.parameters())
    commit(tmp_path / "a", lambda t: (save_model(t, model), {"id": "x"})[1])
    loaded = load_model(tmp_path / "a")
    assert torch.equal(loaded.sample(range(3)), model.sample(range(3)))
    assert torch.equal(loaded.clone().sample(range(3)), model.sample(range(3)))


LOAD = """
import sys, torch
sys.modules["torch_pruning"] = None
def refuse(*a, **k): raise AssertionError("torch.load was called")
torch.load = refuse
from pathlib import Path
from safetensors.torch import save_file
from optimize.artifact import load_model
save_file({"x": load_model(Path(sys.argv[1])).sample(range(2))}, sys.argv[2])
"""


def test_a_fresh_process_without_torch_pruning_or_torch_load_gives_the_same_images(
    quantized: tuple[Model, dict], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    commit(tmp_path / "a", lambda t: (save_model(t, quantized[0]), {"id": "x"})[1])
    subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "a"), str(tmp_path / "x.safetensors")],
        check=True,
        timeout=240,
    )
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], quantized[0].sample(range(2)))


def test_layers_that_err_too_much_are_taken_back(float_model: Model, quantized: tuple[Model, dict]) -> None:
    limit = sorted(quantized[1]["layer_error"].values())[-5]
    model, record = QUICK.model_copy(update={"max_layer_error": limit}).apply(float_model, Context())
    back = {row["module"] for row in quantized[1]["quantizers"]} - {row["module"] for row in record["quantizers"]}
    assert 0 < len(back) <= 5 and back <= set(record["kept"])
    assert all(type(model.module.get_submodule(n)) in (torch.nn.Conv2d, torch.nn.Linear) for n in back)
    assert record["error"] < quantized[1]["error"]


@pytest.mark.parametrize("role", ["weight_only", "keep"])
def test_linear_layers_can_be_left_out_of_int8_arithmetic(float_model: Model, role: str) -> None:
    _, record = QUICK.model_copy(update={"linear": role}).apply(float_model, Context())
    rows = {row["module"]: row for row in record["quantizers"]}
    linear = "mid_block.attentions.0.to_q"
    assert linear in record["kept"] and (linear in rows) == (role == "weight_only")
    assert all(row["input"] is None for path, row in rows.items() if "attentions" in path)
    assert rows["mid_block.resnets.0.conv1"]["input"] is not None


def test_percentile_calibration_narrows_the_ranges(float_model: Model, quantized: tuple[Model, dict]) -> None:
    config = Quantize(samples=8, batch=8, calibration="percentile", percentile=99.0)
    model, record = config.apply(float_model, Context())
    path = next(row["module"] for row in record["quantizers"] if row["input"]) + ".input_quantizer._amax"
    assert float(model.module.state_dict()[path]) < float(quantized[0].module.state_dict()[path])


def test_8_bit_weights_are_nearer_than_7_bit_ones() -> None:
    w = torch.from_numpy(rng.normal((8, 64), "bits"))
    amax = w.abs().amax(1, keepdim=True)
    errors = {bits: relative_l2(w, from_codes(to_codes(w, amax, bits), amax, bits)) for bits in (7, 8)}
    assert errors[8] < 0.6 * errors[7]


def test_a_bad_expression_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        Quantize(keep=("conv_(",))


def test_quantizing_twice_is_refused_by_declaration() -> None:
    plugin = PASSES.get("quantize")
    assert plugin.provides == {"quantized"} and "quantized" in plugin.refuses_after
