"""An artifact in the denoiser's place: its own file with the layout's names, and only where it is fed the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from support.pipeline_checks import FLOAT, artifact, ends, identity, session
from support.tiny_pipelines import flux, sd3, unet, write_pipeline, write_transformer_pipeline

from optimize.architectures.known import architecture
from optimize.diffusion.network import TensorSpec, example_inputs
from optimize.errors import ArtifactError
from optimize.onnx.file import save
from optimize.onnx.trace import Tracing, traced
from optimize.pipelines.folder import open_pipeline
from optimize.pipelines.in_place import check_artifact, follow_head, place_artifact, renamed
from optimize.pipelines.whole import export_pipeline


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / "sd")


SPECS = (
    TensorSpec("sample", ("B", 4, 8, 8)),
    TensorSpec("timestep", ("B",)),
    TensorSpec("encoder_hidden_states", ("B", 77, 32)),
)


def test_an_artifacts_own_file_takes_the_unets_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smaller = unet(block_out_channels=(8, 16))
    save(traced(smaller, SPECS, Tracing(), {}).graph, tmp_path / "model.onnx")
    made = artifact(tmp_path / "artifact", smaller, tmp_path / "model.onnx")
    out = tmp_path / "out"
    out.mkdir()
    check_artifact(open_pipeline(folder), made)
    record = place_artifact(made, out / "unet")
    assert record["artifact"]["id"] == "pruned"
    found = ends(out / "unet" / "model.onnx")
    assert found["timestep"] == (FLOAT, []) and found["sample"] == (FLOAT, ["batch_size", 4, 8, 8])
    assert json.loads((out / "unet" / "config.json").read_text())["block_out_channels"] == [8, 16]
    random = np.random.default_rng(0)
    feed = {
        "sample": random.normal(size=(3, 4, 8, 8)).astype(np.float32),
        "timestep": np.array(500, np.float32),
        "encoder_hidden_states": random.normal(size=(3, 77, 32)).astype(np.float32),
    }
    got = session(out / "unet" / "model.onnx").run(None, feed)[0]
    before = session(made / "onnx" / "model.onnx").run(None, {**feed, "timestep": np.full(3, 500, np.float32)})[0]
    assert np.array_equal(got, before)


def test_an_artifact_that_is_fed_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    made = artifact(tmp_path / "artifact", unet(in_channels=9), identity(tmp_path))
    with pytest.raises(ArtifactError, match=r"in_channels is 9, the pipeline's is 4. Give an artifact made from this"):
        export_pipeline(folder, tmp_path / "out", denoiser=made)
    assert not (tmp_path / "out").exists()


def test_the_scheduler_reads_the_output_as_the_artifact_means_it(folder: Path, tmp_path: Path) -> None:
    """A student that was re-read as v must not be sampled as if it predicted the noise."""
    smaller = unet(block_out_channels=(8, 16))
    made = {
        head: artifact(tmp_path / f"made-{head}", smaller, identity(tmp_path), head)
        for head in ("epsilon", "v", "flow", "")
    }
    pipeline, before = open_pipeline(folder), (folder / "scheduler" / "scheduler_config.json").read_text()
    for head, expected in (("epsilon", "epsilon"), ("v", "v_prediction"), ("", "epsilon")):
        out = tmp_path / f"out-{head}"
        shutil.copytree(folder / "scheduler", out / "scheduler")
        follow_head(pipeline, made[head], out)
        after = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
        assert after.get("prediction_type", "epsilon") == expected
        assert {**after, "prediction_type": "epsilon"} == {"prediction_type": "epsilon", **json.loads(before)}
    with pytest.raises(ArtifactError, match="its output means flow, and the pipeline's scheduler reads epsilon"):
        follow_head(pipeline, made["flow"], tmp_path / "out-epsilon")


def test_an_artifact_of_another_class_is_refused(tmp_path: Path) -> None:
    folder = write_transformer_pipeline(tmp_path / "flux", "flux")
    made = artifact(tmp_path / "artifact", sd3(), identity(tmp_path))
    (tmp_path / "out").mkdir()
    with pytest.raises(
        ArtifactError, match=r"--denoiser .*: class is 'SD3Transformer2DModel', the pipeline's is 'FluxT"
    ):
        check_artifact(open_pipeline(folder), made)
    other = artifact(tmp_path / "other", flux(guidance_embeds=False), identity(tmp_path))
    with pytest.raises(
        ArtifactError, match=r"guidance_embeds is False, the pipeline's is True. .* pipeline's transformer"
    ):
        check_artifact(open_pipeline(folder), other)


def test_an_artifacts_own_file_takes_the_transformers_place(tmp_path: Path) -> None:
    smaller = sd3(num_layers=1, dual_attention_layers=())
    inputs = architecture("SD3Transformer2DModel").inputs(dict(smaller.config))
    save(traced(smaller, inputs, Tracing(), {}).graph, tmp_path / "model.onnx")
    made = artifact(tmp_path / "artifact", smaller, tmp_path / "model.onnx")
    check_artifact(open_pipeline(write_transformer_pipeline(tmp_path / "sd3")), made)
    place = tmp_path / "out" / "transformer"
    place.parent.mkdir()
    record = place_artifact(made, place)
    assert record["artifact"]["id"] == "pruned" and record["outputs"][0]["name"] == "out_hidden_states"
    assert ends(place / "model.onnx") == {
        "hidden_states": (FLOAT, ["batch_size", 4, "height", "width"]),
        "timestep": (FLOAT, ["batch_size"]),
        "encoder_hidden_states": (FLOAT, ["batch_size", "sequence_length", 32]),
        "pooled_projections": (FLOAT, ["batch_size", 64]),
        "out_hidden_states": (FLOAT, ["batch_size", 4, "height", "width"]),
    }
    assert json.loads((place / "config.json").read_text())["num_layers"] == 1
    feed = {k: v.numpy() for k, v in example_inputs(inputs, 2, H=12, W=8, L=5).items()}
    before = session(made / "onnx" / "model.onnx").run(None, feed)[0]
    assert np.array_equal(session(place / "model.onnx").run(["out_hidden_states"], feed)[0], before)


def test_nested_inputs_of_sdxl_lose_their_prefix() -> None:
    names = ["sample", "timestep", "added_cond_kwargs.text_embeds", "down_block_additional_residuals.0"]
    inputs = [ir.Input(n, ir.Shape(["B", 4]), ir.TensorType(ir.DataType.FLOAT)) for n in names]
    inputs[1].shape, inputs[3].shape = ir.Shape(["B"]), ir.Shape(["B", "H", "H/2"])
    node = ir.node("Add", [inputs[0], inputs[2]])
    late = ir.node("Mul", [node.outputs[0], inputs[1]])
    late.outputs[0].name, late.outputs[0].shape = "out_sample", ir.Shape(["B", 4])
    late.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Model(ir.Graph(inputs, [late.outputs[0]], nodes=[node, late], opset_imports={"": 18}), ir_version=10)
    got, _ = renamed(graph, "unet")
    assert [(s.name, s.dims) for s in got] == [
        ("sample", ("batch_size", 4)),
        ("timestep", ()),
        ("text_embeds", ("batch_size", 4)),
        ("down_block_additional_residuals.0", ("batch_size", "height", "height / 2")),
    ]
