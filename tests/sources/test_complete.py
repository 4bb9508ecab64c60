"""Weights of a source are whole or refused, on every route; single files and odd names go every way that folders go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import original_names, tiny_pipelines

import optimize
from optimize.architectures.artifact import save_model
from optimize.delivery.as_onnx import load_network
from optimize.diffusion.sampling import Sampler
from optimize.errors import ArtifactError, UserError
from optimize.inspect.breakdown import inspect
from optimize.pipelines.folder import pipeline_of
from optimize.pipelines.whole import export_pipeline
from optimize.planning.outlook import plan_for
from optimize.planning.refusals import facts_of
from optimize.planning.subject import open_subject
from optimize.progress import silent
from optimize.recipes.read import parse
from optimize.recipes.schema import plain_name
from optimize.runs.stages import source_stage
from optimize.sources.diffusers import DiffusersSource
from optimize.sources.module import ModuleSource
from optimize.storage.cache import Store
from optimize.storage.commit import commit

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("sd") / "sd")


@pytest.fixture(scope="module")
def single(sd: Path) -> tuple[Path, Path]:
    """(a checkpoint in one file, the folder of its configs), both with names that want quoting."""
    file = original_names.write_checkpoint(sd.parent / "my [b] model (v2) é.safetensors", sd)
    return file, original_names.configs_of(sd, sd.parent / "configs of [b] sd")


@pytest.fixture
def copy(sd: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sd, tmp_path / "copy"))


def edit(file: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    save_file(change(load_file(file)), file, {"format": "pt"})


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {k: v for k, v in state.items() if k != name}


def routes(folder: Path) -> list[Callable[[], object]]:
    """Every way that reads the denoiser."""
    return [
        lambda: optimize.load(folder),
        lambda: load_network(folder),
        lambda: export_pipeline(folder, folder.parent / "out"),
        lambda: open_subject(str(folder)),
        lambda: inspect(folder, target="a100", measure=False),
    ]


CHANGES: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = [
    (without("conv_out.bias"), r"1 missing \(conv_out.bias\)"),
    (lambda s: s | {"x": torch.zeros(1)}, r"1 unexpected \(x\)"),
    (lambda s: s | {"conv_out.bias": torch.zeros(9)}, r"conv_out.bias \[4\] in the network, \[9\] in the file"),
    (lambda s: s | {"conv_out.bias": torch.zeros(4, dtype=torch.uint8)}, r"conv_out.bias is (U8|uint8), and the network wants"),
    (lambda s: s | {"conv_out.weight.absmax": torch.zeros(1)}, "quantized, bitsandbytes"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_denoiser_that_is_not_whole_is_one_error_on_every_route(
    change: Callable[[dict[str, Any]], dict[str, Any]], said: str, copy: Path
) -> None:
    edit(copy / "unet" / WEIGHTS, change)
    for route in routes(copy):
        with pytest.raises(ArtifactError, match=said):
            route()
    assert not (copy.parent / "out").exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("text_encoder/model.safetensors", "text_model.final_layer_norm.weight"),
        (f"vae/{WEIGHTS}", "post_quant_conv.weight"),
        (f"vae/{WEIGHTS}", "encoder.conv_in.bias"),
    ],
)
def test_a_component_that_is_not_whole_is_refused_before_anything_is_exported(part: str, name: str, copy: Path) -> None:
    edit(copy / part, without(name))
    for route in (routes(copy)[2], routes(copy)[4]):
        with pytest.raises(ArtifactError, match=rf"{part}: the weights do not fit .*1 missing \({name.removeprefix('text_model.')}\)"):  # fmt: skip
            route()
    assert not (copy.parent / "out").exists()


def test_a_text_encoder_without_its_projection_is_refused(tmp_path: Path) -> None:
    folder = tiny_pipelines.write_pipeline(tmp_path / "xl", xl=True)
    edit(folder / "text_encoder_2" / "model.safetensors", without("text_projection.weight"))
    with pytest.raises(ArtifactError, match=r"1 missing \(text_projection.weight\)"):
        export_pipeline(folder, tmp_path / "out")


def test_nan_in_any_network_is_refused_by_name(copy: Path) -> None:
    edit(copy / "unet" / WEIGHTS, lambda s: s | {"conv_out.bias": torch.full((4,), torch.nan)})
    for route in routes(copy)[:2]:
        with pytest.raises(ArtifactError, match=r"1 with NaN or infinities \(conv_out.bias\)"):
            route()
    edit(copy / "text_encoder" / "model.safetensors", lambda s: {k: v / 0 if "final" in k else v for k, v in s.items()})
    with pytest.raises(ArtifactError, match=r"2 with NaN or infinities \(final_layer_norm"):
        export_pipeline(copy, copy.parent / "out")


@pytest.mark.parametrize(("field", "value"), [("layers_per_block", 10**8), ("sample_size", 10**7), ("cross_attention_dim", "x")])  # fmt: skip
def test_an_absurd_config_is_one_error_on_every_route(field: str, value: object, copy: Path) -> None:
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {field: value}))
    for route in routes(copy):
        with pytest.raises(ArtifactError, match=r"config.json of .*unet/"):
            route()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_in_float8_are_widened(dtype: torch.dtype, copy: Path) -> None:
    edit(copy / "unet" / WEIGHTS, lambda s: {k: v.to(dtype if v.ndim > 1 else torch.bfloat16) for k, v in s.items()})
    given, model = load_file(copy / "unet" / WEIGHTS), optimize.load(copy, steps=2)
    assert all(torch.equal(v, given[k].float()) for k, v in model.module.state_dict().items())
    assert torch.isfinite(optimize.sample(model, range(2))).all()


def test_the_shards_of_a_variant_are_loaded_and_fingerprinted(copy: Path) -> None:
    (copy / "unet" / WEIGHTS).unlink()
    network = tiny_pipelines.unet().half()
    network.save_pretrained(copy / "unet", variant="fp16", max_shard_size="60KB")
    source = DiffusersSource(copy)
    assert len(source.files) > 1 and {f"unet/{f.name}" for f in source.files} < source.fingerprint().keys()
    for loaded in (source.load(Sampler(steps=2)).module, pipeline_unet(copy)):
        assert all(torch.equal(v, network.state_dict()[k].float()) for k, v in loaded.state_dict().items())
    source.files[0].unlink()
    for route in routes(copy):
        with pytest.raises(ArtifactError, match="no such file"):
            route()


def pipeline_unet(folder: Path) -> Any:
    from optimize.architectures.components import with_weights

    pipeline = pipeline_of(folder, None)
    return with_weights(pipeline.config("unet"), pipeline.weights("unet"))


def test_a_single_file_is_the_model_of_its_folder(sd: Path, single: tuple[Path, Path]) -> None:
    file, configs = single
    model, expected = optimize.load(file, steps=2, config=configs), optimize.load(sd, steps=2)
    assert torch.equal(optimize.sample(model, range(2)), optimize.sample(expected, range(2)))
    assert model.source["weights_bytes"] == file.stat().st_size
    assert model.source["files"].keys() == {file.name, "unet/config.json", "scheduler/scheduler_config.json"}


def test_a_single_file_is_planned_and_inspected_and_its_recipe_names_the_configs(single: tuple[Path, Path], tmp_path: Path) -> None:  # fmt: skip
    file, configs = single
    plan = plan_for(str(file), ["a100"], latency_ms=50.0, config=configs, beside=tmp_path)
    recipe = parse(plan["targets"][0]["proposal"]["recipe"], folder=tmp_path)
    assert (recipe.source.path, recipe.source.config) == (file, configs)
    assert recipe.name == "my-b-model-v2-.safetensors-a100" and facts_of(recipe).nfe
    assert open_subject(_written(plan, tmp_path)).schedule == open_subject(str(file), config=configs).schedule
    shown = inspect(file, target="a100", measure=False, config=configs)["parts"]
    assert {p["name"] for p in shown} == {"unet", "vae", "text_encoder"} and not any(p["note"] for p in shown)


def _written(plan: dict[str, Any], folder: Path) -> str:
    (folder / "r.yaml").write_text(plan["targets"][0]["proposal"]["recipe"])
    return str(folder / "r.yaml")


def test_a_single_file_is_the_source_of_a_run(single: tuple[Path, Path], tmp_path: Path) -> None:
    file, configs = single
    recipe = parse(json.dumps({
        "name": "x", "source": {"path": str(file), "config": str(configs)}, "sampler": {"steps": 2},
        "data": {"training": "t", "held_out": "h"}, "quality": {"features": "f", "classifier": "c"},
    }))  # fmt: skip
    stage = source_stage(Store(tmp_path), recipe, silent)
    assert stage.manifest["source"]["files"].keys() >= {file.name}
    assert source_stage(Store(tmp_path), recipe, silent).cached


def test_a_pipeline_in_a_single_file_has_all_its_parts_and_others_from_the_folder(
    sd: Path, single: tuple[Path, Path], tmp_path: Path
) -> None:
    file, configs = single
    pipeline = pipeline_of(file, configs)
    assert {n: pipeline.weights(n).where for n in pipeline.networks} == dict.fromkeys(pipeline.networks, file)
    alone = tmp_path / "unet.safetensors"
    save_file({k: v for k, v in load_file(file).items() if k.startswith("model.")}, alone)
    assert pipeline_of(alone, sd).weights("vae").where == sd / "vae" / WEIGHTS
    with pytest.raises(
        ArtifactError, match=r"it does not hold the weights of the pipeline's vae, and neither does .*vae"
    ):
        pipeline_of(alone, configs).weights("vae")


def test_a_single_file_without_configs_and_configs_without_a_single_file_are_refused(
    sd: Path, single: tuple[Path, Path], tmp_path: Path
) -> None:
    file, configs = single
    for route in routes(file):
        with pytest.raises(
            ArtifactError, match=r"a checkpoint in one file.*--config FOLDER, in a recipe source.config"
        ):
            route()
    for wrong in (sd, tmp_path / "gone"):
        with pytest.raises(UserError, match=r"Leave it out|no such file or folder"):
            optimize.load(wrong, config=configs)
        for given in (lambda w=wrong: pipeline_of(w, configs), lambda w=wrong: inspect(w, config=configs), lambda w=wrong: open_subject(str(w), config=configs)):  # fmt: skip
            with pytest.raises(UserError, match=r"--config: .*Leave it out"):
                given()
    with pytest.raises(ArtifactError, match="no model in it"):
        optimize.load(file, config=tmp_path)
    with pytest.raises(ArtifactError, match="no such file or folder"):
        optimize.load(file, config=tmp_path / "gone")


@pytest.mark.parametrize(("name", "data", "said"), [("m.gguf", b"GGUF", "a GGUF file"), ("m.ckpt", b"PK", "pickled checkpoints are never loaded"), ("m.pt", b"", "never loaded"), ("m.bin", b"", "never loaded")])  # fmt: skip
def test_other_files_are_refused_for_what_they_are_on_every_route(
    name: str, data: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    for route in routes(tmp_path / name):
        with pytest.raises(UserError, match=said):
            route()


@pytest.mark.parametrize(("kind", "said"), [("ControlNetModel", "source.controlnet: true"), ("AutoencoderKL", "an autoencoder alone"), ("CLIPTextModel", "a text encoder or language model alone")])  # fmt: skip
def test_a_folder_of_another_network_is_told_what_to_give_on_every_route(kind: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "config.json").write_text(json.dumps({"_class_name": kind}))
    for route in routes(tmp_path / "net")[:4]:
        with pytest.raises(UserError, match=said):
            route()


def test_folders_with_odd_names_are_planned(sd: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sd, tmp_path / "my model (v2) é[1]"))
    plan = plan_for(str(folder), ["a100"], latency_ms=50.0, beside=tmp_path)
    assert parse(plan["targets"][0]["proposal"]["recipe"], folder=tmp_path).source.path == folder
    for text, name in (("a b", "a-b"), ("-x.", "x"), ("é", "model"), ("", "model"), ("ok_1.2", "ok_1.2")):
        assert plain_name(text) == name


@pytest.mark.parametrize(("change", "said"), CHANGES[:4])
def test_an_artifact_that_was_sealed_without_a_whole_network_is_refused(
    change: Callable[[dict[str, Any]], dict[str, Any]], said: str, sd: Path, tmp_path: Path
) -> None:
    def write(folder: Path) -> dict[str, Any]:
        save_model(folder, optimize.load(sd))
        edit(folder / "model.safetensors", change)
        return {"id": "x"}

    commit(tmp_path / "a", write)
    with pytest.raises(ArtifactError, match=said):
        optimize.load(tmp_path / "a")


class Plain(torch.nn.Module):
    """A network of a user's own, in 16 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 0 * t[:, None, None, None]


def test_a_module_of_ones_own_is_whole_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimize.architectures.any_module.imported", lambda path, wanted: Plain)
    monkeypatch.setenv("OPTIMIZE_IMPORTS", "")
    inputs = {"x": ["B", 1, 4, 4], "t": ["B"]}
    source = ModuleSource(tmp_path / "w.safetensors", network="m:Plain", inputs=inputs)
    state = {k: v.half() for k, v in Plain().state_dict().items()}
    save_file(state, tmp_path / "w.safetensors")
    loaded = source.load(Sampler(steps=1)).module.state_dict()
    assert all(torch.equal(v, state[k].float()) for k, v in loaded.items())
    for wrong, said in (({"layer.bias": None}, "1 missing"), ({"x": torch.zeros(1)}, "1 unexpected"), ({"layer.bias": torch.full((1,), torch.nan)}, "1 with NaN")):  # fmt: skip
        save_file({k: v for k, v in (state | wrong).items() if v is not None}, tmp_path / "w.safetensors")
        with pytest.raises(ArtifactError, match=said):
            source.load(Sampler(steps=1))
