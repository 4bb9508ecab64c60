"""Runners and exporters of this version for the formats a device class allows; precision of a row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from optimize.planning.offers import exports_for, runner_spec
from optimize.registry import EXPORTERS
from optimize.runs.stages import Variant
from optimize.runs.summary import _precision


@pytest.mark.parametrize(
    ("way", "format", "spec", "exports"),
    [
        ("torch", "bf16", "torch_compile:bf16@cuda", [{"onnx": {"precision": "bf16"}}]),
        ("onnxruntime-cuda", "fp32", "onnxruntime@cuda", [{"onnx": {}}]),
        ("onnxruntime-cuda", "fp16", "onnxruntime@cuda", [{"onnx": {"precision": "fp16"}}]),
        ("tensorrt", "int8", "tensorrt", [{"onnx": {}}, {"tensorrt": {"batch": [1, 16]}}]),
        ("tensorrt", "fp16", "tensorrt", [{"onnx": {"precision": "fp16"}}, {"tensorrt": {"batch": [1, 16]}}]),
        ("tensorrt-rtx", "fp8", "tensorrt_rtx", [{"onnx": {}}, {"tensorrt_rtx": {"batch": [1, 16]}}]),
    ],
)
def test_what_a_format_is_run_by_and_what_that_reads(
    way: str, format: str, spec: str, exports: list[dict[str, Any]]
) -> None:
    assert runner_spec(way, format, on_gpu=True) == spec
    made = exports_for(spec, format, (1, 16))
    if not spec.startswith("torch"):
        assert made == exports
    for entry in made:
        for name, options in entry.items():
            EXPORTERS.get(name)(**options)


def test_what_nothing_here_makes_has_no_runner() -> None:
    assert runner_spec("onnxruntime-cuda", "tf32", True) is None
    assert runner_spec("tensorrt", "fp4", True) is None
    assert runner_spec("openvino", "fp16", False) is None


@pytest.mark.parametrize(
    ("spec", "artifact", "exported", "runner", "wanted"),
    [
        ("torch", "fp32", "fp16", "fp32", "fp32"),
        ("onnxruntime", "fp32", "fp16", "fp16", "fp16"),
        ("openvino", "fp32", "fp16", "fp32", "fp16"),
        ("openvino:auto", "int8", "fp32", "bf16", "int8+bf16"),
        ("openvino:auto", "int8", "fp32", "fp32", "int8"),
        ("torch:tf32@cuda", "fp32", "fp32", "tf32", "tf32"),
        ("tensorrt_rtx", "int8", "fp16", "fp16+int8", "int8+fp16"),
        ("torch:bf16", "fp32", "fp32", None, "bf16"),
    ],
)
def test_the_precision_of_a_row_is_all_that_is_narrower_than_fp32(
    spec: str, artifact: str, exported: str, runner: str | None, wanted: str
) -> None:
    parity = {spec: {"runner": {"precision": runner}} if runner else {"refused": "not here"}}
    variant = SimpleNamespace(precision=artifact, exported_precision=exported, parity=parity)
    assert _precision(cast(Variant, variant), spec) == wanted
