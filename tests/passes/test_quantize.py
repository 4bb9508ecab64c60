"""INT8 and FP8 quantization: the arithmetic, what is kept, what is stored, and loading it again."""

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
from optimize.architectures.artifact import load_model, save_model
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Sampler
from optimize.errors import UserError
from optimize.passes.quantize import Quantize
from optimize.quantization.calibration import trajectory_inputs
from optimize.quantization.codes import bound, exact_amax, from_codes, relative_l2, step_size, to_codes
from optimize.registry import PASSES
from optimize.sources.diffusers import DiffusersSource
from optimize.storage.commit import commit

QUICK = Quantize(samples=8, batch=8)


@pytest.fixture(scope="module")
def float_model(tiny_folder: Path) -> Model:
    return DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=2, spacing="trailing"))


@pytest.fixture(scope="module")
def quantized(float_model: Model) -> tuple[Model, dict]:
    return QUICK.apply(float_model, Context())


@pytest.fixture(scope="module")
def fp8(float_model: Model) -> tuple[Model, dict]:
    return QUICK.model_copy(update={"format": "fp8"}).apply(float_model, Context())


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


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 1.0, 448.0, 3e4]))
def test_fp8_is_a_cast_to_e4m3_after_scaling_to_its_largest_number(seed: int, size: float) -> None:
    x = torch.from_numpy(rng.normal((64,), "fp8", seed)) * size
    amax = x.abs().amax()
    q = to_codes(x, amax, "e4m3")
    assert (
        torch.equal(q.float(), (x * (448.0 / amax)).to(torch.float8_e4m3fn).float()) and q.dtype == torch.float8_e4m3fn
    )
    w = from_codes(q, amax, "e4m3")
    assert torch.equal(from_codes(to_codes(w, amax, "e4m3"), amax, "e4m3"), w)
    normal = (
        x.abs() > amax / 448 * 2**-6
    )  # half a step of 3 bits of mantissa; finer numbers share the smallest exponent
    assert bool(((w - x).abs()[normal] <= x.abs()[normal] * 2.0**-4 * 1.0001).all())
    assert bool(((w - x).abs()[~normal] <= amax / 448 * 2.0**-10 * 1.0001).all())


def test_fp8_has_the_numbers_the_paper_lists() -> None:
    one = torch.tensor(448.0)  # a step of 1
    given = torch.tensor([448.0, 500.0, -1e9, 240.0, 17.0, 1.0625, 1.07, 2.0**-6, 2.0**-9, 2.0**-11])
    made = from_codes(to_codes(given, one, "e4m3"), one, "e4m3")
    assert made.tolist() == [448.0, 448.0, -448.0, 240.0, 16.0, 1.0, 1.125, 2.0**-6, 2.0**-9, 0.0]
    assert float(step_size(one, "e4m3")) == 1.0 and bound("e4m3") == 448


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [7, 8, "e4m3"])
def test_exact_ranges_have_steps_that_16_bit_holds_and_are_hardly_wider(bits: int | str, dtype: torch.dtype) -> None:
    amax = torch.from_numpy(rng.normal((500,), "amax")).abs() * 3 + 0.1
    exact = exact_amax(amax, bits, dtype)  # type: ignore[arg-type]
    steps = step_size(exact, bits)  # type: ignore[arg-type]
    assert bool((exact >= amax).all()) and bool((exact <= amax * (1 + 2 * torch.finfo(dtype).eps)).all())
    assert torch.equal(steps.to(dtype).float(), steps)
    assert torch.equal(exact_amax(exact, bits, dtype), exact)  # type: ignore[arg-type]


def test_exact_ranges_leave_zero_what_is_too_large_and_float32_alone() -> None:
    amax = torch.tensor([0.0, 1e9, 1.0])
    exact = exact_amax(amax, 8, torch.float16)
    assert exact[:2].tolist() == [0.0, 1e9] and float(exact[2]) > 1
    assert exact_amax(amax, 8, torch.float32) is amax


def test_a_range_of_zero_is_a_range_of_one_in_fp8_as_modelopt_has_it() -> None:
    assert from_codes(to_codes(torch.tensor([0.5, 3.0]), torch.zeros(1), "e4m3"), torch.zeros(1), "e4m3").tolist() == [
        0.5,
        1.0,
    ]


def test_a_range_of_zero_quantizes_to_zero() -> None:
    x, amax = torch.ones(3), torch.zeros(1)
    assert torch.equal(from_codes(to_codes(x, amax), amax), torch.zeros(3))
    assert float(step_size(amax)) > 1e20


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_our_rounding_is_modelopts_bit_for_bit(
    format: str, quantized: tuple[Model, dict], fp8: tuple[Model, dict]
) -> None:
    model, record = quantized if format == "int8" else fp8
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


@pytest.mark.parametrize("format", ["int8", "fp8"])
def test_weights_are_stored_in_8_bits_the_kept_in_16_and_load_to_the_same_network(
    format: str, quantized: tuple[Model, dict], fp8: tuple[Model, dict], tmp_path: Path
) -> None:
    model, record = quantized if format == "int8" else fp8
    state = model.module.state_dict()
    narrow = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}[format]
    for row in record["quantizers"]:
        assert state[f"{row['module']}.weight"].dtype == (narrow if row["input"] else torch.int8)
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
from optimize.architectures.artifact import load_model
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


def test_fp8_weights_have_one_range_a_tensor_and_the_record_says_what_was_quantized(fp8: tuple[Model, dict]) -> None:
    record = json.loads(json.dumps(fp8[1]))
    rows = [row for row in record["quantizers"] if row["input"]]
    assert {row["weight"]["bits"] for row in rows} == {row["input"]["bits"] for row in rows} == {"e4m3"}
    assert all(row["weight"]["axis"] is None and row["weight"]["shape"] == [] for row in rows)
    assert all(
        row["weight"]["axis"] == 0 and row["weight"]["bits"] == 8 for row in record["quantizers"] if not row["input"]
    )
    assert 0 < record["error"] < 0.2 and record["calibration"] == {"inputs": "trajectory", "calls": 2}


def test_weights_can_have_a_range_of_their_own_for_each_channel_in_fp8(
    float_model: Model, fp8: tuple[Model, dict]
) -> None:
    config = QUICK.model_copy(update={"format": "fp8", "weight_range": "channel"})
    _, record = config.apply(float_model, Context())
    row = next(r for r in record["quantizers"] if r["module"] == "down_blocks.0.resnets.0.conv1")
    assert row["weight"] == {"bits": "e4m3", "axis": 0, "shape": [16, 1, 1, 1]}
    assert record["error"] != fp8[1]["error"]


def test_every_layer_is_quantized_or_said_why_not(quantized: tuple[Model, dict]) -> None:
    from optimize.quantization.eligible import layers

    model, record = quantized
    both = {row["module"] for row in record["quantizers"] if row["input"]}
    assert both | set(record["kept"]) == {path for path, _ in layers(model.module)} and not both & set(record["kept"])
    assert record["kept"]["conv_in"].startswith("keep: ") and all(record["kept"].values())


def test_steps_of_a_model_kept_in_fp16_are_fp16_numbers(quantized: tuple[Model, dict]) -> None:
    model, record = quantized
    for row in record["quantizers"]:
        steps = step_size(model.module.get_submodule(row["module"]).weight_quantizer.amax, row["weight"]["bits"])
        assert torch.equal(steps.half().float(), steps)


def test_ranges_can_be_taken_from_a_few_noised_inputs_without_sampling(
    float_model: Model, quantized: tuple[Model, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "sample", lambda *a, **k: pytest.fail("an image was drawn"))
    _, record = Quantize(inputs="noise", samples=3, batch=2, levels=4).apply(float_model, Context(seed=5))
    assert record["calibration"] == {"inputs": "noise", "calls": 8}  # 4 levels in batches of 2 and 1
    assert [e["t"] for e in record["error_by_time"]] == [0.0, 333.0, 666.0, 999.0]
    assert {r["module"] for r in record["quantizers"]} == {r["module"] for r in quantized[1]["quantizers"]}
    assert 0 < record["error"] < 0.1


def test_a_layer_that_is_never_called_stays_and_says_so(float_model: Model) -> None:
    model = float_model.clone()
    model.module.unused = torch.nn.Linear(32, 32)
    made, record = QUICK.apply(model, Context())
    assert record["kept"]["unused"] == "never called"
    assert type(made.module.unused) is torch.nn.Linear


def test_a_network_of_which_nothing_can_be_quantized_is_refused(float_model: Model) -> None:
    said = r"no layer of UNet2DModel would be quantized to FP8: \d+ .* are kept \(conv_in: keep: .*Narrow `keep`"
    with pytest.raises(UserError, match=said):
        Quantize(format="fp8", keep=("",), weight_only=()).apply(float_model, Context())


def test_weights_alone_can_be_quantized(float_model: Model) -> None:
    _, record = QUICK.model_copy(update={"keep": ("",), "weight_only": ("conv",)}).apply(float_model, Context())
    assert record["quantizers"] and all(row["input"] is None for row in record["quantizers"])
    assert 0 < record["error"] < 0.02


def test_a_bad_expression_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        Quantize(keep=("conv_(",))


def test_quantizing_twice_is_refused_by_declaration() -> None:
    plugin = PASSES.get("quantize")
    assert plugin.provides == {"quantized"} and "quantized" in plugin.refuses_after
