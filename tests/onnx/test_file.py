"""One file, or one more beside it for the weights; room is asked for before anything is written."""

from __future__ import annotations

import errno
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from optimize.diffusion.network import TensorSpec
from optimize.errors import EnvironmentLacks
from optimize.exporters.onnx import Onnx
from optimize.onnx.file import require_room, save, weight_bytes
from optimize.onnx.graph import later, narrow_in_place, put


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


@pytest.mark.parametrize(
    ("lacking", "message"),
    [
        (
            ("optimize.onnx.file.available", 10**6),
            r"takes about 0\.1 GB of memory, 0\.0 GB are free",
        ),
        (("shutil.disk_usage", SimpleNamespace(free=10**6)), r"takes about 0\.1 GB of disk, 0\.0 GB are free"),
    ],
)
def test_an_export_without_room_is_one_clear_error_and_leaves_nothing(
    lacking: tuple[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lacking[0], lambda *place: lacking[1])
    inputs = (TensorSpec("input", ("B", 8)),)
    with pytest.raises(EnvironmentLacks, match=message):
        Onnx(exporter="torchscript").export_network(torch.nn.Linear(8, 8), inputs, tmp_path / "made")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_file_that_could_not_be_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> ir.TensorProtocol:
        raise OSError(errno.ENOSPC, "No space left on device")

    broken = graph()
    weight = broken.graph.initializers["w"]
    weight.const_value = ir.LazyTensor(full, ir.DataType.FLOAT, ir.Shape([1000]), name="w")
    with pytest.raises(EnvironmentLacks, match="disk is full"):
        save(broken, tmp_path / "model.onnx", embedded=3999)
    assert not list(tmp_path.iterdir())

    def half(proto: onnx.ModelProto, path: Path, **options: Any) -> None:
        Path(path).write_bytes(proto.SerializeToString()[:100])
        full()

    monkeypatch.setattr(onnx, "save", half)
    with pytest.raises(EnvironmentLacks, match="disk is full"):
        save(graph(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_that_onnx_refuses_is_not_left_behind(tmp_path: Path) -> None:
    broken = graph()
    broken.graph[0].op_type = "NoSuchOperator"
    with pytest.raises(onnx.checker.ValidationError, match="NoSuchOperator"):
        save(broken, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_earlier_file_is_replaced_whole(tmp_path: Path) -> None:
    save(graph(), tmp_path / "model.onnx", embedded=3999)
    size = save(graph(), tmp_path / "model.onnx", embedded=3999)
    assert size == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert sorted(f.name for f in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    save(graph(), tmp_path / "model.onnx")
    assert [f.name for f in tmp_path.iterdir()] == ["model.onnx"]  # no weights that nothing reads


def test_weights_turned_and_narrowed_are_read_one_at_a_time_when_they_are_written(tmp_path: Path) -> None:
    held, most = set(), 0

    def numbers(i: int) -> np.ndarray:
        nonlocal most
        made = np.full((64, 32), i, np.float32)
        held.add(i)
        weakref.finalize(made, held.discard, i)
        most = max(most, len(held))
        return made

    model = graph()
    for i in range(8):
        weight = later(model, f"w{i}", partial(numbers, i), ir.DataType.FLOAT, [64, 32])
        copied = put(model, "Identity", [weight], f"y{i}")
        copied.shape, copied.type = ir.Shape([64, 32]), ir.TensorType(ir.DataType.FLOAT16)
        model.graph.outputs.append(copied)
        narrow_in_place(weight, ir.DataType.FLOAT16)
    assert most == 0  # none was made yet
    save(model, tmp_path / "model.onnx", embedded=0)
    assert most <= 2 and not held
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "model.onnx").graph.initializer}
    assert [float(stored[f"w{i}"][3, 5]) for i in range(8)] == list(range(8))
