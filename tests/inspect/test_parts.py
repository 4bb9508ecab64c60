"""`optimize inspect`: artifacts, pipelines, parts and configs, what is shown of them, and what is refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from optimize.architectures.artifact import save_model
from optimize.diffusion import macs
from optimize.diffusion.model import Model
from optimize.errors import ArtifactError, EnvironmentLacks, UserError
from optimize.hardware import devices
from optimize.hardware.targets import target
from optimize.inspect import breakdown
from optimize.inspect.breakdown import balance, grouped, inspect, measured_modules, short
from optimize.inspect.parts import parts, stored_elements, weights_files
from optimize.report.terminal.breakdown import balance_text, check_out, folded, picture, print_breakdown, write_out
from optimize.roofline import probe
from optimize.roofline.layers import Layer
from optimize.roofline.predict import predict
from optimize.roofline.rates import Rates
from optimize.storage.commit import commit

CPU = Rates(
    name="invented", compute={"default": 0.5}, bandwidth=1.0, overhead_s=1e-5, spread=0.2, samples=5, fused=False,
    formats=("fp32",), peak_tflops={"fp32": 0.1}, bandwidth_gb_s=10.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def known_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates of the CPU as if they had been measured."""
    monkeypatch.setattr(probe, "calibrate", lambda *a: CPU)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline with tiny widths and random weights, in stock layout, and a part nobody knows."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=16, attention_head_dim=2,
        block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")  # fmt: skip
    AutoencoderKL(
        sample_size=16, block_out_channels=(16, 16), norm_num_groups=8, latent_channels=4, layers_per_block=1,
        down_block_types=2 * ("DownEncoderBlock2D",), up_block_types=2 * ("UpDecoderBlock2D",),
    ).save_pretrained(folder / "vae")  # fmt: skip
    text = CLIPTextConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, vocab_size=100
    )
    CLIPTextModel(text).save_pretrained(folder / "text_encoder")
    odd = folder / "safety_checker"
    odd.mkdir()
    (odd / "config.json").write_text('{"architectures": ["SafetyChecker"]}')
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, odd / "model.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    return folder


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {p["name"]: p for p in report["parts"]}


def test_a_pipeline_shows_every_part_and_when_the_denoiser_stops_dominating(pipeline: Path) -> None:
    report = inspect(pipeline, target="cpu", rounds=1)
    found = by_name(report)
    assert [p["role"] for p in report["parts"]] == ["denoiser", "decoder", "text encoder", "other"]
    assert found["safety_checker"]["params"] == 22 and "not known here" in found["safety_checker"]["note"]
    for name in ("unet", "vae", "text_encoder"):
        assert found[name]["params"] == stored_elements(pipeline / name / weights(pipeline / name))
        assert found[name]["measured_s"] > 0 and found[name]["predicted_s"] > 0 and found[name]["macs"] > 0
    says = report["balance"]
    assert says["measured"] and says["denoiser_s"] == found["unet"]["measured_s"]
    assert says["rest_s"] == pytest.approx(found["vae"]["measured_s"] + found["text_encoder"]["measured_s"])


def weights(folder: Path) -> str:
    return next(p.name for p in folder.glob("*.safetensors"))


def test_the_autoencoder_is_counted_as_its_decoder_and_the_rest_of_its_weights_as_unused(pipeline: Path) -> None:
    vae = by_name(inspect(pipeline, target="a100", measure=False, depth=1))["vae"]
    rows = {row["path"]: row for row in vae["layers"]}
    assert "decoder" in rows and "encoder" not in rows
    assert rows[breakdown.ROOT]["params"] > 0.3 * vae["params"]  # the encoder's, which no operator reads
    assert rows[breakdown.ROOT]["predicted_s"] == 0


def test_shares_add_up_to_the_totals(pipeline: Path) -> None:
    for part in inspect(pipeline, target="cpu", rounds=1, depth=3)["parts"]:
        if part["role"] != "other":
            for row_key, total_key in (("params",) * 2, ("macs",) * 2, ("predicted_s",) * 2, ("measured_s",) * 2):
                assert sum(r[row_key] for r in part["layers"]) == pytest.approx(part[total_key])
            times = [row["measured_s"] for row in part["layers"]]
            assert times == sorted(times, reverse=True)


def test_an_artifact_is_shown_with_and_without_reading_its_weights(tiny_model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "art"
    commit(folder, lambda temporary: save_model(temporary, tiny_model) or {"id": "x"})
    measured = by_name(inspect(folder, target="cpu", rounds=1))["art"]
    count = macs.count(tiny_model)
    assert (measured["params"], measured["macs"]) == (count["params"], count["macs"])
    assert measured["size_bytes"] == 4 * count["params"] and measured["measured_s"] > 0
    (folder / "model.safetensors").unlink()
    unmeasured = by_name(inspect(folder, target="cpu", measure=False))["art"]
    assert unmeasured["measured_s"] is None and unmeasured["macs"] == count["macs"]


def test_weights_that_do_not_fit_an_artifact_are_refused_without_being_measured(
    tiny_model: Model, tmp_path: Path
) -> None:
    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, tiny_model)
        save_file({"conv_in.weight": torch.zeros(1)}, temporary / "model.safetensors")
        return {"id": "x"}

    commit(tmp_path / "art", write)
    with pytest.raises(ArtifactError, match=r"model\.safetensors: the weights do not fit the network"):
        inspect(tmp_path / "art", target="a100", measure=False)


def test_a_quantized_artifact_is_priced_in_int8_and_its_emulation_is_said(
    tiny_model: Model, tiny_data: Any, tmp_path: Path
) -> None:
    from optimize.diffusion.context import Context
    from optimize.passes.quantize import Quantize

    quantized, _ = Quantize().apply(tiny_model, Context(data=tiny_data))
    folder = tmp_path / "q"
    commit(folder, lambda temporary: save_model(temporary, quantized) or {"id": "x"})
    part = by_name(inspect(folder, target="a100", measure=False))["q"]
    assert part["params"] == macs.count(tiny_model)["params"]
    assert part["size_bytes"] < 1.6 * part["params"] and "emulated" in part["note"]


def test_a_config_alone_is_counted_and_predicted_but_not_measured(pipeline: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text((pipeline / "unet" / "config.json").read_text())
    alone, with_weights = inspect(file, target="rtx3090"), inspect(pipeline / "unet", target="rtx3090", rounds=1)
    assert alone["parts"][0]["params"] == with_weights["parts"][0]["params"] > 0
    assert alone["parts"][0]["measured_s"] is None and "No weights as safetensors" in alone["parts"][0]["note"]
    assert with_weights["parts"][0]["measured_s"] > 0 and alone["balance"] is None
    assert alone["measured_on"] is None and "on the CPU" in with_weights["measured_on"]  # whatever the target
    assert alone["format"] == "fp16" and alone["predicted"] is True


def test_weights_in_shards_and_in_half_precision_are_read(pipeline: Path, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(pipeline / "unet")
    unet.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    unet.half().save_pretrained(tmp_path / "half", variant="fp16")
    assert len(weights_files(tmp_path / "shards")) > 1 and "fp16" in weights_files(tmp_path / "half")[0].name
    for name in ("shards", "half"):
        (part,) = parts(tmp_path / name)
        assert part.load is not None
        loaded = part.load()
        assert {p.dtype for p in loaded.parameters()} == {torch.float32} and not loaded.training
        assert sum(map(stored_elements, weights_files(tmp_path / name))) == sum(p.numel() for p in loaded.parameters())


def test_weights_that_are_cut_off_are_one_clear_error(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((pipeline / "unet" / "config.json").read_text())
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        parts(tmp_path)


def test_without_a_gpu_here_is_the_cpu(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for facts, expected in (
        ((), "cpu"),
        (({"name": "Tesla V100-SXM2-16GB", "sm": (7, 0)},), "v100"),
        (({"name": "Some other GPU", "sm": (9, 9)},), "cpu"),  # its peak rates are unknown
    ):
        monkeypatch.setattr(devices, "gpus", lambda facts=facts: facts)
        assert inspect(pipeline / "unet", measure=False)["target"] == expected


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no model in it. Give the pipeline's folder"),
        ({"notes.txt": "x"}, "no model in it"),
        ({"config.json": '{"_class_name": "UNet2DConditonModel"}'}, 'Did you mean "UNet2DConditionModel"'),
        ({"config.json": '{"widths": 3}'}, "names no class"),
        ({"config.json": '{"_class_name": '}, "not readable JSON"),
        ({"config.json": '{"_class_name": "UNet2DModel"}'}, "cannot be built from this config"),
        ({"unet/config.json": '{"_class_name": "Wave"}'}, r"none of its networks is known \(Wave\); known are Auto"),
    ],
)
def test_what_is_no_model_is_refused_with_what_would_be_one(files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        parts(tmp_path)


def test_a_t5_encoder_is_one_of_a_pipelines_text_encoders(tmp_path: Path) -> None:
    from support.tiny_pipelines import t5_encoder, write_transformer_pipeline

    found = {p.name: p for p in parts(write_transformer_pipeline(tmp_path / "sd3"))}
    part = found["text_encoder_3"]
    assert part.role == "text encoder" and part.class_name == "T5EncoderModel" and part.load is not None
    assert part.inputs[0].dims == ("B", 512)
    made = part.load()
    assert all(torch.equal(made.state_dict()[k], v) for k, v in t5_encoder().state_dict().items())


def test_a_path_that_is_not_there_and_numbers_below_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        parts(tmp_path / "nowhere")
    with pytest.raises(UserError, match="batch 0 and depth 2 must be at least 1"):
        inspect(tmp_path, batch=0)
    with pytest.raises(UserError, match='Did you mean "rtx3090"'):
        inspect(write_config(tmp_path), target="rtx3900")


def write_config(folder: Path) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(probe.unet_config((8, 8), 1, 8)))
    return file


def test_a_cut_off_weights_file_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\x10")
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        stored_elements(tmp_path / "model.safetensors")


class Slow(nn.Module):
    """A child that takes three times as long as the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(256, 256), nn.Sequential(*(nn.Linear(256, 256) for _ in range(3)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))


def test_measured_modules_add_up_and_long_ones_are_long() -> None:
    module = Slow().eval()
    total, own = measured_modules(module, {"x": torch.zeros(2000, 256)}, rounds=5)
    assert sum(own.values()) == pytest.approx(total)
    assert set(own) == {"", "a", "b", "b.0", "b.1", "b.2"}
    assert 1.5 < (own["b.0"] + own["b.1"] + own["b.2"]) / own["a"] < 6
    assert not module.a._forward_hooks and not module.a._forward_pre_hooks


def test_paths_are_cut_to_a_depth_and_groups_summed() -> None:
    assert [short(p, 2) for p in ("a.b.c", "a", "")] == ["a.b", "a", breakdown.ROOT]
    layers = [
        Layer("a.b.c", "conv", macs=10**8, weights=3, inputs=5, outputs=7),
        Layer("a.b.d", "conv", macs=10**6),
        Layer("e", "copy", inputs=10**6, outputs=10**6),
    ]
    rows = grouped(layers, predict(layers, target("cpu"), "fp32", CPU), None, 2)
    assert [(r["path"], r["params"], r["macs"], r["bytes"]) for r in rows] == [
        ("a.b", 3, 101 * 10**6, 4 * 15),
        ("e", 0, 0, 8 * 10**6),
    ]
    assert [r["bound"] for r in rows] == ["compute", "memory"]
    timed = grouped(layers, predict(layers, target("cpu"), "fp32", CPU), {"a.b.c": 1.0, "a.b": 1.0, "e": 5.0}, 2)
    assert [(r["path"], r["measured_s"]) for r in timed] == [("e", 5.0), ("a.b", 2.0)]


def entry(role: str, seconds: float | None, predicted: float = 1.0) -> dict[str, Any]:
    return {"role": role, "measured_s": seconds, "predicted_s": predicted}


def test_the_balance_counts_the_calls_that_the_other_parts_are_worth() -> None:
    found = balance([entry("denoiser", 2.0), entry("decoder", 5.0), entry("text encoder", 2.0)])
    assert found == {"denoiser_s": 2.0, "rest_s": 7.0, "measured": True, "calls": 3}
    assert "with 3 calls or fewer the denoiser no longer dominates" in balance_text(found)
    small = balance([entry("denoiser", 2.0), entry("decoder", 1.0)])
    assert small and "dominates even with a single call" in balance_text(small)
    predicted = balance([entry("denoiser", None, 3.0), entry("decoder", 9.0, 4.0)])
    assert predicted == {"denoiser_s": 3.0, "rest_s": 4.0, "measured": False, "calls": 1}
    assert balance([entry("denoiser", 2.0)]) is None


def test_the_table_names_parts_layers_and_totals(pipeline: Path) -> None:
    from rich.console import Console

    report = inspect(pipeline, target="cpu", rounds=1)
    for width in (80, 140):
        console = Console(record=True, width=width, file=io.StringIO())
        print_breakdown(report, console)
        text = console.export_text()
        assert all(part["name"] in text for part in report["parts"])
        assert "down_blocks.0" in text and "denoiser" in text and "invented" in text
        assert ("moved" in text) == (width == 140)
        assert max(len(line) for line in text.splitlines() if "│" not in line and "─" in line) <= width


def test_rows_beyond_those_shown_are_summed_into_one() -> None:
    row = {"path": "x", "params": 1, "macs": 2, "bytes": 3, "predicted_s": 0.5, "measured_s": None, "bound": "memory"}
    rows = folded([row] * 5, shown=3)
    assert len(rows) == 4 and rows[-1]["path"] == "2 others"
    assert (rows[-1]["macs"], rows[-1]["predicted_s"], rows[-1]["measured_s"]) == (4, 1.0, None)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_picture_is_written(pipeline: Path, tmp_path: Path, suffix: str) -> None:
    report = inspect(pipeline, target="cpu", measure=False)
    path = picture(report, tmp_path / "deep" / f"layers.{suffix}")
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") if suffix == "png" else b"up_blocks" in data or b"<svg" in data
    assert len(data) > 10_000


def test_a_picture_that_cannot_be_written_is_one_clear_error(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = inspect(pipeline / "unet", target="cpu", measure=False)
    with pytest.raises(EnvironmentLacks, match=r"layers\.png: cannot be written"):
        picture(report, tmp_path / "file" / "layers.png")


def test_the_command_prints_json_and_writes_the_picture(tmp_path: Path) -> None:
    file, out = write_config(tmp_path), tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "optimize", "inspect", str(file), "--target", "a100", "--json", "--out", str(out)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["target"] == "a100" and report["parts"][0]["class"] == "UNet2DModel"
    assert json.loads((out / "layers.json").read_text()) == report and (out / "layers.png").is_file()
    wrong = subprocess.run(
        [sys.executable, "-m", "optimize", "inspect", str(tmp_path / "nowhere")], capture_output=True, text=True
    )
    assert wrong.returncode == 2 and "error: " in wrong.stderr and "Traceback" not in wrong.stderr


def test_an_inspection_writes_over_an_inspection_and_nothing_else(pipeline: Path, tmp_path: Path) -> None:
    report = inspect(pipeline / "unet", target="cpu", measure=False)
    for _ in range(2):
        write_out(report, tmp_path / "out")
    (tmp_path / "out" / ".written.json").unlink()  # as an earlier version left it
    write_out(report, tmp_path / "out")
    (tmp_path / "out" / "layers.json").write_text("my notes")
    with pytest.raises(ArtifactError, match=r"layers\.json: optimize did not write it, or it was changed since"):
        check_out(tmp_path / "out")
    assert (tmp_path / "out" / "layers.json").read_text() == "my notes"
