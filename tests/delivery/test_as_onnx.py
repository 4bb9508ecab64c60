"""A network as it comes becomes an artifact with its ONNX file, compared before anything is kept; messages that help."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from support.command import optimize as command
from support.tiny_pipelines import write_transformer_pipeline

import optimize
from optimize.architectures.artifact import save_model
from optimize.delivery import as_onnx
from optimize.delivery.as_engines import Request, export
from optimize.delivery.as_onnx import load_network, merged, narrowest, parse_onnx
from optimize.diffusion.model import Model
from optimize.engines.settings import EngineSettings
from optimize.errors import ArtifactError, EnvironmentLacks, GateFailed, UserError
from optimize.pipelines.folder import open_pipeline
from optimize.pipelines.in_place import check_artifact
from optimize.pipelines.whole import export_pipeline
from optimize.report.terminal.engines import about_onnx
from optimize.storage.cache import Store
from optimize.storage.commit import commit
from optimize.storage.trust import verify


def ask(folder: Path, out: Path | None, *formats: str, **more: Any) -> Request:
    settings = EngineSettings(batch=(1, 2))
    return Request(artifact=folder, targets=("v100",), settings=settings, formats=formats, out=out, **more)


@pytest.fixture(scope="module")
def made(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder of diffusers, exported in FP16 with symbolic height and width, with a kit."""
    root = tmp_path_factory.mktemp("made")
    config = parse_onnx(["precision=fp16", "symbolic=B,H,W"])
    asked = ask(tiny_folder, root / "net", "onnx", "tensorrt", onnx=config, kits=root / "kits")
    return root / "net", export(asked, Store(root / "store"))


def test_a_folder_of_diffusers_becomes_an_artifact_that_loads_and_runs(made: Any, tiny_folder: Path) -> None:
    folder, rows = made
    assert [(r["what"], r["status"]) for r in rows][::2] == [("onnx", "done"), ("kit", "done")]
    manifest = verify(folder)
    assert manifest["passes"] == [] and manifest["count"]["params"] > 0 and manifest["source"]["kind"] == "diffusers"
    assert manifest["exports"]["onnx"]["precision"] == "fp16"
    assert 0 < manifest["parity"]["onnxruntime"]["relative_l2"] < 1e-2
    own, again = optimize.load(tiny_folder), optimize.load(folder)
    assert all((a == b).all() for a, b in zip(own.module.parameters(), again.module.parameters(), strict=True))
    dims = onnx.load(folder / "onnx" / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_param or d.dim_value for d in dims] == ["B", 1, "H", "W"]


def test_the_row_says_what_the_file_is(made: Any) -> None:
    said = about_onnx(made[1][0])
    for part in (
        "· fp16 ·",
        "fp32 for sine: (network), time_proj",
        "opset 20",
        "B, H, W symbolic",
        "torch.export",
        "e-0",
    ):
        assert part in said, said
    held = {"overflow": {f"layer.{i}": 2e4 for i in range(6)}, "asked": []}
    assert "fp32 for overflow: layer.0, layer.1, layer.2, layer.3 and 2 more" in about_onnx(
        made[1][0] | {"fp32_layers": held}
    )
    older = {"bytes": 10, "precision": "fp32", "int8_layers": 3, "opset": 18, "symbols": ["B"], "fixed": {"H": 8}}
    text = about_onnx(older | {"exporter": "torchscript", "reason": "loops", "relative_l2": 1e-6})
    assert "3 layers in int8" in text and "H fixed at 8" in text and "the older exporter (loops)" in text


def test_an_artifact_is_exported_anew_in_place_and_forgets_what_was_of_the_earlier_file(
    made: Any, tmp_path: Path
) -> None:
    from optimize.storage.commit import commit

    def with_more(folder: Path) -> dict[str, Any]:
        shutil.copytree(made[0], folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        (folder / "tensorrt" / "sm80").mkdir(parents=True)
        (folder / "tensorrt" / "sm80" / "model.engine").write_bytes(b"of the earlier graph")
        fields = {k: v for k, v in verify(made[0]).items() if k not in ("schema", "files")}
        fields["exports"] = {**fields["exports"], "tensorrt": {"engines": {"sm80": {}}}}
        return fields | {"parity": {"openvino": {"relative_l2": 9.0}, "torch": {"relative_l2": 0.0}}}

    commit(tmp_path / "a", with_more)
    (row,) = export(ask(tmp_path / "a", None, "onnx"), Store(tmp_path / "store"))
    manifest = verify(tmp_path / "a")
    assert row["precision"] == "fp32" and row["relative_l2"] < 1e-4
    assert set(manifest["parity"]) == {"torch", "onnxruntime"} and set(manifest["exports"]) == {"onnx"}
    assert not (tmp_path / "a" / "tensorrt").exists()


def test_python_writes_any_model_with_fields_of_the_exporter(tiny_model: Model, tmp_path: Path) -> None:
    manifest = optimize.export(tiny_model, tmp_path / "out", opset=20)
    assert manifest["exports"]["onnx"]["opset"] == 20 and verify(tmp_path / "out") == manifest
    with pytest.raises(UserError, match=r"precision: given 'fp8'.*'fp32', 'fp16' or 'bf16'"):
        optimize.export(tiny_model, tmp_path / "other", precision="fp8")
    assert not (tmp_path / "other").exists()


def test_a_file_that_computes_something_else_is_not_kept(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimize.diffusion.parity.parity", lambda *a: {"relative_l2": 0.5})
    with pytest.raises(
        GateFailed, match=r"is 0.5 \(relative L2\) from the network; at most 0.001 is let through in fp32"
    ):
        optimize.export(tiny_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_only_what_is_an_artifact_is_replaced(tiny_model: Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(UserError, match=r"exists and is no artifact; it is left alone. Give a new folder"):
        optimize.export(tiny_model, tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "pipeline"}')
    with pytest.raises(UserError, match="is no artifact"):
        optimize.export(tiny_model, tmp_path)


def test_without_onnxruntime_nothing_is_begun(tiny_model: Model, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("optimize.exporters.onnx.Onnx.export", lambda *a: pytest.fail("begun"))
    with pytest.raises(EnvironmentLacks, match="pip install onnxruntime"):
        optimize.export(tiny_model, tmp_path / "out")


def test_too_little_memory_to_compare_is_said_and_nothing_is_kept(
    tiny_model: Model, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("optimize.exporters.onnx.Onnx.export", lambda *a: {})
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**3))
    with pytest.raises(EnvironmentLacks, match=r"takes 0.0 GB of memory more, 0.0 GB are free. Nothing was written"):
        optimize.export(tiny_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_limits_are_those_of_the_narrowest_format() -> None:
    assert narrowest({"precision": "fp16", "int8_layers": 2, "fp8_layers": 0}) == "int8"
    assert narrowest({"precision": "bf16", "int8_layers": 0}) == "bf16" and as_onnx.limit_of("bf16") == 5e-2
    assert merged({"torch:fp16": 1, "openvino": 2}, {"onnxruntime": 3}) == {"torch:fp16": 1, "onnxruntime": 3}


def test_fields_of_the_command_line() -> None:
    config = parse_onnx(["precision=bf16", "symbolic=B, L", "opset=22", "fp32_layers=a.b"])
    assert (config.precision, config.symbolic, config.opset, config.fp32_layers) == ("bf16", ("B", "L"), 22, ("a.b",))
    assert parse_onnx([]) is None
    for text, said in (
        ("precision", 'given "precision". Write a field and its value, e.g. precision=fp16'),
        ("precisoin=fp16", '"precisoin" is not known.*Did you mean "precision"'),
        ("opset=99", "--onnx opset: given 99. Allowed: 18 to 23"),
        ("opset=[", 'the value of "opset=\\[" cannot be read'),
    ):
        with pytest.raises(UserError, match=said):
            parse_onnx([text])


def test_a_folder_that_holds_no_network_is_told_what_it_must_hold(tiny_folder: Path, tmp_path: Path) -> None:
    for folder, said in ((tmp_path / "gone", "no such file or folder"), (tmp_path, "no model in it")):
        with pytest.raises(ArtifactError, match=f"{said}.*unet/config.json or transformer/config.json.*manifest.json"):
            load_network(folder)
    with pytest.raises(
        UserError, match=r"--out: a network becomes an artifact in a folder of its own. Give e.g. --out"
    ):
        export(ask(tiny_folder, None, "onnx"), Store(tmp_path / "store"))


def test_options_of_pipelines_and_of_networks_do_not_mix(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder, tmp_path / "p")
    (tmp_path / "p" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    for arguments, said in (
        (("--format", "onnx", "--lora", "x"), "--lora: for a whole pipeline, and --format and --onnx export a network"),
        (("--out", "o", "--target", "a100", "--exact"), "--target, --exact: for a network alone"),
    ):
        done = command("export", "p", *arguments, cwd=tmp_path)
        assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ["p"]


def write_pixart(folder: Path) -> Path:
    """A PixArt pipeline's denoiser and scheduler."""
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, cross_attention_dim=16,
        sample_size=8, caption_channels=32, use_additional_conditions=False,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    DPMSolverMultistepScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    return folder


def test_what_the_refusal_of_a_pipeline_names_exports_its_transformer(tmp_path: Path) -> None:
    source, out = write_pixart(tmp_path / "pixart"), tmp_path / "out"
    with pytest.raises(UserError, match="--format onnx --out exported/pixart"):
        export_pipeline(source, out)
    done = command("export", str(source), "--format", "onnx", "--out", str(out))
    assert done.returncode == 0, done.stderr
    manifest = verify(out)
    assert 0 < manifest["parity"]["onnxruntime"]["relative_l2"] < 1e-5
    assert optimize.load(out).structure.architecture == "PixArtTransformer2DModel"


def test_a_flux_alone_is_an_artifact_that_takes_the_place_in_its_pipeline(tmp_path: Path) -> None:
    source = write_transformer_pipeline(tmp_path / "flux", "flux", num_single_layers=0)
    export(ask(source, tmp_path / "out", "onnx"), Store(tmp_path / "store"))
    check_artifact(open_pipeline(source), tmp_path / "out")


def test_the_null_class_of_a_network_is_said_once_and_kept(tiny_folder: Path, tmp_path: Path) -> None:
    assert load_network(tiny_folder).denoiser.conditioning.null is None
    assert load_network(tiny_folder, null_class=10).denoiser.conditioning.null == 10
    commit(tmp_path / "a", lambda folder: (save_model(folder, load_network(tiny_folder)), {"id": "x"})[1])
    with pytest.raises(UserError, match=r"--null-class: .* is an artifact, which holds its classes"):
        export(ask(tmp_path / "a", None, "onnx", null_class=10), Store(tmp_path / "store"))
