"""Sources: pipelines with a U-Net or a transformer, shards, half precision, conditions, modules by import path."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from safetensors.torch import save_file
from support.tiny_model import make_tiny_folder

import optimize
from optimize.architectures.any_module import ALLOWED
from optimize.architectures.artifact import save_model
from optimize.diffusion.network import example_inputs
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.errors import ArtifactError, UserError
from optimize.recipes.schema import SourceConfig
from optimize.sources.diffusers import DiffusersSource
from optimize.sources.module import ModuleSource
from optimize.storage.commit import commit

PLACES = {"sd": "unet", "unet1d": "unet", "dit": "transformer", "pixart": "transformer", "sd3": "transformer", "flux": "transformer"}  # fmt: skip


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., Path]:
    """A folder with the network of a name as diffusers saves it, and its scheduler."""

    def make(name: str, **options: object) -> Path:
        config = networks.TINY[name]
        folder, module = tmp_path / name, networks.model(config).module
        if options.get("variant"):
            module = module.half()
        module.save_pretrained(folder / PLACES[name], **options)
        (folder / "scheduler").mkdir()
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(networks.scheduler(config)))
        return folder

    return make


@pytest.mark.parametrize("name", sorted(PLACES))
def test_every_named_network_loads_from_a_pipeline_folder(name: str, pipeline: Callable[..., Path]) -> None:
    folder, made = pipeline(name), networks.model(networks.TINY[name])
    model = DiffusersSource(folder).load(Sampler(steps=2))
    feed = example_inputs(made.inputs, 2, classes=10)
    with torch.inference_mode():
        assert torch.equal(model.denoiser.network(**feed), made.denoiser.network(**feed))
    assert model.denoiser.schedule.kind == made.denoiser.schedule.kind
    assert model.denoiser.parameterization == made.denoiser.parameterization
    assert model.structure.architecture == networks.TINY[name]["_class_name"]
    assert all(p.device.type == "cpu" for p in (*model.module.parameters(), *model.module.buffers()))


def test_shards_are_read_whole(pipeline: Callable[..., Path]) -> None:
    folder = pipeline("sd3", max_shard_size="100KB")
    source, made = DiffusersSource(folder), networks.model(networks.TINY["sd3"])
    assert len(source.files) > 1
    found = source.load(Sampler(steps=2)).module.state_dict()
    assert all(torch.equal(found[k], v) for k, v in made.module.state_dict().items())
    assert len(source.fingerprint()) == len(source.files) + 2
    with pytest.raises(UserError, match=r"source.sha256: the weights of .* are \d+ files. Pin each one"):
        DiffusersSource(folder, "0" * 64).load(Sampler(steps=2))
    source.files[1].unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        source.load(Sampler(steps=2))


def test_a_shard_outside_the_folder_is_refused(pipeline: Callable[..., Path]) -> None:
    folder = pipeline("sd3", max_shard_size="100KB")
    index = next((folder / "transformer").glob("*.index.json"))
    text = json.loads(index.read_text())
    text["weight_map"] = dict.fromkeys(text["weight_map"], "../elsewhere.safetensors")
    index.write_text(json.dumps(text))
    with pytest.raises(ArtifactError, match="is no file name of this folder"):
        DiffusersSource(folder).load(Sampler(steps=2))


def test_half_precision_variants_are_widened(pipeline: Callable[..., Path]) -> None:
    folder = pipeline("sd", variant="fp16")
    assert "fp16" in DiffusersSource(folder).files[0].name
    model = DiffusersSource(folder).load(Sampler(steps=2))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    made = networks.model(networks.TINY["sd"]).module.state_dict()
    assert all(torch.equal(v, made[k].half().float()) for k, v in model.module.state_dict().items())


def test_given_conditions_are_sampled_with_and_fingerprinted(pipeline: Callable[..., Path], tmp_path: Path) -> None:
    folder, text = pipeline("sd"), torch.randn(2, 7, 32)
    save_file({"encoder_hidden_states": text}, tmp_path / "c.safetensors")
    source = DiffusersSource(folder, conditions=tmp_path / "c.safetensors")
    model = source.load(Sampler(steps=2))
    assert torch.equal(model.condition([1])["encoder_hidden_states"], text[1:])
    assert "conditions" in source.fingerprint() and "conditions" not in DiffusersSource(folder).fingerprint()


def test_a_controlnets_inputs_are_asked_for_by_the_source(pipeline: Callable[..., Path]) -> None:
    model = DiffusersSource(pipeline("sd"), controlnet=True).load(Sampler(steps=2))
    assert sum("residual" in spec.name for spec in model.inputs) == 5
    assert torch.isfinite(model.sample([1])).all()


def test_a_transformer_takes_no_controlnet(pipeline: Callable[..., Path]) -> None:
    with pytest.raises(UserError, match=r"source.controlnet: DiTTransformer2DModel takes no residuals here"):
        DiffusersSource(pipeline("dit"), controlnet=True).load(Sampler(steps=2))


def test_a_folder_without_a_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no model in it. Give the pipeline.s folder"):
        DiffusersSource(tmp_path).load(Sampler(steps=2))


def test_a_class_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"_class_name": "UNet3DConditionModel"}')
    with pytest.raises(UserError, match='Did you mean "UNet2DConditionModel"'):
        DiffusersSource(tmp_path).load(Sampler(steps=2))


CODE = """
import torch

class Plain(torch.nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = torch.nn.Conv2d(channels, channels, 1)

    def forward(self, x, t):
        return self.layer(x) + t[:, None, None, None] * 0
"""


def test_a_module_by_import_path_with_weights_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plain_network.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ALLOWED, "")
    weights = {"layer.weight": torch.ones(2, 2, 1, 1), "layer.bias": torch.zeros(2)}
    save_file(weights, tmp_path / "w.safetensors")
    about = {
        "network": "plain_network:Plain",
        "arguments": {"channels": 2},
        "inputs": {"x": ["B", 2, 4, 4], "t": ["B"]},
    }
    source = ModuleSource(tmp_path / "w.safetensors", scheduler={"prediction_type": "sample"}, **about)
    model = source.load(Sampler(steps=2))
    feed = example_inputs(model.inputs, 1)
    assert torch.allclose(model.denoiser.network(**feed)[0, 0], feed["x"].sum(1)[0])
    assert model.denoiser.parameterization.prediction == "sample" and model.shape == (2, 4, 4)
    other = ModuleSource(tmp_path / "w.safetensors", **{**about, "arguments": {"channels": 3}})
    assert other.fingerprint() != source.fingerprint()
    with pytest.raises(ArtifactError, match="the weights do not fit"):
        other.load(Sampler(steps=2))
    monkeypatch.delitem(sys.modules, "plain_network")


def test_a_module_without_inputs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind module needs network"):
        ModuleSource(tmp_path / "w.safetensors").load(Sampler(steps=2))


def test_options_of_a_source_are_those_that_are_given() -> None:
    assert SourceConfig(path=Path("a")).options() == {}
    given = SourceConfig(path=Path("a"), conditions=Path("b"), controlnet=True)
    assert given.options() == {"conditions": Path("b"), "controlnet": True}


LABELLED = CODE.replace("def forward(self, x, t):", "def forward(self, x, t, class_labels):")


def test_a_module_that_takes_labels_is_told_its_classes_and_its_null_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "labelled_network.py").write_text(LABELLED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ALLOWED, "")
    save_file({"layer.weight": torch.ones(2, 2, 1, 1), "layer.bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    about: dict[str, Any] = {
        "network": "labelled_network:Plain",
        "arguments": {"channels": 2},
        "inputs": {"x": ["B", 2, 4, 4], "t": ["B"], "class_labels": {"dims": ["B"], "dtype": "int64"}},
        "scheduler": {"prediction_type": "sample"},
    }
    guided = Sampler(steps=2, guidance=Guidance(cfg=1.0))
    model = ModuleSource(tmp_path / "w.safetensors", classes=3, null_class=0, **about).load(guided)
    told = model.condition(range(4))
    assert told["class_labels"].tolist() == [1, 2, 3, 1]
    assert model.denoiser.unconditional(told)["class_labels"].tolist() == [0] * 4 and model.sample([0]).shape == (
        1,
        2,
        4,
        4,
    )
    for said, says in (({}, "none of what this network is told"), ({"null_class": 3}, "source.classes: missing")):
        with pytest.raises(UserError, match=says):
            ModuleSource(tmp_path / "w.safetensors", **said, **about).load(guided)
    monkeypatch.delitem(sys.modules, "labelled_network")


def test_what_is_said_of_the_classes_is_part_of_a_source(tmp_path: Path) -> None:
    folder = make_tiny_folder(tmp_path)
    plain, said = DiffusersSource(folder), DiffusersSource(folder, null_class=10)
    assert said.fingerprint() == plain.fingerprint() | {"null_class": "10"}
    assert said.load(Sampler(steps=2)).denoiser.conditioning.null == 10
    with pytest.raises(UserError, match=r"source.null_class"):
        plain.load(Sampler(steps=2, guidance=Guidance(cfg=1.0)))


def test_the_interface_says_classes_of_folders_and_artifacts_hold_theirs(tmp_path: Path) -> None:
    model = optimize.load(make_tiny_folder(tmp_path / "m"), steps=2, cfg=0.5, null_class=10)
    commit(tmp_path / "a", lambda folder: (save_model(folder, model), {"id": "x"})[1])
    assert optimize.load(tmp_path / "a").denoiser.conditioning == model.denoiser.conditioning
    with pytest.raises(UserError, match=r"is an artifact, which holds its classes. Leave classes and null_class out"):
        optimize.load(tmp_path / "a", null_class=10)
