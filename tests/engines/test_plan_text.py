"""Reading a plan's text, and what counts as lost precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import fake_trt
from support.engines import PROFILE, job
from support.fake_trt import FakeTrt

from optimize.engines.builder import EngineError, build
from optimize.engines.plan_text import compare, inspected, read_plan, read_plan_file, told_of


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
        layer("fully_connected", "__mye31", "h", "h"),  # a split product, in pieces of TensorRT's own
        layer("fully_connected", "__mye32", "h", "h"),
        layer("pointwise", "Add", "x", "w"),
        tensor("h", "float"),  # the next profile uses the name for something else
        layer("corrltn", "Conv_1 [profile 1]", "x", "w", "f"),
        layer("fully_connected", "MatMul_2 [profile 1]", "h", "h"),
    ]
)  # fmt: skip
COUNTS = {"conv int8": 1, "conv fp16": 2, "matmul fp8": 4, "matmul fp32": 2, "piece fp16": 2}


def test_layers_are_counted_by_the_formats_of_their_operands_and_sms_named(tmp_path: Path) -> None:
    assert read_plan(PLAN) == (dict(sorted(COUNTS.items())), ["8.6", "12.0"])
    (tmp_path / "p").write_bytes(PLAN)
    assert read_plan_file(tmp_path / "p") == read_plan(PLAN)
    assert read_plan(b"\x00nothing") == ({}, [])


def test_a_layer_of_several_profiles_counts_once_in_its_widest_format() -> None:
    tensors = [tensor("x", "int8"), tensor("h", "half"), tensor("f", "float")]
    layers = [layer("corrltn", f"Conv_{n}{p}", "x", "x") for n in (1, 2) for p in ("", " [profile 1]")]
    layers += [layer("corrltn", "Conv_2 [profile 2]", "f", "x")]  # one profile lost the precision
    layers += [
        layer("fully_connected", f"MatMul_1+MatMul_2{p}", "h", "h") for p in ("", " [profile 1]", " [profile 2]")
    ]
    assert read_plan(b"\n".join(tensors + layers))[0] == {"conv fp32": 1, "conv int8": 1, "matmul fp16": 2}


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


def layer_of(kind: str, given: str, **more: Any) -> dict[str, Any]:
    """A layer as the inspector describes it."""
    return {"LayerType": kind, "Inputs": [{"Format/Datatype": given}], **more}


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (layer_of("CaskConvolution", "Thirty-two wide channel vectorized row major Int8 format"), "conv int8"),
        (layer_of("gemm", "Row major linear FP16 format", ParameterType="MatrixMultiply"), "matmul fp16"),
        (layer_of("gemm", "BFloat16"), "matmul bf16"),
        (layer_of("gemm", "FP8"), "matmul fp8"),
        (layer_of("gemm", "Float(64,1:8)"), "matmul fp32"),
        (layer_of("CaskConvolution", "N/A due to dynamic shapes", Weights={"Type": "Half", "Count": 9}), "conv fp16"),
        (
            layer_of("CaskConvolution", "Half", Weights={"Type": "Int8", "Count": 9}),
            "conv fp16",
        ),  # weights alone narrow
        ({"LayerType": "CaskConvolution", "Weights": {"Type": "Int8"}}, "conv int8"),
        (layer_of("CaskConvolution", "N/A due to dynamic shapes"), ""),
        (layer_of("gemm", "Half", Name="Gemm_3 [profile 1]"), ""),  # the same layer, for another profile
        (layer_of("PointWise", "Half"), ""),
        ("a name alone", ""),
    ],
)
def test_a_layer_is_told_by_its_input_else_by_its_weights(layer: Any, told: str) -> None:
    assert told_of(layer) == told


def test_the_inspector_is_asked_with_shapes_since_without_them_it_tells_no_formats() -> None:
    trt = FakeTrt()
    plan = build(trt, job(profiles=[PROFILE]))[0]
    assert inspected(trt, plan) == {"conv int8": 1}
    assert trt.contexts[0].shapes == {name: tuple(three[1]) for name, three in PROFILE.items()}


def test_an_engine_without_room_for_a_context_is_asked_without_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = FakeTrt()
    plan = build(trt, job(profiles=[PROFILE]))[0]
    monkeypatch.setattr(fake_trt.Engine, "create_execution_context", lambda self: None)
    assert inspected(trt, plan) == {}


def test_a_plan_that_does_not_load_is_not_inspected() -> None:
    with pytest.raises(EngineError, match="does not load the engine: magicTag does not match"):
        inspected(FakeTrt(), b"{half")
