"""Conditions from a file and stand-ins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optimize.diffusion.conditions import read, rows
from optimize.diffusion.denoiser import Conditioning
from optimize.diffusion.network import TensorSpec
from optimize.errors import ArtifactError, UserError

ABOUT = Conditioning(
    "tensors",
    tensors=(
        TensorSpec("text", ("B", "L", 2), sizes=(("L", 3),)),
        TensorSpec("sizes", ("B", 2), fill=(5.0, 6.0)),
        TensorSpec("ids", ("L", 3), sizes=(("L", 4),), fill="grid"),
        TensorSpec("class_labels", ("B",), "int64"),
    ),
    nulled=("text",),
)


def test_stand_ins_depend_on_their_own_seed_alone() -> None:
    both, second = rows(ABOUT, {}, [3, 8]), rows(ABOUT, {}, [8])
    assert both["text"].shape == (2, 3, 2) and not torch.equal(both["text"][0], both["text"][1])
    assert torch.equal(both["text"][1], second["text"][0])
    assert both["sizes"].tolist() == [[5.0, 6.0]] * 2 and both["ids"].shape == (4, 3)
    assert both["class_labels"].tolist() == [0, 0] and both["class_labels"].dtype == torch.int64


def test_given_rows_are_taken_in_turn_and_shared_ones_as_they_are() -> None:
    given = {"text": torch.arange(12.0).view(2, 3, 2), "ids": torch.ones(9, 3), "null.text": torch.zeros(1, 3, 2)}
    found = rows(ABOUT, given, [0, 1, 5])
    assert torch.equal(found["text"], given["text"][[0, 1, 1]])
    assert found["ids"] is given["ids"] and torch.equal(found["null.text"], given["null.text"])


def test_a_file_of_conditions_is_read_in_the_inputs_dtypes(tmp_path: Path) -> None:
    save_file({"text": torch.ones(5, 7, 2).half(), "null.text": torch.zeros(1, 7, 2)}, tmp_path / "c.safetensors")
    found = read(tmp_path / "c.safetensors", ABOUT)
    assert found["text"].dtype == torch.float32 and found["text"].shape == (5, 7, 2)


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"txt": torch.ones(1, 3, 2)}, r'this network is not told txt. Allowed: class_labels, .* Did you mean "text"'),
        ({"text": torch.ones(1, 3, 4)}, r"text has shape \(1, 3, 4\), \(B, L, 2\) is needed"),
        ({"text": torch.ones(0, 3, 2)}, "text has shape"),
        ({"null.text": torch.ones(3, 2)}, "null.text has shape"),
        ({"text": torch.full((1, 3, 2), float("nan"))}, "text holds numbers that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], complaint: str) -> None:
    save_file(tensors, tmp_path / "c.safetensors")
    with pytest.raises(UserError, match=complaint):
        read(tmp_path / "c.safetensors", ABOUT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"c\.safetensors: no such file"):
        read(tmp_path / "c.safetensors", ABOUT)
