"""Sample grids: a row a variant, a column a seed, written as PNG."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from optimize.errors import UserError
from optimize.storage.commit import write_bytes_atomically

if TYPE_CHECKING:
    from torch import Tensor

CELL, GAP, FONT = 48, 4, 15  # pixels: least side of a cell, space between cells, label height
Images = Mapping[str, "Tensor | np.ndarray"]


def grid(images_by_name: Images, path: Path, columns: int = 20) -> Path:
    """Write `grid_png` to `path`, which is returned."""
    write_bytes_atomically(path, grid_png(images_by_name, columns))
    return path


def grid_png(images_by_name: Images, columns: int = 20) -> bytes:
    """A PNG file of the first `columns` images of every name, (N,C,H,W) in [-1, 1] with C 1 or 3, one labelled row a name.

    Small images are enlarged by a whole factor without smoothing.
    """
    from PIL import Image, ImageDraw, ImageFont

    rows = {name: to_pixels(images[:columns]) for name, images in images_by_name.items()}
    _check(rows)
    font = ImageFont.load_default(FONT)
    widest = max(font.getlength(name) for name in rows)
    left, (height, width) = int(widest) + 4 * GAP, next(iter(rows.values())).shape[1:3]
    count = max(len(r) for r in rows.values())
    size = (left + count * (width + GAP), GAP + len(rows) * (height + GAP))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, cells) in enumerate(rows.items()):
        top = GAP + i * (height + GAP)
        draw.text((2 * GAP, top + height / 2), name, fill="black", font=font, anchor="lm")
        for j, cell in enumerate(cells):
            canvas.paste(Image.fromarray(cell), (left + j * (width + GAP), top))
    made = io.BytesIO()
    canvas.save(made, format="PNG")
    return made.getvalue()


def to_pixels(images: Tensor | np.ndarray, cell: int = CELL) -> np.ndarray:
    """(N,H',W',3) uint8 from (N,C,H,W) in [-1, 1]; H' is the least multiple of H that reaches `cell`."""
    values = np.asarray(images, dtype=np.float64)
    if values.ndim != 4 or values.shape[1] not in (1, 3):
        raise UserError(f"grid: images of shape {values.shape}; give (N, 1 or 3, H, W) in [-1, 1]")
    pixels = np.rint((values.clip(-1, 1) + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    factor = -(-cell // pixels.shape[1])
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:3], 3)))


def _check(rows: dict[str, np.ndarray]) -> None:
    if not rows or not all(len(r) for r in rows.values()):
        raise UserError("grid: give at least one name, and at least one image under every name")
    sizes = {r.shape[1:3] for r in rows.values()}
    if len(sizes) > 1:
        raise UserError(f"grid: images of different sizes {sorted(sizes)}; a grid needs one size")
