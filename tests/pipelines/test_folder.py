"""Pipeline folders: what is missing or of another class is told by name, with what can be done instead."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.tiny_pipelines import write_pipeline, write_transformer_pipeline

from optimize.errors import ArtifactError, UserError
from optimize.pipelines.folder import open_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def changed(folder: Path, **fields: Any) -> Path:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def test_a_folder_without_an_index_is_one_clear_error(copy: Path) -> None:
    (copy / "model_index.json").unlink()
    with pytest.raises(UserError, match=r"there is no model_index.json in it. Give a pipeline folder of diffusers"):
        open_pipeline(copy)
    with pytest.raises(UserError, match="no such file or folder"):
        open_pipeline(copy / "gone")


def test_an_unknown_pipeline_class_is_told_with_the_nearest(copy: Path) -> None:
    with pytest.raises(
        UserError, match=r'_class_name: "StableDiffusionPipe" is not known.*Did you mean "StableDiffusionPipeline"'
    ):
        open_pipeline(changed(copy, _class_name="StableDiffusionPipe"))
    (copy / "model_index.json").write_text("[]")
    with pytest.raises(UserError, match="an object is expected here, found a list"):
        open_pipeline(copy)


@pytest.mark.parametrize("entry", ["text", ["diffusers"], [1, 2], {"a": 1}, None])
def test_an_index_whose_entry_of_a_part_is_no_pair_is_refused(copy: Path, entry: object) -> None:
    for part in ("unet", "tokenizer", "feature_extractor"):
        with pytest.raises(ArtifactError, match=rf"model_index.json: {part}: expected \[library, class\]"):
            open_pipeline(changed(copy, **{part: entry}))
        changed(copy, **{part: [None, None] if part == "feature_extractor" else ["x", "y"]})
    with pytest.raises(UserError, match=r"_class_name"):
        open_pipeline(changed(copy, _class_name=["StableDiffusionPipeline"]))


@pytest.mark.parametrize("part", ["tokenizer", "scheduler", "text_encoder", "vae", "unet"])
def test_a_missing_part_is_named(copy: Path, part: str) -> None:
    shutil.rmtree(copy / part)
    with pytest.raises(ArtifactError, match=f"{part}/ is missing, and StableDiffusionPipeline cannot be used without"):
        open_pipeline(copy)
    with pytest.raises(ArtifactError, match=f"{part}/ is missing"):
        open_pipeline(changed(copy, **{part: [None, None]}))


def test_parts_without_a_place_in_the_layout_are_recorded(copy: Path) -> None:
    pipeline = open_pipeline(changed(copy, safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"]))
    assert pipeline.left_out == ["safety_checker"]


@pytest.fixture(scope="module")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformer_pipeline(tmp_path_factory.mktemp("sd3") / "sd3")


def test_a_transformers_pipeline_knows_its_networks(sd3_folder: Path) -> None:
    pipeline = open_pipeline(sd3_folder)
    assert pipeline.denoiser == "transformer" and pipeline.left_out == []
    assert pipeline.networks == ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")


@pytest.mark.parametrize("part", ["transformer", "tokenizer_2", "text_encoder_2", "tokenizer_3", "text_encoder_3"])
def test_a_missing_part_of_a_transformers_pipeline_is_named(sd3_folder: Path, tmp_path: Path, part: str) -> None:
    copied = Path(shutil.copytree(sd3_folder, tmp_path / "copy"))
    shutil.rmtree(copied / part)
    with pytest.raises(ArtifactError, match=f"{part}/ is missing, and StableDiffusion3Pipeline cannot be used without"):
        open_pipeline(copied)


def test_sd3_may_go_without_t5_but_not_with_an_encoder_that_has_no_tokenizer(sd3_folder: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(sd3_folder, tmp_path / "copy"))
    nothing = [None, None]
    with pytest.raises(ArtifactError, match="tokenizer_3/ is missing"):
        open_pipeline(changed(copied, tokenizer_3=nothing))
    assert open_pipeline(changed(copied, text_encoder_3=nothing)).encoders == ["text_encoder", "text_encoder_2"]
    with pytest.raises(ArtifactError, match="text_encoder_2/ is missing"):
        open_pipeline(changed(copied, text_encoder_2=nothing))


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("PixArtAlphaPipeline", "PixArtTransformer2DModel"),
        ("PixArtSigmaPipeline", "PixArtTransformer2DModel"),
        ("DiTPipeline", "DiTTransformer2DModel"),
        ("FluxImg2ImgPipeline", "FluxTransformer2DModel"),
    ],
)
def test_a_class_without_a_layout_is_told_what_can_be_exported_instead(tmp_path: Path, name: str, network: str) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": network}))
    with pytest.raises(UserError) as error:
        open_pipeline(tmp_path)
    said = str(error.value)
    assert f"{name} has no layout" in said and "FluxPipeline, Latent" in said and "Did you mean" not in said
    command = f"optimize export {tmp_path} --format onnx --out exported/{tmp_path.name}."
    assert said.endswith(f"Its transformer alone can be exported: {command}")


def test_a_class_whose_denoiser_is_not_known_either_is_told_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SanaPipeline"}))
    (tmp_path / "transformer" / "config.json").write_text(json.dumps({"_class_name": "SanaTransformer2DModel"}))
    with pytest.raises(UserError, match=r"SanaPipeline has no layout.*Allowed: Flux.*XLPipeline\.$"):
        open_pipeline(tmp_path)
