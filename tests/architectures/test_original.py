"""Checkpoints in one file with their authors' names: every network arrives bit for bit, and no tensor is lost on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import original_names, tiny_pipelines

from optimize.architectures.components import class_name, component, skeleton, with_weights
from optimize.architectures.filled import filled
from optimize.architectures.original import check_schedule, part_weights
from optimize.errors import ArtifactError
from optimize.storage.variants import weights_of
from optimize.storage.weights import read_json


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("sd") / "sd")
    return folder, original_names.write_checkpoint(folder.parent / "sd.safetensors", folder)


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tiny_pipelines.write_pipeline(tmp_path_factory.mktemp("xl") / "xl", xl=True)
    return folder, original_names.write_checkpoint(folder.parent / "xl.safetensors", folder)


def loaded(file: Path, folder: Path, part: str) -> Any:
    config = read_json(folder / part / "config.json")
    weights = part_weights(file, part, class_name(config), config)
    assert weights is not None
    return with_weights(config, weights)


def assert_equal(network: Any, other: Any) -> None:
    expected = other.state_dict()
    assert network.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "text_encoder_2"])
def test_every_part_of_a_checkpoint_is_that_of_the_folder_bit_for_bit(
    part: str, sd: tuple[Path, Path], xl: tuple[Path, Path]
) -> None:
    for folder, file in (sd, xl):
        if (folder / part).is_dir():
            expected = with_weights(read_json(folder / part / "config.json"), weights_of(folder / part))
            assert_equal(loaded(file, folder, part), expected)


def test_the_unet_is_the_one_that_diffusers_reads_from_the_file(sd: tuple[Path, Path]) -> None:
    from diffusers import UNet2DConditionModel

    folder, file = sd
    theirs = UNet2DConditionModel.from_single_file(str(file), config=str(folder), subfolder="unet", local_files_only=True)  # fmt: skip
    assert_equal(loaded(file, folder, "unet"), theirs)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
def test_a_file_of_the_denoiser_alone_is_read_with_any_prefix(prefix: str, dtype: torch.dtype, tmp_path: Path) -> None:
    network = tiny_pipelines.unet()
    state = {prefix + k: v.to(dtype) for k, v in original_names.ldm_unet(network).items()}
    save_file(state, tmp_path / "m.safetensors")
    config = {"_class_name": "UNet2DConditionModel", **network.config}
    weights = part_weights(tmp_path / "m.safetensors", "unet", "UNet2DConditionModel", config)
    assert weights is not None
    made = with_weights(config, weights).state_dict()
    assert all(torch.equal(made[k], v.to(dtype).float()) for k, v in network.state_dict().items())


def test_a_transformer_of_sd3_is_read_bit_for_bit(tmp_path: Path) -> None:
    network = tiny_pipelines.sd3()
    save_file({f"model.diffusion_model.{k}": v for k, v in original_names.original_sd3(network).items()}, tmp_path / "m.safetensors")  # fmt: skip
    config = {"_class_name": "SD3Transformer2DModel", **network.config}
    weights = part_weights(tmp_path / "m.safetensors", "transformer", "SD3Transformer2DModel", config)
    assert weights is not None
    assert_equal(filled(lambda: component("SD3Transformer2DModel").build(config), config, weights), network)


def test_a_transformer_of_flux_fits_by_its_headers_at_full_width(tmp_path: Path) -> None:
    """diffusers takes it apart at 3072 channels, which are too many to fill here."""
    config = networks.FULL["flux_shaped"] | {"num_layers": 1, "num_single_layers": 2}
    with torch.device("meta"):
        state = original_names.original_flux(component("FluxTransformer2DModel").build(config))
    for prefix in ("", "model.diffusion_model."):
        file = original_names.write_header(tmp_path / "m.safetensors", {prefix + k: v for k, v in state.items()})
        weights = part_weights(file, "transformer", "FluxTransformer2DModel", config)
        assert weights is not None and len(skeleton(config, weights)[0].state_dict()) == len(weights.stored())
    with pytest.raises(ArtifactError, match=r"have no place .*guidance_in|do not fit .*2 unexpected|4 unexpected"):
        plain = config | {"guidance_embeds": False}
        skeleton(plain, part_weights(file, "transformer", "FluxTransformer2DModel", plain))


def test_a_file_with_diffusers_own_names_needs_no_table(tmp_path: Path) -> None:
    network = tiny_pipelines.unet()
    save_file(network.state_dict(), tmp_path / "m.safetensors")
    config = {"_class_name": "UNet2DConditionModel", **network.config}
    weights = part_weights(tmp_path / "m.safetensors", "unet", "UNet2DConditionModel", config)
    assert weights is not None
    assert_equal(with_weights(config, weights), network)


def changed(file: Path, place: Path, drop: str = "", **more: torch.Tensor) -> Path:
    state = {k: v for k, v in load_file(file).items() if k != drop}
    save_file(state | more, place)
    return place


@pytest.mark.parametrize(
    ("drop", "more", "said"),
    [
        ("model.diffusion_model.out.2.bias", {}, r"1 missing \(conv_out.bias\)"),
        ("", {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(4, 4)}, r"1 of its tensors have no place.*label_emb.0.0.weight"),
        ("", {"model.diffusion_model.out.2.scale_weight": torch.zeros(())}, r"quantized, float8 with scales.*scale_weight"),
        ("model.diffusion_model.out.2.bias", {"model.diffusion_model.out.2.bias": torch.zeros(5)}, r"1 of another shape \(conv_out.bias \[4\] in the network, \[5\] in the file"),
        ("model.diffusion_model.out.2.bias", {"model.diffusion_model.out.2.bias": torch.full((4,), torch.nan)}, r"1 with NaN or infinities \(conv_out.bias\)"),
    ],
)  # fmt: skip
def test_what_a_checkpoint_lacks_holds_too_much_or_wrongly_is_named(
    drop: str, more: dict[str, torch.Tensor], said: str, sd: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, file = sd
    with pytest.raises(ArtifactError, match=said):
        loaded(changed(file, tmp_path / "c.safetensors", drop, **more), folder, "unet")


def test_a_config_of_another_network_is_told_so(sd: tuple[Path, Path], xl: tuple[Path, Path]) -> None:
    with pytest.raises(ArtifactError, match=r"label_emb|do not fit the network"):
        loaded(xl[1], sd[0], "unet")
    with pytest.raises(ArtifactError, match=r"its names are not those of a UNet2DConditionModel with this config"):
        loaded(sd[1], xl[0], "unet")


def test_a_class_that_has_no_single_files_is_told_which_have(sd: tuple[Path, Path]) -> None:
    weights = part_weights(sd[1], "unet", "DiTTransformer2DModel", {})
    assert weights is not None
    with pytest.raises(
        ArtifactError, match=r"not as a DiTTransformer2DModel: AutoencoderKL, Flux.*Give the network's folder"
    ):
        weights.stored()


def test_a_part_that_the_file_does_not_hold_is_none(xl: tuple[Path, Path], sd: tuple[Path, Path]) -> None:
    assert part_weights(sd[1], "text_encoder_2", "CLIPTextModelWithProjection", {}) is None
    assert part_weights(xl[1], "text_encoder_3", "T5EncoderModel", {}) is None


def test_what_a_file_says_of_its_prediction_must_be_what_the_scheduler_says(tmp_path: Path) -> None:
    save_file({"v_pred": torch.zeros(()), "ztsnr": torch.zeros(())}, tmp_path / "m.safetensors")
    save_file({"x": torch.zeros(())}, tmp_path / "spec.safetensors", {"modelspec.prediction_type": "v"})
    for name in ("m", "spec"):
        with pytest.raises(ArtifactError, match=r"it predicts v_prediction, and prediction_type .* is epsilon"):
            check_schedule(tmp_path / f"{name}.safetensors", {})
    with pytest.raises(ArtifactError, match=r"zero terminal SNR, and rescale_betas_zero_snr"):
        check_schedule(tmp_path / "m.safetensors", {"prediction_type": "v_prediction"})
    check_schedule(tmp_path / "m.safetensors", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    check_schedule(tmp_path / "spec.safetensors", {"prediction_type": "v_prediction"})
