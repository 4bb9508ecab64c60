"""Which files hold a network's weights: variants, shards, indexes under every name, and what is said where none does."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optimize.errors import ArtifactError
from optimize.storage.variants import as_float32, read_weights, required_files, stored, weights_files, weights_of
from optimize.storage.weights import header

A, B = {"a": torch.arange(3.0)}, {"b": torch.ones(2)}


def whole(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for i, name in enumerate(names):
        save_file({"a": torch.full((2,), float(i))}, folder / f"{name}.safetensors")
    return folder


def shards(folder: Path, index: str, first: str, second: str) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(A, folder / first)
    save_file(B, folder / second)
    (folder / index).write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    return folder


@pytest.mark.parametrize(
    "index",
    [
        "diffusion_pytorch_model.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.fp16.json",
        "diffusion_pytorch_model.safetensors.fp16.index.json",
        "diffusion_pytorch_model.fp16.safetensors.index.json",
        "diffusion_pytorch_model.safetensors.index.my.own-variant.json",
        "model.safetensors.index.fp16.json",
    ],
)
def test_the_shards_of_an_index_of_any_variant_are_read(index: str, tmp_path: Path) -> None:
    base = index.split(".")[0]
    names = [f"{base}.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    found = weights_files(shards(tmp_path, index, *names))
    assert [f.name for f in found] == names
    assert torch.equal(read_weights(found)["a"], A["a"]) and stored(found).keys() == {"a", "b"}


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
@pytest.mark.parametrize("size", ["20KB", "10GB"])
def test_what_the_libraries_save_as_a_variant_is_found_whole(library: str, size: str, tmp_path: Path) -> None:
    from support import tiny_pipelines
    from transformers import CLIPTextModel

    network = tiny_pipelines.vae() if library == "diffusers" else CLIPTextModel(tiny_pipelines.text_config())
    network.half().save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    found = weights_files(tmp_path)
    assert (len(found) > 1) == (size == "20KB") and all("fp16" in f.name for f in found)
    assert len(read_weights(found)) == len(network.state_dict())


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["diffusion_pytorch_model", "diffusion_pytorch_model.fp16", "diffusion_pytorch_model.non_ema"], "diffusion_pytorch_model"),
        (["diffusion_pytorch_model.bf16", "diffusion_pytorch_model.fp16"], "diffusion_pytorch_model.fp16"),
        (["diffusion_pytorch_model.fp16", "diffusion_pytorch_model.fp32"], "diffusion_pytorch_model.fp32"),
        (["diffusion_pytorch_model.bf16", "diffusion_pytorch_model.ema"], "diffusion_pytorch_model.bf16"),
        (["diffusion_pytorch_model.ema"], "diffusion_pytorch_model.ema"),
        (["model.bf16"], "model.bf16"),
        (["model", "diffusion_pytorch_model.fp16"], "diffusion_pytorch_model.fp16"),
    ],
)  # fmt: skip
def test_the_most_precise_variant_is_read(names: list[str], chosen: str, tmp_path: Path) -> None:
    assert [f.name for f in weights_files(whole(tmp_path, *names))] == [f"{chosen}.safetensors"]


def test_which_of_several_variants_is_read_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "optimize"):
        weights_files(whole(tmp_path, "model.bf16", "model.fp16"))
    assert "of the variants bf16, fp16, fp16 is read" in caplog.text


def test_variants_of_which_none_is_known_to_be_more_precise_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"several variants of the weights \(ema, non_ema\).*Keep one of them"):
        weights_files(whole(tmp_path, "model.ema", "model.non_ema"))


def test_a_variant_whole_and_in_shards_is_read_as_its_library_reads_it(tmp_path: Path) -> None:
    for base, expected in (("diffusion_pytorch_model", 2), ("model", 1)):
        names = [f"{base}-0000{i}-of-00002.safetensors" for i in (1, 2)]
        folder = whole(shards(tmp_path / base, f"{base}.safetensors.index.json", *names), base)
        assert len(weights_files(folder)) == expected


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "diffusion_pytorch_model.safetensors: no such file"),
        ({"pytorch_model.bin": b"x"}, r"only a pickled checkpoint \(pytorch_model.bin\)"),
        ({"diffusion_pytorch_model-00001-of-00002.safetensors": b""}, "shards of the weights .* not their index"),
        ({"sd15.safetensors": b""}, "expected as diffusion_pytorch_model.safetensors .* it holds sd15.safetensors"),
        ({"model.safetensors.index.json": b"[]"}, "it has no weight_map"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../x"}}'}, "is no file name of this folder"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": 3}}'}, "is no file name of this folder"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "gone.safetensors"}}'}, "gone.safetensors: no such file"),
    ],
)  # fmt: skip
def test_what_is_there_instead_of_weights_is_said(files: dict[str, bytes], said: str, tmp_path: Path) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=said):
        required_files(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for name in ("1", "2"):
        save_file(A, tmp_path / f"{name}.safetensors")
    with pytest.raises(ArtifactError, match="a is in another shard as well"):
        read_weights([tmp_path / "1.safetensors", tmp_path / "2.safetensors"])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"GGUF" + bytes(64), "a GGUF file, whose weights are quantized"),
        (b"PK\x03\x04" + bytes(64), "a pickled checkpoint under another name"),
        (b"\x80\x02}q\x00" + bytes(64), "a pickled checkpoint under another name"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a pointer of Git LFS"),
        (b"", "not a whole safetensors file"),
        (b"\x02" + bytes(7) + b"[]", "its header is no JSON object"),
        (b"\x10" + bytes(7) + b'{"a": {"dtype": ', "not a whole safetensors file"),
        (b"\x08" + bytes(7) + b'{"a": 3}', "not a whole safetensors file"),
        (b"\xff" * 8, "it would have a header of 18446744073709551615 bytes"),
    ],
)
def test_a_file_that_is_no_safetensors_is_called_what_it_is(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    for read in (lambda: header(tmp_path / "model.safetensors"), lambda: weights_of(tmp_path).stored()):
        with pytest.raises(ArtifactError, match=said):
            read()


def test_a_file_whose_data_are_cut_off_is_found_by_its_header(tmp_path: Path) -> None:
    save_file(A, tmp_path / "a.safetensors")
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="its data are not as long as its header says"):
        header(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2])  # fmt: skip
def test_floats_of_every_kind_are_read_as_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    given = torch.tensor([0.0, 1.0, -1.5, 2.0**-6]).to(dtype)
    save_file({"a": given, "n": torch.arange(2)}, tmp_path / "a.safetensors")
    found = read_weights([tmp_path / "a.safetensors"])
    assert found["a"].dtype == torch.float32 and found["n"].dtype == torch.int64
    assert torch.equal(found["a"].double(), given.double()) and header(tmp_path / "a.safetensors")["a"].floats


def test_every_number_of_float8_is_widened_exactly() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for dtype, bits, bias in ((torch.float8_e4m3fn, 3, 7), (torch.float8_e5m2, 2, 15)):
        exponent, fraction = (codes.int() % 128) >> bits, codes.int() % 2**bits
        scaled = torch.where(exponent > 0, 2**bits + fraction, fraction) * 2.0 ** (exponent.clamp(min=1) - bias - bits)
        expected, found = torch.where(codes >= 128, -scaled, scaled), as_float32(codes.view(dtype))
        finite = found.isfinite()
        assert torch.equal(found[finite].double(), expected[finite].double()) and int(finite.sum()) > 245
