"""What a run times: rows of policies, and keys that say which."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimize.diffusion.sampling import Sampler
from optimize.recipes.read import load
from optimize.registry import EXPORTERS
from optimize.runs.suite import fastest_fp32, fp32_runners, split_key, suite


def a_variant(name: str, runners: tuple[str, ...]) -> Any:
    sampling = {"sampler": Sampler(steps=2).to_json(), "nfe": 2}
    return SimpleNamespace(
        name=name, runners=runners, folder=Path(name), sampling=sampling, precision="fp32", exported_precision="fp32"
    )


def timed(io: tuple[str, ...], graphs: tuple[bool, ...], fair: bool = False) -> list[Any]:
    recipe = load("smoke")
    runners = ("torch", "torch:fp16@cuda", "openvino", "onnxruntime@cuda")
    asked = {"runners": runners, "io": io, "cuda_graphs": graphs, "batch": (4,), "source_runners": ()}
    recipe = recipe.model_copy(update={"benchmark": recipe.benchmark.model_copy(update=asked)})
    return suite(recipe, [a_variant("baseline", runners)], Sampler(steps=3) if fair else None)


def test_policies_multiply_the_rows_on_a_gpu_alone():
    rows = timed(("host", "device"), (False, True))
    found = {r.key: (r.runner, r.options, r.io, r.cuda_graphs) for r in rows}
    for spec, runner, options in (
        ("torch:fp16@cuda", "torch", {"precision": "fp16", "device": "cuda"}),
        ("onnxruntime@cuda", "onnxruntime", {"device": "cuda"}),
    ):
        assert found[f"baseline/{spec}/4"] == (runner, options, "host", False)
        assert found[f"baseline/{spec}/4+device"] == (runner, options, "device", False)
        assert found[f"baseline/{spec}/4+graphs"] == (runner, options, "host", True)
        assert found[f"baseline/{spec}/4+device+graphs"] == (runner, options, "device", True)
    assert {k for k in found if "@" not in k} == {"baseline/torch/4", "baseline/openvino/4"}


def test_the_usual_policy_alone_adds_nothing_to_keys():
    assert not any("+" in r.key for r in timed(("host",), (False,), fair=True))


def test_fair_rows_have_policies_as_well():
    keys = {r.key for r in timed(("device",), (True,), fair=True)}
    assert "fair/onnxruntime@cuda/4+device+graphs" in keys
    assert "fair/openvino/4" in keys


def test_a_16_bit_file_is_not_taken_for_fp32():
    recipe, variant = load("smoke"), a_variant("baseline", ("torch", "openvino", "onnxruntime"))
    assert fastest_fp32(recipe) == "openvino" and fp32_runners(variant) == ["torch", "openvino", "onnxruntime"]
    halved = recipe.model_copy(update={"exports": (EXPORTERS.get("onnx")(precision="fp16"),)})
    variant.exported_precision = "fp16"
    assert fastest_fp32(halved) == "torch" and fp32_runners(variant) == ["torch"]


@pytest.mark.parametrize("policy", ["", "+device", "+device+graphs"])
def test_a_key_is_taken_apart_whatever_its_policy(policy: str):
    assert split_key(f"final/torch:fp16@cuda/16{policy}") == ("final", "torch:fp16@cuda", 16)
