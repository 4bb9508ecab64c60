"""One file, or one more beside it for the weights; room is asked for before anything is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from optimize.errors import EnvironmentLacks
from optimize.onnx_file import require_room, save, weight_bytes


def graph() -> ir.Model:
    """x + 1000 numbers."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1000]))
    w = ir.Value(name="w", const_value=ir.tensor(np.arange(1000, dtype=np.float32), name="w"))
    w.shape, w.type = ir.Shape([1000]), x.type
    node = ir.node("Add", [x, w])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
    inside = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 18}, name="network")
    return ir.Model(inside, ir_version=10)


def test_small_weights_stay_in_the_file(tmp_path: Path) -> None:
    size = save(graph(), tmp_path / "onnx" / "model.onnx")
    assert [f.name for f in (tmp_path / "onnx").iterdir()] == ["model.onnx"]
    assert size == (tmp_path / "onnx" / "model.onnx").stat().st_size > weight_bytes(graph()) == 4000


def test_large_weights_lie_in_one_file_beside_it_named_without_a_path(tmp_path: Path) -> None:
    size = save(graph(), tmp_path / "model.onnx", embedded=3999)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert size == sum(f.stat().st_size for f in tmp_path.iterdir())
    (stored,) = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph.initializer
    assert {e.key: e.value for e in stored.external_data}["location"] == "model.onnx.data"
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).rename(moved / name)
    loaded = onnx.numpy_helper.to_array(onnx.load(moved / "model.onnx").graph.initializer[0])
    assert np.array_equal(loaded, np.arange(1000, dtype=np.float32))


def test_too_little_disk_or_memory_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentLacks, match=r"takes about 1000000\.1 GB of disk, .* GB are free\. Free space"):
        require_room(tmp_path / "not" / "there", 10**15, 0)
    with pytest.raises(EnvironmentLacks, match=r"of memory, .* are free\. Close other programs"):
        require_room(tmp_path, 0, 10**15)
    assert not list(tmp_path.iterdir())
