"""The header of a safetensors file is read as strictly as the format's own reader reads it, without its data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from corpus.tensors import SPOILED
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from optimize.errors import ArtifactError
from optimize.storage.weights import header, metadata, read_tensors

WHOLE = [
    name
    for name in SPOILED
    if name.startswith(("without", "its largest", "a tensor too", "whole", "a value", "sides in", "one side"))
]
ODD = ["a header without tensors"]  # whole where there are no data


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "m.safetensors"
    tensors = {"a": torch.ones(3, 4), "b": torch.ones(5, dtype=torch.float16), "c": torch.zeros(0, 2)}
    save_file(tensors, path, {"format": "pt"})
    return path


@pytest.mark.parametrize("name", [n for n in SPOILED if n not in WHOLE and n != "a dtype of the same size"])
def test_what_the_formats_reader_refuses_is_refused_by_the_header_alone(file: Path, name: str) -> None:
    SPOILED[name](file)
    with pytest.raises((SafetensorError, ValueError)):
        load_file(file)
    with pytest.raises(
        ArtifactError, match=r"m\.safetensors: (not a whole safetensors file|a pickled checkpoint under)"
    ):
        header(file)


@pytest.mark.parametrize("name", [n for n in WHOLE if "NUL" not in n])
def test_what_is_whole_is_read(file: Path, name: str) -> None:
    SPOILED[name](file)
    assert {k: v.shape for k, v in header(file).items()} == {k: tuple(v.shape) for k, v in read_tensors(file).items()}


def test_every_dtype_that_torch_stores_has_its_size_here(tmp_path: Path) -> None:
    kinds = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64", "complex64", "uint16", "uint32", "uint64")  # fmt: skip
    kinds += ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
    for kind in kinds:
        save_file({"x": torch.zeros(3, 5).to(getattr(torch, kind))}, tmp_path / f"{kind}.safetensors")
        assert header(tmp_path / f"{kind}.safetensors")["x"].shape == (3, 5)


def test_a_tensor_named_twice_is_refused(file: Path) -> None:
    text = b'{"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}'
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"xx")
    with pytest.raises(ArtifactError, match='"a" stands there twice'):
        header(file)


def test_metadata_are_texts(file: Path) -> None:
    assert metadata(file) == {"format": "pt"}
