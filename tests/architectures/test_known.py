"""The named networks as Models: inputs that fit, sampling equal to diffusers' own loop, reload without pickle."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from support.restored import saved

from optimize.architectures.any_module import ALLOWED, allow_import, described
from optimize.architectures.artifact import load_model
from optimize.architectures.known import ARCHITECTURES, architecture, hollow, with_controlnet, with_sizes
from optimize.diffusion.model import Model
from optimize.diffusion.network import TensorSpec, example_inputs, nested, raw_output
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.errors import ArtifactError, UserError

TINY = sorted(networks.TINY)


def output(model: Model, batch: int = 2, **sizes: int) -> torch.Tensor:
    with torch.inference_mode():
        return model.denoiser.network(**example_inputs(model.inputs, batch, classes=10, **sizes))


@pytest.mark.parametrize("name", TINY)
def test_a_network_is_fed_what_it_takes_and_predicts_what_it_denoises(name: str) -> None:
    model = networks.model(networks.TINY[name])
    raw = output(model)
    mean = model.denoiser.parameterization.mean(raw)
    assert mean.shape == (2, *model.shape) and torch.isfinite(raw).all()
    assert (mean.shape == raw.shape) == (name not in ("dit", "pixart"))
    images = model.sample([3, 4], sampler=Sampler(steps=2))
    assert images.shape == (2, *model.shape) and torch.isfinite(images).all()
    assert torch.allclose(images[1:], model.sample([4], sampler=Sampler(steps=2)), atol=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_a_network_is_saved_and_loaded_bit_equal_without_pickle(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("torch.load was called")

    monkeypatch.setattr(torch, "load", refuse)
    model = networks.model(networks.TINY[name])
    again = load_model(saved(model, tmp_path / "a"))
    assert torch.equal(output(again), output(model))
    assert again.inputs == model.inputs and again.shape == model.shape and again.limit == model.limit
    assert again.denoiser.conditioning == model.denoiser.conditioning
    assert again.denoiser.parameterization == model.denoiser.parameterization
    assert again.denoiser.schedule == model.denoiser.schedule
    assert torch.allclose(again.sample([5]), model.sample([5]), rtol=1e-3, atol=1e-3)  # memory lies otherwise aligned


@pytest.mark.parametrize(("name", "sizes"), [("sd", {"H": 24, "W": 8, "L": 3}), ("sd3", {"H": 8, "W": 24, "L": 5}), ("controlnet", {"H": 8, "W": 24})])  # fmt: skip
def test_networks_with_symbols_run_at_other_sizes(name: str, sizes: dict[str, int]) -> None:
    model = networks.model(networks.TINY[name])
    assert output(model, **sizes).shape == (2, 4, sizes["H"], sizes["W"])


def test_flux_runs_at_other_numbers_of_positions_and_tokens() -> None:
    assert output(networks.model(networks.TINY["flux"]), S=16, L=3).shape == (2, 16, 16)


def test_a_controlnets_residuals_are_those_of_diffusers_controlnet() -> None:
    from diffusers import ControlNetModel

    config = networks.TINY["controlnet"]
    unet = networks.model(config)
    torch.manual_seed(1)
    control = ControlNetModel.from_unet(unet.module).eval()
    feed = example_inputs(unet.inputs, 2)
    with torch.inference_mode():
        down, mid = control(
            feed["sample"], feed["timestep"], feed["encoder_hidden_states"],
            controlnet_cond=torch.rand(2, 3, 128, 128), return_dict=False,
        )  # fmt: skip
        names = [s.name for s in unet.inputs if "residual" in s.name]
        assert [tuple(feed[n].shape) for n in names] == [tuple(r.shape) for r in (*down, mid)]
        given = {**feed, **dict(zip(names, (r + 0.1 for r in (*down, mid)), strict=True))}
        asked = unet.module(
            feed["sample"], feed["timestep"], feed["encoder_hidden_states"],
            down_block_additional_residuals=[r + 0.1 for r in down], mid_block_additional_residual=mid + 0.1,
        ).sample  # fmt: skip
        assert torch.equal(unet.denoiser.network(**given), asked)
        plain = unet.module(feed["sample"], feed["timestep"], feed["encoder_hidden_states"]).sample
    assert not torch.allclose(asked, plain)


def test_sampling_a_guided_conditional_unet_equals_diffusers_loop() -> None:
    from diffusers import DDIMScheduler

    sampler = Sampler(steps=6, spacing="leading", guidance=Guidance(cfg=1.5))
    model = networks.model(networks.TINY["sd"], sampler)
    scheduler = DDIMScheduler.from_config({**networks.STABLE, "timestep_spacing": "leading"})
    scheduler.set_timesteps(6)
    text = model.condition([1, 2])["encoder_hidden_states"]
    z = model.noise([1, 2]).double()
    with torch.inference_mode():
        for t in scheduler.timesteps:
            both = model.module(torch.cat([z, z]).float(), t, torch.cat([torch.zeros_like(text), text])).sample
            null, told = both.double().chunk(2)
            z = scheduler.step(null + 2.5 * (told - null), t, z).prev_sample
    assert torch.allclose(model.sample([1, 2]).double(), z, atol=2e-4)


def test_sampling_dit_with_its_learned_variance_equals_diffusers_loop() -> None:
    from diffusers import DDIMScheduler

    model = networks.model(networks.TINY["dit"], Sampler(steps=5, guidance=Guidance(cfg=3.0)))
    scheduler = DDIMScheduler.from_config(networks.STABLE)
    scheduler.set_timesteps(5)
    labels, z = torch.tensor([3, 4]), model.noise([3, 4]).double()
    with torch.inference_mode():
        for t in scheduler.timesteps:
            known = torch.cat([labels, torch.tensor([10, 10])])
            raw = model.module(torch.cat([z, z]).float(), t.expand(4), known).sample[:, :4].double()
            told, null = raw.chunk(2)
            z = scheduler.step(null + 4.0 * (told - null), t, z).prev_sample
    assert torch.allclose(model.sample([3, 4]).double(), z, atol=2e-4)


def test_sampling_sd3_equals_diffusers_flow_loop() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = networks.model(networks.TINY["sd3"], Sampler(steps=5, spacing="linspace", guidance=Guidance(cfg=2.0)))
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(5)
    given, z = model.condition([1, 2]), model.noise([1, 2])
    with torch.inference_mode():
        for t in scheduler.timesteps:
            null = {k: torch.zeros_like(v) for k, v in given.items()}
            told = model.module(z, timestep=t.expand(2), **given).sample
            null_ = model.module(z, timestep=t.expand(2), **null).sample
            z = scheduler.step(null_ + 3.0 * (told - null_), t, z).prev_sample
    assert torch.allclose(model.sample([1, 2]), z, atol=2e-4)


def test_sampling_flux_equals_diffusers_loop_with_its_dynamic_shift() -> None:
    """`calculate_shift` and the grid of sigmas are those of diffusers' Flux pipeline."""
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    model = networks.model(networks.TINY["flux"], Sampler(steps=5))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 5, 5), mu=calculate_shift(64))
    given, z = model.condition([1, 2]), model.noise([1, 2])
    with torch.inference_mode():
        for t in scheduler.timesteps:
            raw = model.module(z, timestep=t.expand(2) / 1000, **given).sample
            z = scheduler.step(raw, t, z).prev_sample
    assert torch.allclose(model.sample([1, 2]), z, atol=2e-4)


def test_inpainting_reads_mask_and_masked_image_behind_the_latents() -> None:
    model = networks.model(networks.TINY["inpainting"])
    assert model.shape == (4, 16, 16) and model.inputs[0].shape(1) == (1, 9, 16, 16)
    given = model.condition([1])
    assert given["sample"].shape == (1, 5, 16, 16)
    z = model.noise([1])
    feed = model.denoiser.feed(z, 3.0, given)
    assert torch.equal(feed["sample"], torch.cat([z, given["sample"]], 1))


def test_conditions_are_kept_with_an_artifact(tmp_path: Path) -> None:
    from dataclasses import replace

    plain = networks.model(networks.TINY["sd"])
    given = {"encoder_hidden_states": torch.randn(2, 7, 32), "null.encoder_hidden_states": torch.randn(1, 7, 32)}
    model = replace(plain, conditions=given)
    again = load_model(saved(model, tmp_path / "a"))
    assert torch.equal(again.condition([1])["encoder_hidden_states"], given["encoder_hidden_states"][1:])
    guided = Sampler(steps=2, guidance=Guidance(cfg=1.0))
    assert torch.equal(again.sample([1], sampler=guided), model.sample([1], sampler=guided))
    assert not torch.equal(again.sample([1], sampler=guided), plain.sample([1], sampler=guided))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_class_embeds": 5}, TensorSpec("class_labels", ("B",), "int64")),
        ({"class_embed_type": "timestep"}, TensorSpec("class_labels", ("B",), fill=(0.0,))),
        ({"class_embed_type": "identity"}, TensorSpec("class_labels", ("B", 128))),
        (
            {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 12},
            TensorSpec("class_labels", ("B", 12)),
        ),
    ],
)
def test_class_embeddings_of_a_conditional_unet_are_inputs(changes: dict[str, Any], expected: TensorSpec) -> None:
    model = networks.model({**networks.TINY["sd"], **changes})
    feed = example_inputs(model.inputs, 2, classes=5)
    assert expected in model.inputs and torch.isfinite(model.denoiser.network(**feed)).all()
    assert torch.isfinite(model.sample([1])).all()


def test_added_embeddings_that_are_not_known_are_refused_by_name() -> None:
    config = {**networks.TINY["sd"], "addition_embed_type": "image"}
    with pytest.raises(UserError, match=r'addition_embed_type "image" is not supported. Allowed: text, text_time'):
        architecture("UNet2DConditionModel").inputs(config)
    config = {**networks.TINY["sd"], "encoder_hid_dim_type": "image_proj"}
    with pytest.raises(UserError, match=r'encoder_hid_dim_type "image_proj" is not supported. Allowed: text_proj'):
        architecture("UNet2DConditionModel").inputs(config)


def test_sizes_and_controlnet_are_kept_beside_the_config() -> None:
    config = with_controlnet(with_sizes({"sample_size": 16}, H=8, L=5))
    assert config["_optimize"] == {"sizes": {"H": 8, "L": 5}, "controlnet": True}
    assert architecture("UNet2DConditionModel").inputs(config)[0].shape(1) == (1, 4, 8, 16)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match='Did you mean "FluxTransformer2DModel"'):
        architecture("FluxTransformerModel")
    assert {"UNet2DModel", "UNet1DModel", "SD3Transformer2DModel"} <= set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["dit", "unet1d", "sd"])
def test_a_hollow_network_has_no_weights_but_its_tables(name: str) -> None:
    config = networks.TINY[name]
    module = hollow(config["_class_name"], config)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert all(b.device.type == "cpu" for b in module.buffers())


CODE = """
import torch

class Blur(torch.nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(channels, 32, 3, padding=1)
        self.last = torch.nn.Conv2d(32, channels, 3, padding=1)

    def forward(self, x, t, strength):
        return self.last(torch.relu(self.first(x)) * strength[:, :, None, None] + t[:, None, None, None] / 1000)
"""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    (tmp_path / "foreign_network.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "foreign_network", raising=False)
    monkeypatch.setenv(ALLOWED, "")
    inputs = {"x": ["B", 2, "H", "W"], "t": ["B"], "strength": ["B", 1]}
    inputs["x"] = {"dims": inputs["x"], "sizes": {"H": 8, "W": 8}}  # type: ignore[assignment]
    return described(inputs, arguments={"channels": 2})


def test_any_module_by_import_path_is_a_model_where_the_user_allows_it(foreign: dict[str, Any], tmp_path: Path) -> None:
    from optimize.architectures.assembled import assembled

    name = allow_import("foreign_network:Blur")
    model = assembled(name, foreign, {}, Sampler(steps=2))
    assert model.sample([1]).shape == (1, 2, 8, 8) and output(model, H=4).shape == (2, 2, 4, 8)
    again = load_model(saved(model, tmp_path / "artifact"))
    assert torch.equal(output(again), output(model))


def test_an_artifact_never_chooses_what_is_imported(
    foreign: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.architectures.assembled import assembled

    model = assembled(allow_import("foreign_network:Blur"), foreign, {}, Sampler(steps=2))
    folder = saved(model, tmp_path / "artifact")
    monkeypatch.setenv(ALLOWED, "")
    monkeypatch.delitem(sys.modules, "foreign_network")
    with pytest.raises(ArtifactError, match="an artifact does not choose what is imported"):
        load_model(folder)
    assert "foreign_network" not in sys.modules
    assert json.loads((folder / "structure.json").read_text())["architecture"] == "import:foreign_network:Blur"


def test_raw_outputs_of_modules_are_one_tensor() -> None:
    assert raw_output((torch.ones(1), 2)).item() == 1.0
    assert nested({"a": 1}) == {"a": 1}
