"""Files of images and labels: every way to be wrong is refused with what to do, and what is right is read as it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from optimize.errors import ArtifactError, UserError
from optimize.storage import dataset
from optimize.storage.dataset import check_shape, images_in, in_memory, samples_in

LABELS = torch.arange(6) % 3


def images(n: int = 6, side: int = 4) -> torch.Tensor:
    return torch.linspace(-1, 1, n * side * side).view(n, 1, side, side)


def written(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "d.safetensors")
    return folder / "d.safetensors"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [torch.int64, torch.int32, torch.uint8])
def test_right_data_are_read_in_any_precision(tmp_path: Path, dtype: torch.dtype, whole: torch.dtype) -> None:
    found, read = images_in(written(tmp_path, images=images().to(dtype), labels=LABELS.to(whole)), "data.held_out")
    assert torch.equal(read, images().to(dtype).float()) and read.dtype == torch.float32
    assert found.shape == (6, 1, 4, 4) and (found.low, found.high) == (-1, 1)
    assert found.labels is not None and found.labels.dtype == np.int64 and found.labels.tolist() == LABELS.tolist()


def test_values_are_looked_at_in_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SLICE", 20)  # one image of 16 at a time
    seen: list[int] = []
    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda *given, **more: (seen.append(given[2]), fromfile(*given, **more))[1])
    spoiled = images().index_fill_(0, torch.tensor([4]), float("nan"))
    with pytest.raises(UserError, match="images hold NaN or infinities, first in row 4"):
        samples_in(written(tmp_path, images=spoiled), "data.training")
    assert seen == [16] * 5


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"images": (images() + 1) * 127.5}, r"lie in \[0, 255\], as 8-bit pictures do; .* images / 127.5 - 1"),
    (
        {"images": ((images() + 1) * 127.5).to(torch.uint8)},
        r"0 to 255 \(uint8\). Convert them: images.float\(\) / 127.5 - 1",
    ),
    ({"images": (images() + 1) / 2}, r"lie in \[0, 1\], so black would be grey; .* images \* 2 - 1"),
    ({"images": (images() - 1) / 2}, r"lie in \[-1, 0\], so white would be grey; .* images \* 2 \+ 1"),
    ({"images": images() * 3}, r"lie in \[-3, 3\]; scale them to \[-1, 1\]"),
    ({"images": images() * float("nan")}, "hold NaN or infinities, first in row 0"),
    ({"images": images() / 0}, "hold NaN or infinities, first in row 0"),
    ({"latents": images() / 0}, "latents hold NaN or infinities"),
    ({"images": torch.full((6, 1, 4, 4), -1.0)}, "every value of images is -1"),
    ({"latents": torch.zeros(6, 1, 4, 4)}, "every value of latents is 0"),
    ({"images": images().long()}, "images are stored as I64. Allowed: F64, F32, F16, BF16"),
    ({"images": images().to(torch.complex64)}, "images are stored as C64"),
    ({"images": images()[:, 0]}, r"images have shape \(6, 4, 4\); \(N,C,H,W\) is needed"),
    ({"images": images()[:0]}, r"images have shape \(0, 1, 4, 4\): there is nothing in them"),
    ({"latents": torch.zeros(6)}, r"latents have shape \(6,\); \(N,C,H,W\), \(N,C,L\) or \(N,L,C\) is needed"),
    ({"images": images(), "latents": images()}, "holds both images and latents"),
    ({"pixels": images(), "label": LABELS}, "has no tensor `images` .* it holds label, pixels"),
    ({"images": images(), "labels": LABELS.float()}, "labels are stored as F32; whole numbers are needed"),
    ({"images": images(), "labels": LABELS[:5]}, r"labels have shape \(5,\) for 6 samples; \(6,\) is needed"),
    ({"images": images(), "labels": LABELS[:, None]}, r"labels have shape \(6, 1\) for 6 samples"),
    ({"images": images(), "labels": LABELS - 1}, "a label is -1. Labels count from 0"),
]


@pytest.mark.parametrize(("tensors", "says"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_data_is_said_with_what_to_do(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"data.training: .*d.safetensors.*{says}"):
        samples_in(written(tmp_path, **tensors), "data.training")


def test_tensors_in_memory_go_the_same_way() -> None:
    with pytest.raises(UserError, match=r"context.data: images lie in \[0, 255\], as 8-bit pictures do"):
        in_memory((images() + 1) * 127.5, None, "context.data")
    with pytest.raises(UserError, match=r"context.data: images are whole numbers in 0 to 255 \(uint8\)"):
        in_memory(images().to(torch.uint8), None, "context.data")
    with pytest.raises(UserError, match="labels are stored as BF16; whole numbers"):
        in_memory(images(), LABELS.bfloat16(), "context.data")
    with pytest.raises(UserError, match=r"context.data: images is no tensor. Give one of torch's"):
        in_memory(images().numpy(), None, "context.data")  # type: ignore[arg-type]


def test_a_file_that_is_none_is_called_what_it_is(tmp_path: Path) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "x.png")
    Image.new("L", (4, 4)).save(tmp_path / "x.jpg")
    np.savez(tmp_path / "x.npz", images=np.zeros(3))
    np.save(tmp_path / "x.npy", np.zeros(3))
    torch.save({"images": images()}, tmp_path / "x.pt")
    (tmp_path / "x.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    whole = written(tmp_path, images=images()).read_bytes()
    (tmp_path / "torn").write_bytes(whole[:-8])
    os.mkfifo(tmp_path / "pipe")
    for name, says in {
        "x.png": "is a PNG picture. Save it as safetensors: images",
        "x.jpg": "is a JPEG picture",
        "x.npz": "is a zip archive, such as numpy's .npz",
        "x.npy": "is an array of numpy's",
        "x.pt": "zip archive, such as .* a pickled checkpoint",
        "x.txt": "not a whole safetensors file",
        "empty": "not a whole safetensors file",
        "torn": "not a whole safetensors file",
        "pipe": "not an ordinary file",
        ".": "is a folder; one file is needed",
        "none": "no such file",
    }.items():
        with pytest.raises(ArtifactError, match=f"data.held_out: .*{says}"):
            samples_in(tmp_path / name, "data.held_out")


@pytest.mark.parametrize(
    ("shape", "latents", "says"),
    [
        ((3, 8, 8), False, r"images of shape \(1, 4, 4\) are given, and this network works on images of shape \(3, 8, 8\)"),
        ((4, 1, 4), False, r"channels are last: give images.permute\(0, 3, 1, 2\)"),
        ((4, 8, 8), True, r"works on latents of shape \(4, 8, 8\)\. Encode them with the model's VAE, .* save those as `latents`"),
    ],
)  # fmt: skip
def test_samples_of_another_size_than_the_networks_are_refused(shape: Any, latents: bool, says: str) -> None:
    found = in_memory(images(), None, "data.training")
    check_shape(found, (1, 4, 4), latents=False)
    with pytest.raises(UserError, match=says):
        check_shape(found, shape, latents)
