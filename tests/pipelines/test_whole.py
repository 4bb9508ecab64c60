"""Whole pipelines: optimum's layout to the letter, the same numbers at any size, LoRA and artifacts inside, clear errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from safetensors.torch import save_file
from support.pipeline_checks import FLOAT, artifact, ends, identity, session
from support.tiny_pipelines import (
    flux,
    lora_tensors,
    text_lora_tensors,
    transformer_lora_tensors,
    unet,
    write_pipeline,
    write_transformer_pipeline,
)

from optimize.architectures.lora import merge, read_lora
from optimize.errors import ArtifactError, EnvironmentLacks, GateFailed, UserError
from optimize.onnx.file import save
from optimize.pipelines import layout as graphs
from optimize.pipelines import whole
from optimize.pipelines.whole import export_pipeline, is_pipeline, unet_part
from optimize.storage.trust import verify


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    out = folder.parent / "out"
    export_pipeline(folder, out)
    return out


STATES = {f"hidden_states.{i}": (FLOAT, ["batch_size", "sequence_length", 32]) for i in range(4)}
TEXT = {
    "input_ids": (TensorProto.INT64, ["batch_size", "sequence_length"]),
    "last_hidden_state": (FLOAT, ["batch_size", "sequence_length", 32]),
    "pooler_output": (FLOAT, ["batch_size", 32]),
    **STATES,
}
UNET = {
    "sample": (FLOAT, ["batch_size", 4, "height", "width"]),
    "timestep": (FLOAT, []),
    "encoder_hidden_states": (FLOAT, ["batch_size", "sequence_length", 32]),
    "out_sample": (FLOAT, ["batch_size", 4, "height", "width"]),
}


def test_every_graph_has_optimums_names_types_and_dims(exported: Path) -> None:
    assert ends(exported / "text_encoder" / "model.onnx") == TEXT
    assert ends(exported / "unet" / "model.onnx") == UNET
    assert ends(exported / "vae_encoder" / "model.onnx") == {
        "sample": (FLOAT, ["batch_size", 3, "sample_height", "sample_width"]),
        "latent_parameters": (FLOAT, ["batch_size", 8, "sample_height / 2", "sample_width / 2"]),
    }
    assert ends(exported / "vae_decoder" / "model.onnx") == {
        "latent_sample": (FLOAT, ["batch_size", 4, "latent_height", "latent_width"]),
        "sample": (FLOAT, ["batch_size", 3, "latent_height * 2", "latent_width * 2"]),
    }


def test_everything_else_is_copied_and_the_whole_is_pinned(folder: Path, exported: Path) -> None:
    for file in ("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"):
        assert (exported / file).read_bytes() == (folder / file).read_bytes()
    manifest = verify(exported)
    assert manifest["kind"] == "pipeline" and set(manifest["parts"]) == {
        "text_encoder",
        "unet",
        "vae_encoder",
        "vae_decoder",
    }
    for name in manifest["parts"]:
        assert json.loads((exported / name / "config.json").read_text())
    assert json.loads((exported / "vae_decoder" / "config.json").read_text())["scaling_factor"] == 0.18215
    assert "unet/diffusion_pytorch_model.safetensors" in manifest["source"]["files"]


def test_every_file_computes_what_its_network_does(exported: Path) -> None:
    far = {n: p["parity"]["relative_l2"] for n, p in verify(exported)["parts"].items()}
    assert all(0 < value < 1e-5 for value in far.values()), far


@pytest.mark.parametrize(("batch", "height", "width", "tokens"), [(1, 8, 8, 77), (5, 2, 6, 1), (2, 16, 10, 13)])
def test_the_unet_runs_at_any_batch_size_and_length(
    exported: Path, batch: int, height: int, width: int, tokens: int
) -> None:
    random = np.random.default_rng(0)
    feed = {
        "sample": random.normal(size=(batch, 4, height, width)).astype(np.float32),
        "timestep": np.array(333.25, np.float32),
        "encoder_hidden_states": random.normal(size=(batch, tokens, 32)).astype(np.float32),
    }
    got = session(exported / "unet" / "model.onnx").run(["out_sample"], feed)[0]
    with torch.inference_mode():
        expected = unet()(*(torch.as_tensor(v) for v in feed.values())).sample.numpy()
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)


def test_an_earlier_export_is_replaced_whole_and_anything_else_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match="mine exists and is no exported pipeline; it is left alone"):
        export_pipeline(folder, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    monkeypatch.setattr(whole, "_export_parts", lambda *a: {})
    for _ in range(2):
        export_pipeline(folder, tmp_path / "new")
    assert verify(tmp_path / "new")["class"] == "StableDiffusionPipeline"


def test_a_file_that_is_far_from_its_network_fails_and_nothing_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "distance", lambda *a: float("nan"))
    monkeypatch.setattr(whole.graphs, "graph_of", lambda part, opset: ir.load(identity(tmp_path)))
    with pytest.raises(GateFailed, match=r"text_encoder: the exported file is nan \(relative L2\) from the network"):
        export_pipeline(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp*"))


def test_without_onnxruntime_it_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EnvironmentLacks, match="pip install onnxruntime"):
        export_pipeline(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layout": "optimun"}, '--layout: "optimun" is not known. Allowed: optimum. Did you mean "optimum"'),
        ({"lora_as": "fused"}, '--lora-as: "fused" is not known. Allowed: merged, switch'),
    ],
)
def test_unknown_options_are_named(folder: Path, tmp_path: Path, options: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        export_pipeline(folder, tmp_path / "out", **options)  # type: ignore[arg-type]
    assert said in str(error.value)


def test_the_command_tells_pipelines_from_artifacts(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert is_pipeline(folder, out=None) and is_pipeline(tmp_path / "gone", out=tmp_path)
    assert not is_pipeline(tmp_path, out=None, lora=None) and not is_pipeline(tmp_path / "gone", out=None)
    with pytest.raises(
        UserError, match=r"--out, --lora: for a pipeline folder \(model_index.json\), and .* is an artifact"
    ):
        is_pipeline(tmp_path, out=tmp_path / "out", denoiser=None, lora=["x"])


def test_the_command_asks_for_a_folder_and_ends_with_2_for_wrong_input(folder: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ([str(folder)], "--out: a pipeline is exported to a folder of its own. Give e.g. --out"),
        (
            [str(folder), "--out", str(tmp_path / "o"), "--layout", "x"],
            '--layout: "x" is not known. Allowed: optimum',
        ),
        ([str(folder), "--out", str(tmp_path / "o"), "--lora", "gone.safetensors"], "gone.safetensors: no such file"),
        (
            [str(folder), "--out", str(tmp_path / "o"), "--unet", str(tmp_path / "g")],
            "no such file. Export the artifact first",
        ),
        ([str(tmp_path / "gone"), "--layout", "optimum", "--out", str(tmp_path / "o")], "no such file or folder"),
    ):
        command = [sys.executable, "-m", "optimize", "export", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and said in done.stderr, done.stderr
    assert not (tmp_path / "o").exists()


# LoRA


def lora_file(folder: Path, tensors: dict[str, torch.Tensor], prefix: str = "unet", name: str = "style") -> Path:
    names = {".A": ".lora_A.weight", ".B": ".lora_B.weight"}
    path = folder / f"{name}.safetensors"
    save_file({f"{prefix}.{k[:-2]}{names[k[-2:]]}": v for k, v in tensors.items()}, path)
    return path


def test_a_switch_in_the_graph_is_off_at_0_and_merged_at_1(tmp_path: Path) -> None:
    lora = read_lora(lora_file(tmp_path, lora_tensors()), 0.8)
    merged, base = unet(), unet()
    merge(merged, lora, "unet")
    part = unet_part(unet(), 0, [lora])
    save(graphs.graph_of(part, 18), tmp_path / "model.onnx")
    assert [*ends(tmp_path / "model.onnx")] == [*list(UNET)[:3], "lora_scale", "out_sample"]
    run, feed = session(tmp_path / "model.onnx"), graphs.feed_of(part, 1, 2)
    plain = {k: v for k, v in feed.items() if k != "lora_scale"}
    for strength, network in ((0.0, base), (1.0, merged)):
        got = torch.from_numpy(
            run.run(None, {k: v.numpy() for k, v in plain.items()} | {"lora_scale": np.array(strength, np.float32)})[0]
        )
        with torch.inference_mode():
            expected = network(*plain.values()).sample
        assert float((got - expected).norm() / expected.norm()) < 1e-5


def test_a_switch_is_refused_where_the_text_encoder_is_changed_too_and_a_foreign_component_is_named(
    folder: Path, tmp_path: Path
) -> None:
    text = str(lora_file(tmp_path, text_lora_tensors(), "text_encoder"))
    with pytest.raises(UserError, match=r"it changes text_encoder as well.*Use --lora-as merged"):
        export_pipeline(folder, tmp_path / "out", lora=[text], lora_as="switch")
    second = str(lora_file(tmp_path, text_lora_tensors(), "text_encoder_2", "second"))
    with pytest.raises(
        ArtifactError, match=r"it is for text_encoder_2, which this pipeline does not have: text_encoder_2\.text_model"
    ):
        export_pipeline(folder, tmp_path / "out", lora=[second])


def test_no_lora_is_merged_into_an_artifact(folder: Path, tmp_path: Path) -> None:
    made = artifact(tmp_path / "artifact", unet(), identity(tmp_path))
    with pytest.raises(UserError, match="is exported already, so no LoRA can be merged into it"):
        export_pipeline(folder, tmp_path / "out", denoiser=made, lora=[str(lora_file(tmp_path, lora_tensors()))])


def test_a_switch_is_refused_for_a_transformer_by_name(tmp_path: Path) -> None:
    folder = write_transformer_pipeline(tmp_path / "flux", "flux")
    style = lora_file(tmp_path, transformer_lora_tensors(flux()), "transformer")
    with pytest.raises(
        UserError, match="--lora-as switch: FluxPipeline has a transformer, and only a U-Net has an input"
    ):
        export_pipeline(folder, tmp_path / "out", lora=[str(style)], lora_as="switch")
    unets = lora_file(tmp_path, lora_tensors(), name="unets")
    with pytest.raises(ArtifactError, match="it is for unet, which this pipeline does not have"):
        export_pipeline(folder, tmp_path / "out", lora=[str(unets)])
    assert not (tmp_path / "out").exists()


def test_a_lora_that_does_not_fit_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    wrong = {k.replace("blocks.1", "blocks.7"): v for k, v in lora_tensors().items()}
    (tmp_path / "to").mkdir()
    with pytest.raises(ArtifactError, match="layers do not fit the pipeline's unet"):
        export_pipeline(folder, tmp_path / "to" / "out", lora=[str(lora_file(tmp_path, wrong))])
    assert not list((tmp_path / "to").iterdir())


@pytest.mark.slow
def test_a_merged_lora_changes_unet_and_text_encoder_in_the_files(folder: Path, exported: Path, tmp_path: Path) -> None:
    files = [lora_file(tmp_path, lora_tensors()), lora_file(tmp_path, text_lora_tensors(), "text_encoder", "text")]
    out = tmp_path / "out"
    manifest = export_pipeline(folder, out, lora=[f"{files[0]}:0.8", str(files[1])])
    assert [(x["strength"], x["layers"]) for x in manifest["lora"]] == [(0.8, {"unet": 4}), (1.0, {"text_encoder": 1})]
    merged = unet()
    merge(merged, read_lora(files[0], 0.8), "unet")
    feed = graphs.feed_of(unet_part(merged, 0), 1, 2)
    got = session(out / "unet" / "model.onnx").run(None, {k: v.numpy() for k, v in feed.items()})[0]
    with torch.inference_mode():
        expected = merged(*feed.values()).sample.numpy()
    assert np.linalg.norm(got - expected) < 1e-5 * np.linalg.norm(expected)
    ids = {"input_ids": np.arange(14).reshape(2, 7)}
    texts = [session(o / "text_encoder" / "model.onnx").run(["last_hidden_state"], ids)[0] for o in (exported, out)]
    assert np.abs(texts[0] - texts[1]).max() > 1e-3


@pytest.mark.slow
def test_sdxl_exports_with_both_text_encoders(tmp_path: Path) -> None:
    export_pipeline(write_pipeline(tmp_path / "xl", xl=True), tmp_path / "out")
    assert ends(tmp_path / "out" / "text_encoder" / "model.onnx") == TEXT
    assert list(ends(tmp_path / "out" / "text_encoder_2" / "model.onnx")) == [
        "input_ids", "text_embeds", "last_hidden_state", *STATES]  # fmt: skip
    assert (tmp_path / "out" / "tokenizer_2" / "vocab.json").exists()
    far = {n: p["parity"]["relative_l2"] for n, p in verify(tmp_path / "out")["parts"].items()}
    assert len(far) == 5 and all(value < 1e-5 for value in far.values()), far


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "encoders"), [("sd3", 3), ("flux", 2)])
def test_a_pipeline_with_a_transformer_exports_whole(tmp_path: Path, kind: str, encoders: int) -> None:
    source, out = write_transformer_pipeline(tmp_path / kind, kind), tmp_path / "out"
    export_pipeline(source, out)
    texts = [f"text_encoder{f'_{i + 1}' if i else ''}" for i in range(encoders)]
    parts = verify(out)["parts"]
    assert list(parts) == [*texts, "transformer", "vae_encoder", "vae_decoder"]
    far = {n: p["parity"]["relative_l2"] for n, p in parts.items()}
    assert all(0 < value < 1e-5 for value in far.values()), far
    tokenizer = f"tokenizer_{encoders}/tokenizer.json"
    assert (out / tokenizer).read_bytes() == (source / tokenizer).read_bytes()
    settings = json.loads((out / "vae_decoder" / "config.json").read_text())
    assert (settings["scaling_factor"], settings["shift_factor"]) == (1.5, 0.06)
    assert json.loads((out / "transformer" / "config.json").read_text())["_class_name"].endswith("Transformer2DModel")
    assert list(ends(out / texts[-1] / "model.onnx")) == ["input_ids", "last_hidden_state"]
