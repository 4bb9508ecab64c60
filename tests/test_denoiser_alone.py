"""A denoiser alone: an artifact whose file computes what the network does, and which takes its place in a pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pipeline_checks import FLOAT, ends
from tiny_pipelines import write_transformer_pipeline

from optimize import parity
from optimize.artifact import load_model
from optimize.errors import ArtifactError, GateFailed, UserError
from optimize.optimum_artifact import check_artifact
from optimize.pipeline_folder import open_pipeline
from optimize.pipelines import export_pipeline
from optimize.trust import verify


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
    with pytest.raises(UserError, match="--layout denoiser --out exported/pixart"):
        export_pipeline(source, out)
    manifest = export_pipeline(source, out, layout="denoiser")
    assert verify(out) == manifest and manifest["class"] == "PixArtTransformer2DModel"
    assert 0 < manifest["parts"]["onnx"]["parity"]["relative_l2"] < 1e-5
    assert load_model(out).structure.architecture == "PixArtTransformer2DModel"
    assert ends(out / "onnx" / "model.onnx")["hidden_states"] == (FLOAT, ["B", 4, 8, 8])
    export_pipeline(source, out, layout="denoiser")  # an earlier one is replaced


@pytest.mark.slow
def test_a_flux_alone_is_an_artifact_that_takes_the_place_in_its_pipeline(tmp_path: Path) -> None:
    source = write_transformer_pipeline(tmp_path / "flux", "flux", num_single_layers=0)
    export_pipeline(source, tmp_path / "out", layout="denoiser")
    check_artifact(open_pipeline(source), tmp_path / "out")


def test_options_of_whole_pipelines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--denoiser, --lora: for whole pipelines, and --layout denoiser exports the"):
        export_pipeline(tmp_path, tmp_path / "out", layout="denoiser", denoiser=tmp_path, lora=["x"])


def test_a_denoiser_that_is_far_from_its_file_fails_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far(*args: Any, **options: Any) -> dict[str, Any]:
        return {"relative_l2": 0.5}

    monkeypatch.setattr(parity, "parity", far)
    source = write_pixart(tmp_path / "pixart")
    with pytest.raises(GateFailed, match=r"the exported file is 0.5 \(relative L2\) from the network"):
        export_pipeline(source, tmp_path / "out", layout="denoiser")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".tmp*"))


def test_a_folder_without_a_denoiser_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"unet/config.json"):
        export_pipeline(tmp_path, tmp_path / "out", layout="denoiser")
