"""The exported file: names, shapes, storage, determinism and the same numbers as the torch network."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from optimize.configs import digest
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Sampler
from optimize.exporters.onnx import FILE, Onnx
from optimize.passes.quantize import Quantize
from optimize.sources.diffusers import DiffusersSource


@pytest.fixture(scope="module")
def models(tiny_folder: Path) -> dict[str, Model]:
    plain = DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=2))
    return {"fp32": plain, "int8": Quantize(samples=8, batch=8).apply(plain, Context())[0]}


@pytest.fixture(scope="module")
def exported(
    models: dict[str, Model], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, dict[str, Any]]]:
    made = {}
    for name, model in models.items():
        folder = tmp_path_factory.mktemp(name)
        made[name] = (folder / FILE, Onnx().export(model, folder, Context()))
    return made


@pytest.mark.parametrize("name", ["fp32", "int8"])
def test_inputs_have_diffusers_names_and_a_symbolic_batch(exported: dict[str, Any], name: str) -> None:
    graph = onnx.load(exported[name][0]).graph
    found = {
        v.name: (
            v.type.tensor_type.elem_type,
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
        )
        for v in [*graph.input, *graph.output]
    }
    assert found == {
        "sample": (TensorProto.FLOAT, ["B", 1, 16, 16]),
        "timestep": (TensorProto.FLOAT, ["B"]),
        "class_labels": (TensorProto.INT64, ["B"]),
        "out_sample": (TensorProto.FLOAT, ["B", 1, 16, 16]),
    }


def test_the_record_names_the_file_and_its_size(exported: dict[str, Any]) -> None:
    path, record = exported["int8"]
    assert record["file"] == FILE and record["bytes"] == path.stat().st_size
    assert record["inputs"] == ["sample", "timestep", "class_labels"] and record["output"] == "out_sample"
    assert record["int8_layers"] > 20 and record["kept_dtype"] == "fp16"
    assert exported["fp32"][1]["int8_layers"] == 0


def test_int8_weights_are_stored_as_int8_and_nothing_big_as_fp32(
    exported: dict[str, Any], models: dict[str, Model]
) -> None:
    graph = onnx.load(exported["int8"][0]).graph
    kinds = Counter()
    for tensor in graph.initializer:
        kinds[tensor.data_type] += len(tensor.raw_data)
        if tensor.data_type == TensorProto.FLOAT:
            assert tensor.name.endswith(".scale") or ".scale." in tensor.name or np.prod(tensor.dims) < 16, tensor.name
    parameters = sum(p.numel() for p in models["fp32"].module.parameters())
    assert kinds[TensorProto.INT8] > 0.7 * parameters
    assert exported["int8"][0].stat().st_size < 0.4 * exported["fp32"][0].stat().st_size


def test_every_quantized_layer_lies_between_dequantize_nodes(exported: dict[str, Any]) -> None:
    graph = onnx.load(exported["int8"][0]).graph
    made = {o: n.op_type for n in graph.node for o in n.output}
    quantized = [
        n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul") and made.get(n.input[1]) == "DequantizeLinear"
    ]
    record = exported["int8"][1]
    assert len(quantized) == record["int8_layers"] + record["int8_weights_only"]
    assert sum(made.get(n.input[0]) == "DequantizeLinear" for n in quantized) == record["int8_layers"]


def test_layers_that_share_an_input_share_its_rounding(exported: dict[str, Any]) -> None:
    nodes = Counter(n.op_type for n in onnx.load(exported["int8"][0]).graph.node)
    assert nodes["QuantizeLinear"] < exported["int8"][1]["int8_layers"]


def test_equal_models_give_equal_bytes_without_paths_or_traces(
    exported: dict[str, Any], models: dict[str, Model], tmp_path: Path
) -> None:
    Onnx().export(models["int8"].clone(), tmp_path, Context())
    data = (tmp_path / FILE).read_bytes()
    assert data == exported["int8"][0].read_bytes()
    assert b"site-packages" not in data and b".py" not in data


def test_networks_of_one_structure_are_traced_once_and_keep_their_own_weights(
    models: dict[str, Model], exported: dict[str, Any], tmp_path: Path
) -> None:
    asked: list[str] = []

    def keep(name: str, depends: dict[str, Any], write: Any) -> Path:
        folder = tmp_path / digest({"name": name, **depends})
        if not folder.exists():
            folder.mkdir()
            write(folder)
            asked.append(name)
        return folder

    for name, model in models.items():
        Onnx().export(model, tmp_path / name, Context(keep=keep))
        assert (tmp_path / name / FILE).read_bytes() == exported[name][0].read_bytes()
    assert asked == ["trace"]
    kept = b"".join(f.read_bytes() for f in tmp_path.rglob("skeleton.onnx"))
    assert len(kept) < exported["fp32"][0].stat().st_size / 4 and b"site-packages" not in kept


def test_another_structure_is_traced_anew(models: dict[str, Model]) -> None:
    model, depends = models["fp32"], []

    def keep(name: str, of: dict[str, Any], write: Any) -> Path:
        depends.append(of)
        raise KeyboardInterrupt

    edit = {"pass": "prune", "record": {"attributes": {"mid_block.attentions.0.heads": 1}}}
    for changed in (model, model.with_module(model.module, edit)):
        with suppress(KeyboardInterrupt):
            Onnx().export(changed, Path("."), Context(keep=keep))
    assert depends[0] != depends[1]


def test_the_exported_model_is_left_as_it_was(models: dict[str, Model], exported: dict[str, Any]) -> None:
    assert any(k.endswith("weight_quantizer._amax") for k in models["int8"].module.state_dict())


@pytest.mark.slow
def test_kept_weights_can_be_widened(models: dict[str, Model], tmp_path: Path) -> None:
    record = Onnx(weights="fp32").export(models["int8"], tmp_path, Context())
    assert record["kept_dtype"] == "fp32"
    assert all(t.data_type != TensorProto.FLOAT16 for t in onnx.load(tmp_path / FILE).graph.initializer)
