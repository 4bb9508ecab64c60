"""An ONNX graph as files: one, or with one more beside it for the weights where they exceed protobuf's 2 GB.

Room on the disk and in memory is asked for before anything is written, and a written file is checked by its path.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optimize.errors import EnvironmentLacks
from optimize.hardware.memory import available, gb
from optimize.storage.disk import writing

if TYPE_CHECKING:
    import onnx_ir as ir

EMBEDDED_BYTES = 2_000_000_000  # above this the weights go into a file of their own
GRAPH_BYTES = 64 * 2**20  # more than any graph without its weights took
COPIES = 3  # of embedded weights in memory while protobuf writes them: the message, its text, the file's buffer


def save(graph: ir.Model, path: Path, embedded: int = EMBEDDED_BYTES) -> int:
    """Write and check `path`, with `<name>.data` beside it where the weights exceed `embedded` bytes; returns the bytes of
    both. They are written in a folder of their own and moved when whole. Raises EnvironmentLacks, before writing, where
    disk or memory will not do."""
    import onnx
    import onnx_ir as ir

    size = weight_bytes(graph)
    require_room(path.parent, size, COPIES * size if size <= embedded else _largest(graph))
    beside = f"{path.name}.data" if size > embedded else None
    with writing(path), _scratch(path.parent) as made:
        ir.save(graph, Path(made) / path.name, external_data=beside)
        onnx.checker.check_model(str(Path(made) / path.name), full_check=True)
        written = sorted(Path(made).iterdir(), reverse=True)  # the weights before the graph that names them
        size = sum(f.replace(path.with_name(f.name)).stat().st_size for f in written)
    if beside is None:
        path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # an earlier graph's weights
    return size


@contextmanager
def _scratch(folder: Path) -> Iterator[str]:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as made:
        yield made


def weight_bytes(graph: ir.Model) -> int:
    """Bytes of all initializers."""
    return sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)


def _largest(graph: ir.Model) -> int:
    """Bytes of the largest initializer twice: as it is made, and as it is written."""
    return 2 * max((v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None), default=0)  # fmt: skip


def require_room(folder: Path, disk: int, memory: int) -> None:
    """Raises EnvironmentLacks where the disk of `folder` or this machine's memory has less than these bytes free, and
    what a graph takes; see `optimize.hardware.memory.available`."""
    there = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())
    free, unused = shutil.disk_usage(there).free, available()
    for what, needed, has, cure in (
        ("disk", disk, free, f"Free space on the disk of {there}, or export in 16 bit"),
        ("memory", memory, unused, "Close other programs, or export in 16 bit"),
    ):
        if has < needed + GRAPH_BYTES:
            raise EnvironmentLacks(
                f"onnx: writing the graph takes about {gb(needed + GRAPH_BYTES)} of {what}, {gb(has)} are free. {cure}."
            )
