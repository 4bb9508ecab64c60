"""Hostile ONNX files: each rule has a file that breaks it, and random damage is an ArtifactError or harmless."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from optimize.diffusion.backend import open_runner
from optimize.errors import ArtifactError
from optimize.onnx import check
from optimize.onnx.check import check_onnx
from optimize.onnx.rules import examine

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
OPSET = [helper.make_opsetid("", 18)]


def weight(name: str = "w", dims: tuple[int, ...] = (4, 4), value: Any = None) -> TensorProto:
    array = np.linspace(0, 1, int(np.prod(dims)), dtype=np.float32).reshape(dims) if value is None else value
    return numpy_helper.from_array(array, name)


def network(**changes: Any) -> onnx.ModelProto:
    """x (B,4) -> x w + 1, with an If around a Relu."""
    relu = helper.make_graph([helper.make_node("Relu", ["y"], ["r"])], "then", [], [info("r", FLOAT, ["B", 4])])
    same = helper.make_graph([helper.make_node("Identity", ["y"], ["s"])], "else", [], [info("s", FLOAT, ["B", 4])])
    nodes = changes.pop("nodes", None) or [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="product"),
        helper.make_node("Add", ["p", "one"], ["y"], name="sum"),
        helper.make_node("If", ["c"], ["out"], then_branch=relu, else_branch=same),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [info("x", FLOAT, ["B", 4])],
        [info("out", FLOAT, changes.pop("out", ["B", 4]))],
        [weight(), weight("one", (4,)), numpy_helper.from_array(np.array(True), "c"), *changes.pop("weights", [])],
    )
    return helper.make_model(graph, **{"opset_imports": OPSET, "ir_version": 10, **changes})


def info(name: str, kind: int, dims: list[Any]) -> Any:
    return helper.make_tensor_value_info(name, kind, dims)


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(folder: Path, model: onnx.ModelProto, said: str) -> None:
    path = written(folder, model)
    before = sorted(os.listdir(folder))
    with pytest.raises(ArtifactError) as error:
        examine(path)
    assert said in str(error.value) and str(path) in str(error.value)
    assert sorted(os.listdir(folder)) == before  # nothing half-written


def external(folder: Path, location: str, **entries: Any) -> onnx.ModelProto:
    """The network with its weight (64 bytes) in an external file."""
    model = network()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    (folder / "w.data").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    return model


def test_a_whole_file_passes_and_its_external_files_are_named(tmp_path: Path) -> None:
    assert examine(written(tmp_path, network())) == []
    assert examine(written(tmp_path, external(tmp_path, "w.data"))) == ["w.data"]
    assert examine(written(tmp_path, external(tmp_path, "./w.data", offset=0, length=64))) == ["w.data"]


def test_a_truncated_file_at_any_length_is_refused(tmp_path: Path) -> None:
    content, path = network().SerializeToString(), tmp_path / "model.onnx"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(ArtifactError, match=r"model.onnx"):
            examine(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04hello", b"PK\x03\x04" + bytes(100), b"\xff" * 1000, b"{}", bytes(64)]
)
def test_what_is_no_protobuf_or_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"not a whole ONNX file|no graph with an output"):
        examine(path)


@pytest.mark.parametrize(
    ("location", "entries", "said"),
    [
        ("../w.data", {}, 'allowed is a relative path inside the model\'s folder, without ".."'),
        ("a/../../w.data", {}, "allowed is a relative path"),
        ("/etc/passwd", {}, "allowed is a relative path"),
        ("..\\w.data", {}, "allowed is a relative path"),
        ("", {}, "allowed is a relative path"),
        ("gone.data", {}, "no such file in"),
        (".", {}, "no such file in"),
        ("link.data", {}, "is a symbolic link. Put the file itself there"),
        ("linked/w.data", {}, "is a symbolic link"),
        ("w.data", {"offset": 1}, "bytes 1 to 65 of a file of 64"),
        ("w.data", {"offset": -4}, "bytes -4 to 60 of a file of 64"),
        ("w.data", {"offset": 2**63}, "of a file of 64: truncated"),
        ("w.data", {"length": 32}, "its dims need 64 bytes, length is 32"),
        ("w.data", {"length": "all"}, "must be whole numbers"),
        ("w.data", {"offset": "0x10"}, "must be whole numbers"),
    ],
)
def test_external_data_cannot_leave_the_folder_or_lie_beyond_its_file(
    tmp_path: Path, location: str, entries: dict[str, Any], said: str
) -> None:
    folder, outside = tmp_path / "model", tmp_path / "w.data"
    folder.mkdir()
    outside.write_bytes(bytes(64))
    (folder / "link.data").symlink_to(outside)
    (folder / "linked").symlink_to(tmp_path)
    refused(folder, external(folder, location, **entries), said)


def test_external_data_with_a_second_name_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    model = external(tmp_path / "model", "w.data")
    (tmp_path / "elsewhere").hardlink_to(tmp_path / "model" / "w.data")
    refused(tmp_path / "model", model, "the file has 2 names (hard links), and may be another program's. Put a copy")


def test_external_data_named_twice_is_refused(tmp_path: Path) -> None:
    model = external(tmp_path, "w.data")
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    refused(tmp_path, model, "stands there twice")


def test_external_data_of_a_tensor_inside_a_subgraph_is_looked_at_as_well(tmp_path: Path) -> None:
    model = network()
    inner = model.graph.node[2].attribute[0].g.initializer.add()
    inner.CopyFrom(external(tmp_path, "/etc/passwd").graph.initializer[0])
    refused(tmp_path, model, "allowed is a relative path")
    hidden = network()
    hidden.graph.node[0].attribute.add(name="x", type=4).t.CopyFrom(inner)
    refused(tmp_path, hidden, "allowed is a relative path")


def test_a_cyclic_graph_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("Identity", ["b"], ["out"])]  # fmt: skip
    refused(tmp_path, network(nodes=nodes), "topologically sorted")


def call(name: str, source: str, result: str) -> Any:
    return helper.make_node(name, [source], [result], domain="local")


def function(name: str, body: list[Any]) -> Any:
    return helper.make_function("local", name, ["a"], ["z"], body, OPSET + LOCAL)


LOCAL = [helper.make_opsetid("local", 1)]


def test_functions_that_call_themselves_are_refused(tmp_path: Path) -> None:
    one, two = function("one", [call("two", "a", "z")]), function("two", [call("one", "a", "z")])
    model = network(nodes=[call("one", "x", "out")], functions=[one, two], opset_imports=OPSET + LOCAL)
    refused(tmp_path, model, "calls itself")


def test_functions_that_unfold_into_billions_of_nodes_are_refused(tmp_path: Path) -> None:
    bombs = [function("f0", [helper.make_node("Relu", ["a"], ["z"])])]
    for level in range(1, 12):
        chain = [call(f"f{level - 1}", f"v{i}" if i else "a", "z" if i == 9 else f"v{i + 1}") for i in range(10)]
        bombs.append(function(f"f{level}", chain))
    model = network(nodes=[call("f11", "x", "out")], functions=bombs, opset_imports=OPSET + LOCAL)
    refused(tmp_path, model, "nodes; at most 2000000 are opened")
    fine = network(nodes=[call("f3", "x", "out")], functions=bombs[:4], opset_imports=OPSET + LOCAL)
    assert examine(written(tmp_path, fine)) == []


def test_a_nesting_bomb_is_refused(tmp_path: Path) -> None:
    deep = helper.make_graph([helper.make_node("Identity", ["x"], ["out"])], "g", [], [info("out", FLOAT, ["B", 4])])
    for _ in range(17):
        node = helper.make_node("If", ["c"], ["out"], then_branch=deep)
        deep = helper.make_graph([node], "g", [], [info("out", FLOAT, ["B", 4])])
    refused(tmp_path, network(nodes=list(deep.node)), "nested deeper than 16")


def test_nesting_deeper_than_any_parser_goes_is_refused(tmp_path: Path) -> None:
    content = b""
    for _ in range(3000):  # a graph (field 6) in an attribute (field 5) of a node (field 1), over and over
        for field in (6, 5, 1):
            content = bytes([field << 3 | 2]) + varint(len(content)) + content
    path = tmp_path / "model.onnx"
    path.write_bytes(bytes([7 << 3 | 2]) + varint(len(content)) + content)
    with pytest.raises(ArtifactError, match="not a whole ONNX file"):
        examine(path)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


@pytest.mark.parametrize(("changes", "said"), [
    ({"opset_imports": [helper.make_opsetid("", 9999)]}, "opset 9999; allowed are 7 to"),
    ({"opset_imports": [helper.make_opsetid("", 3)]}, "opset 3; allowed are 7 to"),
    ({"opset_imports": [helper.make_opsetid("", -1)]}, "opset -1; allowed are 7 to"),
    ({"opset_imports": [helper.make_opsetid("ai.onnx.ml", 3)]}, "imports no ONNX opset"),
    ({"ir_version": 9999}, "IR version 9999; allowed are 4 to"),
    ({"ir_version": 0}, "IR version 0; allowed are 4 to"),
    ({"opset_imports": [*OPSET, helper.make_opsetid("evil.ops", 1)]}, 'operators of domain "evil.ops" need code from elsewhere'),
])  # fmt: skip
def test_versions_and_domains_that_are_not_known_are_refused_with_those_that_are(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    refused(tmp_path, network(**changes), said)


def test_a_custom_operator_is_refused_even_where_its_domain_is_not_imported(tmp_path: Path) -> None:
    node = helper.make_node("Backdoor", ["x"], ["out"], domain="evil.ops")
    refused(tmp_path, network(nodes=[node]), 'domain "evil.ops"')
    hides = [function("f", [helper.make_node("Backdoor", ["a"], ["z"], domain="evil.ops")])]
    inside = network(nodes=[call("f", "x", "out")], functions=hides, opset_imports=OPSET + LOCAL)
    refused(tmp_path, inside, 'domain "evil.ops"')


def test_an_unknown_operator_of_onnx_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, network(nodes=[helper.make_node("Relux", ["x"], ["out"])]), "No Op registered for Relux")


@pytest.mark.parametrize(("dims", "said"), [
    ((4, 5), "need 80 bytes, the file holds 64"),
    ((2**31, 2**31), "a tensor has at most"),
    ((2**62, 4), "a tensor has at most"),
    ((2**40, 2**40, 0), "need 0 bytes, the file holds 64"),
    ((-1, 4), "negative dims"),
])  # fmt: skip
def test_a_tensor_whose_dims_are_not_what_is_stored_is_refused(
    tmp_path: Path, dims: tuple[int, ...], said: str
) -> None:
    model = network()
    model.graph.initializer[0].dims[:] = dims
    refused(tmp_path, model, said)


def test_typed_fields_are_counted_as_raw_ones_are(tmp_path: Path) -> None:
    kinds = {FLOAT: 1.5, INT64: 3, TensorProto.FLOAT16: 1.5, TensorProto.DOUBLE: 1.5, TensorProto.UINT64: 3,
             TensorProto.INT8: -3, TensorProto.INT4: 3, TensorProto.COMPLEX64: 1 + 2j, TensorProto.BFLOAT16: 1.5}  # fmt: skip
    for kind, value in kinds.items():
        for raw in (False, True):
            given = helper.make_tensor("k", kind, [5], [value] * 5)
            if raw:
                given = numpy_helper.from_array(numpy_helper.to_array(given), "k")
            assert examine(written(tmp_path, network(weights=[given]))) == [], (kind, raw)
            given.dims[:] = [9]
            refused(tmp_path, network(weights=[given]), "its dims [9] need")


def test_a_type_that_onnx_does_not_have_is_refused(tmp_path: Path) -> None:
    model = network()
    model.graph.initializer[0].data_type = 77
    refused(tmp_path, model, "data type 77 is none that ONNX has")


def test_values_of_a_size_no_machine_holds_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, network(out=[2**40, 4]), "a tensor has at most")
    shape = numpy_helper.from_array(np.array([2**20, 2**20], np.int64), "shape")
    bomb = [helper.make_node("ConstantOfShape", ["shape"], ["big"]), helper.make_node("ReduceSum", ["big"], ["s"]),
            helper.make_node("Add", ["x", "s"], ["out"])]  # fmt: skip
    refused(tmp_path, network(nodes=bomb, weights=[shape]), "a tensor has at most")


def test_text_that_is_no_text_is_refused(tmp_path: Path) -> None:
    content = (
        network().SerializeToString().replace(b"product", b"\xff\xfe\xfd\xfcuct").replace(b"MatMul", b"Mat\xff\xfel")
    )
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"not a whole ONNX file|onnx refuses it"):
        examine(path)


@pytest.mark.parametrize("seed", range(4))
def test_random_damage_is_an_artifact_error_or_leaves_a_model_that_every_reader_takes(
    tmp_path: Path, seed: int
) -> None:
    random = np.random.default_rng(seed)
    content, folder = network().SerializeToString(), tmp_path / "artifact"
    (folder / "onnx").mkdir(parents=True)
    path, passed = folder / "onnx" / "model.onnx", 0
    for _ in range(120):
        damaged = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 4)):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            examine(path)
        except ArtifactError:
            continue
        passed += 1
        assert ir.load(path).graph.outputs
    assert 0 < passed < 120  # some flips only change a weight; most break something


def checked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examine in this process: the same rules, without a new process for every file."""
    monkeypatch.setattr(check, "_isolated", lambda path, size: tuple(examine(path)))


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_runner_opens_a_damaged_file_or_says_so(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_here(monkeypatch)
    random = np.random.default_rng(7)
    content, opened = network().SerializeToString(), 0
    for turn in range(60):
        damaged = bytearray(content)
        damaged[random.integers(0, len(content))] ^= 1 << random.integers(0, 8)
        folder = tmp_path / str(turn)
        (folder / "onnx").mkdir(parents=True)
        (folder / "onnx" / "model.onnx").write_bytes(damaged)
        try:
            with open_runner(folder, backend, threads=1):
                opened += 1
        except ArtifactError:
            continue
    assert 0 < opened < 60


def test_a_file_is_looked_at_in_a_process_of_its_own_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, external(tmp_path, "w.data"))
    assert check_onnx(path) == ("w.data",)
    monkeypatch.setattr(check.subprocess, "run", lambda *a, **k: pytest.fail("looked at again"))
    assert check_onnx(path) == ("w.data",)
    with pytest.raises(ArtifactError, match=r"no such file. Give an ONNX file"):
        check_onnx(tmp_path / "gone.onnx")


def test_errors_cross_the_process(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="allowed is a relative path"):
        check_onnx(written(tmp_path, external(tmp_path, "../w.data")))


def answering(program: str) -> Callable[..., Any]:
    import subprocess
    import sys

    real = subprocess.run
    return lambda command, **options: real([sys.executable, "-c", program], **options)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("import os; os.kill(os.getpid(), 11)", r"onnx crashed or ran out of memory on it \(signal 11\)"),
        ("raise MemoryError('too much')", r"\(exit code 1\). It is not opened. MemoryError: too much"),
        ("import time; time.sleep(60)", "looking at it took more than 1 s"),
    ],
)
def test_a_crash_or_a_hang_of_the_parser_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    monkeypatch.setattr(check, "SECONDS", 1)
    monkeypatch.setattr(check.subprocess, "run", answering(program))
    with pytest.raises(ArtifactError, match=said):
        check_onnx(written(tmp_path, network()))


def test_a_missing_onnx_is_said_with_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optimize.errors import EnvironmentLacks

    monkeypatch.setattr(check.subprocess, "run", answering('print(\'{"lacks": "No module named onnx"}\')'))
    with pytest.raises(EnvironmentLacks, match=r"No module named onnx. Install it: pip install onnx"):
        check_onnx(written(tmp_path, network()))


def test_a_process_takes_what_another_looked_at_until_the_file_changes(tmp_path: Path, monkeypatch: Any) -> None:
    path = written(tmp_path, network())
    check_onnx(path)
    seen = json.loads(json.dumps([entry for entry in check.passed() if entry[0][0] == str(path)]))
    monkeypatch.setattr(check, "_passed", {})
    monkeypatch.setattr(check, "_isolated", lambda *_: pytest.fail("looked at again"))
    check.vouch(seen)
    assert check_onnx(path) == ()
    monkeypatch.setattr(check, "_isolated", lambda *_: ("looked at again",))
    written(tmp_path, network(doc_string="changed"))
    assert check_onnx(path) == ("looked at again",)
