"""Samples as pictures: pixels, many in one sheet, PNG files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def pixels(samples: np.ndarray, limit: float | None = 1.0) -> np.ndarray:
    """(N,H,W,C) uint8 of images (N,C,H,W) within +-`limit`; of latents, which have none, each scaled by its own largest
    number. A sample of two dims is a grey picture with a line for its first."""
    import numpy as np

    values = samples.astype(np.float64)
    if values.ndim == 3:
        values = values[:, None]
    if limit is None:
        values /= np.maximum(np.abs(values).max((1, 2, 3), keepdims=True), 1e-12)
    else:
        values /= limit
    return np.rint((values + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)


def sheet(images: np.ndarray) -> np.ndarray:
    """All images (N,H,W,C) in one, as nearly square as it goes, row by row; cells left over are white."""
    import numpy as np

    n, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    cells = np.full((rows * columns, height, width, channels), 255, np.uint8)
    cells[:n] = images
    grid = cells.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return grid.reshape(rows * height, columns * width, channels)


def png(image: np.ndarray) -> bytes:
    """PNG file of (H,W,C) uint8, C 1 or 3; of more channels (a latent) the first three."""
    from PIL import Image

    shown = image[:, :, 0] if image.shape[2] < 3 else image[:, :, :3]
    out = io.BytesIO()
    Image.fromarray(shown.copy()).save(out, format="PNG")
    return out.getvalue()
