"""`onnx/model.onnx` of an artifact folder, safe to parse, and a backend's own errors about it as one clear error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from optimize.errors import ArtifactError
from optimize.onnx.check import check_onnx
from optimize.storage.trust import MANIFEST, checked

ONNX_FILE = "onnx/model.onnx"


def onnx_file(folder: Path) -> Path:
    """`onnx/model.onnx` of an artifact folder, safe to parse: it and its external files are those of the manifest, where
    the folder has one, and keep the rules of `optimize.onnx.check`. ArtifactError otherwise, or where it was not exported."""
    path = folder / ONNX_FILE
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file. Export the artifact first (exports: [onnx]).")
    named = os.path.lexists(folder / MANIFEST)
    if named:
        checked(folder, ONNX_FILE)
    for name in check_onnx(path):
        if named:
            checked(folder, (PurePosixPath(ONNX_FILE).parent / name).as_posix())
    return path


@contextmanager
def parsing(path: Path, backend: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Inside the block, a backend's own errors about a file become one ArtifactError."""
    try:
        yield
    except errors as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ArtifactError(f"{path}: {backend} cannot open it: {first[:300]} Export it again.") from error
