"""What an ONNX file says: inputs, bytes, and the format each layer is to be computed in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto as T
from onnx import helper
from support.engines import CONV, quantized, save

from optimize.engines.graph import read_graph
from optimize.errors import ArtifactError


def test_a_layer_between_dequantized_operands_is_int8_and_one_with_narrow_weights_alone_is_not(tmp_path: Path) -> None:
    both, a = quantized("x", "a")
    weight, w = quantized("w8", "w", of_weight=True)
    nodes = [
        *both,
        *weight,
        helper.make_node("Conv", [a, w], ["h"], pads=[1] * 4),
        helper.make_node("Conv", ["h", w], ["i"], pads=[1] * 4),
        helper.make_node("Conv", ["i", "wf"], ["y"], pads=[1] * 4),
    ]
    facts = read_graph(save(tmp_path / "m.onnx", nodes, {"w8": CONV.astype(np.int8), "wf": CONV}))
    assert facts.layers == {("Conv", "int8"): 1, ("Conv", "fp32"): 2} and facts.weights_only == 1
    assert facts.count("int8", conv=True) == 1 and facts.count("int8", conv=False) == 0
    assert facts.inputs[0].dims == ("B", 4, 8, 8) and facts.inputs[0].dtype == "float32" and facts.symbols == ("B",)
    assert facts.weight_bytes >= 144 + 576


def test_matrix_products_of_activations_and_transposed_weights_are_seen_through(tmp_path: Path) -> None:
    first, a = quantized("x", "a", kind=T.FLOAT8E4M3FN)
    second, b = quantized("x", "b", kind=T.FLOAT8E4M3FN)
    turned = helper.make_node("Transpose", [b], ["bt"], perm=[0, 1, 3, 2])
    nodes = [*first, *second, turned, helper.make_node("MatMul", [a, "bt"], ["y"])]
    assert read_graph(save(tmp_path / "m.onnx", nodes, {})).layers == {("MatMul", "fp8"): 1}


def test_weights_widened_by_a_cast_compute_in_what_they_are_cast_to(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["w16"], ["w"], to=T.FLOAT),
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4),
    ]
    assert read_graph(save(tmp_path / "m.onnx", nodes, {"w16": CONV.astype(np.float16)})).formats == {"fp32": 1}
    half = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)]
    path = save(tmp_path / "h.onnx", half, {"w": CONV.astype(np.float16)}, dtype=T.FLOAT16)
    assert read_graph(path).formats == {"fp16": 1}


def test_external_data_is_part_of_the_files_and_may_not_leave_the_folder(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    more = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0}
    path = save(tmp_path / "m.onnx", [node], {"w": CONV}, **more)
    assert set(read_graph(path).files) == {"m.onnx", "m.onnx.data"}
    held = path.read_bytes()
    path.write_bytes(held.replace(b"m.onnx.data", b"../../a.dat"))
    with pytest.raises(ArtifactError, match=r"external data at '\.\./\.\./a\.dat': allowed is a relative path inside"):
        read_graph(path)
    path.write_bytes(held)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"external data at 'm\.onnx\.data': no such file in"):
        read_graph(path)


def test_a_link_that_leaves_the_folder_is_not_followed(tmp_path: Path) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    (tmp_path / "inside").mkdir()
    more = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0}
    path = save(tmp_path / "inside" / "m.onnx", [node], {"w": CONV}, **more)
    (tmp_path / "inside" / "m.onnx.data").rename(tmp_path / "secret")
    (tmp_path / "inside" / "m.onnx.data").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match=r"m\.onnx\.data is a symbolic link\. Put the file itself there"):
        read_graph(path)


@pytest.mark.parametrize("kept", [0, 7, 300])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, kept: int) -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1] * 4)
    path = save(tmp_path / "m.onnx", [node], {"w": CONV})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"not a whole ONNX file|truncated"):
        read_graph(path)


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no such file\. Give an ONNX file"):
        read_graph(tmp_path / "m.onnx")
