"""Reading a plan's text, and what counts as lost precision."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimize.engines.plan_text import compare, inspected, read_plan, read_plan_file


def tensor(name: str, kind: str, word: str = "tensor") -> bytes:
    return (
        f'  {word}={{ alignment=128 dims={{ 2 64 }} name="{name}" offset=0 strides={{ 64 1 }} type={kind} }}'.encode()
    )


def layer(kind: str, name: str, *inputs: str) -> bytes:
    given = " ".join(f'"{n}"' for n in inputs)
    return f'  {kind}={{ name="{name}" output={{"o" }} input={{{given} }} stream=0 type=none }}'.encode()


PLAN = b"\n".join(
    [
        b"\x00\xffgarbage name=\"x\" type=half \x01 accelerators={* }\x00 accelerators={sm86 } accelerators={sm120 }",
        tensor("x", "int8", "sub_tensor"),
        tensor("w", "int8"),
        tensor("h", "half"),
        tensor("e", "fp8_e4m3"),
        tensor("f", "float"),
        layer("corrltn", "Conv_1", "x", "w", "f"),
        layer("corrltn", "Conv_2", "h", "h"),
        layer("corrltn", "Conv_3", "h", "w"),
        layer("fully_connected", "MatMul_1", "e", "e", "f"),
        layer("fully_connected", "MatMul_4+MatMul_6+MatMul_5", "e", "e", "f"),
        layer("fully_connected", "MatMul_4+MatMul_6", "e", "e", "f"),  # another kernel for other shapes
        layer("fully_connected", "MatMul_2", "f", "f"),
        layer("fully_connected", "MatMul_3", "f", "nowhere"),
        layer("fully_connected", "__mye31", "h", "h"),  # an attention's product, in pieces of TensorRT's own
        layer("fully_connected", "__mye32", "h", "h"),
        layer("pointwise", "Add", "x", "w"),
    ]
)  # fmt: skip
COUNTS = {"conv int8": 1, "conv fp16": 2, "matmul fp8": 4, "matmul fp32": 2, "piece fp16": 2}


def test_layers_are_counted_by_the_formats_of_their_operands_and_sms_named(tmp_path: Path) -> None:
    assert read_plan(PLAN) == (dict(sorted(COUNTS.items())), ["8.6", "12.0"])
    (tmp_path / "p").write_bytes(PLAN)
    assert read_plan_file(tmp_path / "p") == read_plan(PLAN)
    assert read_plan(b"\x00nothing") == ({}, [])


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        ({"conv int8": 3}, {"conv int8": 2, "conv fp32": 1}, "3 convolutions of the graph are int8, the engine computes 2"),
        ({"conv int8": 3}, {"conv int8": 2}, "computes 2 of them"),
        ({"conv fp8": 1, "conv fp16": 1}, {"conv fp16": 2}, "1 convolutions of the graph are fp8"),
        ({"matmul int8": 2}, {"matmul fp16": 2}, "2 matrix products of the graph are int8, the engine computes 0"),
        ({"matmul fp8": 6, "matmul fp16": 4}, {"matmul fp8": 5, "matmul fp16": 1}, "6 matrix products of the graph are fp8"),
        ({"matmul int8": 2, "matmul fp16": 1}, {"matmul int8": 1, "matmul fp16": 2}, "2 convolutions and matrix products in 16 bit or more"),
        ({"matmul fp16": 2}, {"matmul fp16": 1, "piece fp32": 2}, "2 pieces of the graph's products in fp32"),
        ({"conv fp16": 2}, {"conv fp16": 1, "conv fp32": 1}, "computes 1 convolutions in fp32, the graph asks for 0"),
    ],
)  # fmt: skip
def test_lost_precision_is_said(expected: dict[str, int], found: dict[str, int], said: str) -> None:
    assert said in " ".join(compare(expected, found))


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ({"conv int8": 3, "conv fp32": 1}, {"conv int8": 3, "conv fp32": 1}),
        ({"matmul int8": 6, "matmul fp16": 4}, {"matmul int8": 6}),  # the others inside an attention kernel
        ({"conv fp16": 2}, {"conv int8": 1, "conv fp16": 1}),
        ({"conv fp16": 3, "matmul fp16": 1}, {"conv fp16": 2, "matmul fp16": 2}),  # one tap: computed as a product
        ({"matmul fp16": 2}, {"matmul fp16": 1, "piece fp16": 2}),
        ({"matmul fp32": 2}, {"matmul fp32": 1, "piece fp32": 2}),
        ({"conv fp16": 2}, {}),
    ],
)
def test_what_is_fused_or_narrower_is_no_loss(expected: dict[str, int], found: dict[str, int]) -> None:
    assert compare(expected, found) == []


def test_an_inspector_that_hides_layers_is_no_loss_as_long_as_some_are_narrow() -> None:
    assert compare({"conv int8": 3}, {"conv int8": 1}, exact=False) == []
    assert compare({"conv int8": 3}, {"conv fp16": 1}, exact=False)


def test_the_inspector_is_read_as_far_as_it_tells() -> None:
    layers: list[Any] = [
        {"LayerType": "CaskConvolution", "Inputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
        {"LayerType": "gemm", "ParameterType": "MatrixMultiply", "Inputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
        {"LayerType": "PointWise", "Inputs": [{"Format/Datatype": "Half"}]},
        "a name alone",
    ]  # fmt: skip
    inspector = SimpleNamespace(get_engine_information=lambda format: json.dumps({"Layers": layers}))
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    trt = SimpleNamespace(
        Logger=logger,
        LayerInformationFormat=SimpleNamespace(JSON=1),
        Runtime=lambda held: SimpleNamespace(deserialize_cuda_engine=lambda plan: engine if plan else None),
    )
    assert inspected(trt, b"plan") == {"conv int8": 1, "matmul fp16": 1}
    assert inspected(trt, b"") == {}
