"""What works, will not pay or is impossible: every rule of the table, on the devices it is about."""

from __future__ import annotations

from typing import Any

import pytest

from optimize.hardware.devices import of
from optimize.hardware.feasibility import FORMATS, RULES, WAYS, Choice, Facts, judge
from optimize.hardware.targets import target, targets

BLACKWELL = {"name": "NVIDIA GeForce RTX 5090", "sm": (12, 0)}
PASCAL = {"name": "Tesla P100-PCIE-16GB", "sm": (6, 0)}
AMX = frozenset({"avx512_bf16", "avx512_vnni"})
QUANTIZED = {"quantized": "scales are fixed"}

# (rule, verdict, target, what is asked, part of the reason, part of the nearest thing)
CASES: list[tuple[str, str, Any, dict[str, Any], str, str]] = [
    ("fp8 before 8.9", "impossible", "a100", {"format": "fp8"}, "SM 8.0 has no FP8", "int8"),
    ("fp8 before 8.9", "impossible", "rtx3090", {"format": "fp8"}, "SM 8.6 has no FP8", "int8"),
    ("fp8 before 8.9", "impossible", "v100", {"format": "fp8"}, "SM 7.0 has no FP8", "fp16"),
    ("bf16 before 8.0", "impossible", "v100", {"format": "bf16"}, "SM 7.0 has no BF16", "fp16"),
    ("bf16 before 8.0", "impossible", "t4", {"format": "bf16"}, "SM 7.5 has no BF16", "fp16"),
    ("tf32 before 8.0", "impossible", "v100", {"format": "tf32"}, "SM 7.0 has no TF32", "fp16"),
    ("fp4 before 10.0", "impossible", "h100", {"format": "fp4"}, "SM 9.0 has no FP4", "fp8"),
    ("fp4 before 10.0", "impossible", "a100", {"format": "fp4"}, "SM 8.0 has no FP4", "int8"),
    ("int4 without tensor cores", "impossible", "h200", {"format": "int4"}, "SM 9.0 has no INT4", "fp8"),
    ("int4 without tensor cores", "impossible", "v100", {"format": "int4"}, "SM 7.0 has no INT4", "fp16"),
    ("2:4 before 8.0", "impossible", "v100", {"format": "2:4"}, "SM 7.0 has no sparse", "prune whole channels"),
    ("2:4 needs kernels", "works", "a100", {"format": "2:4"}, "measure before you believe it", ""),
    ("int8 without tensor cores", "will not pay", "v100", {"format": "int8"}, "DP4A", "fp16"),
    ("int8 without tensor cores", "will not pay", "v100", {"format": "int8", "way": "tensorrt"}, "DP4A", "fp16"),
    ("int8 on a100", "will not pay", "a100", {"format": "int8"}, "1.07 times", "fp16"),
    ("tf32 as slow as fp32", "will not pay", "rtx3090", {"format": "tf32"}, "GeForce RTX 3090 computes TF32 no", "fp16"),
    ("no such format on cpus", "impossible", "cpu", {"format": "fp8"}, "CPUs do not compute in FP8", "int8"),
    ("no such format on cpus", "impossible", "cpu", {"format": "2:4"}, "in 2:4", "prune whole channels"),
    ("bf16 on this cpu", "impossible", "cpu", {"format": "bf16"}, "no BF16 arithmetic", "fp32 or int8"),
    ("fp16 on cpus", "will not pay", "cpu", {"format": "fp16"}, "slower than FP32", "fp32"),
    ("fp16 on cpus", "will not pay", "cpu", {"format": "fp16", "instructions": AMX}, "slower than FP32", "bf16"),
    ("int8 without vnni", "works", "cpu", {"format": "int8"}, "no VNNI", ""),
    ("int8 linears of small images", "will not pay", "cpu",
     {"step": "quantize", "format": "int8", "config": {"linear": "quantize"}, "facts": Facts(positions=256)},
     "at most 256 positions", "linear: weight_only"),
    ("gpu software on a cpu", "impossible", "cpu", {"way": "tensorrt"}, "TensorRT needs an NVIDIA GPU", "OpenVINO"),
    ("gpu software on a cpu", "impossible", "cpu", {"way": "onnxruntime-cuda"}, "ONNX Runtime CUDA needs", "OpenVINO"),
    ("openvino on a gpu", "impossible", "a100", {"way": "openvino"}, "does not run on NVIDIA GPUs", "ONNX Runtime CUDA"),
    ("cpu software on a gpu machine", "will not pay", "a100", {"way": "onnxruntime-cpu"}, "leaves the A100 SXM idle", "CUDA"),
    ("tensorrt after 10.4 on volta", "impossible", "v100", {"way": "tensorrt", "installed": {"tensorrt": "11.4.0"}},
     "dropped SM 7.0 after 10.4", "TensorRT 10.4"),
    ("tensorrt after 10.4 on volta", "impossible", "v100", {"way": "tensorrt", "installed": {"tensorrt": "10.5.0"}},
     "dropped SM 7.0 after 10.4", "CUDA 12"),
    ("tensorrt on volta", "works", "v100", {"way": "tensorrt", "installed": {"tensorrt": "10.4.0"}}, "10.4 only", ""),
    ("tensorrt on volta", "works", "v100", {"way": "tensorrt"}, "10.5 dropped SM 7.0", ""),
    ("no tensorrt", "impossible", PASCAL, {"way": "tensorrt"}, "no kernels for SM 6.0", "ONNX Runtime CUDA"),
    ("no tensorrt-rtx", "impossible", "v100", {"way": "tensorrt-rtx"}, "cannot target SM 7.0, only 7.5, 8.0", "TensorRT"),
    ("no tensorrt-rtx", "impossible", "h200", {"way": "tensorrt-rtx"}, "cannot target SM 9.0", "TensorRT"),
    ("no tensorrt-rtx", "impossible", {"name": "NVIDIA B200", "sm": (10, 0)}, {"way": "tensorrt-rtx"}, "SM 10.0", "TensorRT"),
    ("tensorrt-rtx on 8.0", "works", "a100", {"way": "tensorrt-rtx"}, "built, not verified", ""),
    ("torch dropped volta", "impossible", "v100", {"way": "torch", "installed": {"torch": "2.15.0"}}, "torch 2.15.0 has no", "2.14"),
    ("torch dropped volta", "impossible", "v100", {"way": "torch", "installed": {"torch": "2.11.0+cu128"}}, "cu128", "12.6"),
    ("torch dropped volta", "impossible", "v100", {"way": "torch", "installed": {"torch": "2.9.0+cu130"}}, "cu130", "12.6"),
    ("torch on volta", "works", "v100", {"way": "torch", "installed": {"torch": "2.14.0+cu126"}}, "CUDA 12.6 build", ""),
    ("torch on volta", "works", "v100", {"way": "torch"}, "2.14 at most", ""),
    ("onnxruntime on volta", "works", "v100", {"way": "onnxruntime-cuda"}, "built for CUDA 12", ""),
    ("torch only simulates", "impossible", "a10", {"way": "torch", "format": "int8"}, "only simulated", "TensorRT"),
    ("torch only simulates", "impossible", "cpu", {"way": "torch", "format": "int8"}, "only simulated", "OpenVINO"),
    ("onnxruntime cuda has no int8 kernels", "will not pay", "a10", {"way": "onnxruntime-cuda", "format": "int8"},
     "no INT8 convolutions", "TensorRT"),
    ("int4 weights alone", "will not pay", "a10", {"way": "tensorrt", "format": "int4"}, "TensorRT takes INT4 for weights", "int8"),
    ("onnxruntime cpu has no bf16 kernels", "impossible", "cpu",
     {"way": "onnxruntime-cpu", "format": "bf16", "instructions": AMX}, "no BF16 convolutions", "OpenVINO"),
    ("tensorrt-rtx int8 on 7.5", "impossible", "t4", {"way": "tensorrt-rtx", "format": "int8"}, "SM 7.5", "fp16, or TensorRT"),
    ("wrong order", "impossible", "a100",
     {"step": "distill", "refuses_after": QUANTIZED, "provided": frozenset({"quantized"})}, "scales are fixed.", ""),
    ("lacks what it needs", "impossible", "a100", {"step": "distill", "requires": frozenset({"data"})}, "It needs data", ""),
    ("guidance folded twice", "impossible", "a100", {"step": "distill", "provided": frozenset({"folded"})},
     "contains its guidance", "one distill pass"),
    ("guidance is in the source", "impossible", "a100", {"step": "source", "facts": Facts(folded=0.5)},
     "Only a distilled network", "give cfg"),
    ("v without its schedule", "impossible", "a100",
     {"step": "distill", "config": {"nfe": 2, "head": "v"}, "facts": Facts(preserving=False)}, "variance-preserving", "head: keep"),
    ("blind teacher", "impossible", "a100",
     {"step": "distill", "config": {"nfe": 4, "method": "trajectory_regression", "trajectory_steps": 3},
      "facts": Facts(wide_steps=3, clipped=False)}, "the teacher predicts", "more trajectory_steps"),
    ("blind head kept", "will not pay", "a100",
     {"step": "distill", "config": {"nfe": 3, "head": "keep"}, "facts": Facts(blind_nfe=3)}, "for so few calls", "head: auto"),
    ("blind head", "works", "a100", {"step": "distill", "config": {"nfe": 3, "reread_steps": 7}, "facts": Facts(blind_nfe=3)},
     "its output is read as v first, fitted in 7 steps", ""),
    ("as many calls as before", "will not pay", "a100", {"step": "distill", "config": {"nfe": 4}, "facts": Facts(nfe=4)},
     "4 network evaluations already", "a smaller nfe"),
    ("odd widths", "will not pay", "a100", {"step": "prune", "config": {"round_to": 4}}, "multiple of 8", "round_to: 8"),
    ("odd widths", "will not pay", "a10", {"step": "prune", "config": {"round_to": 8}, "later": "int8"}, "of 16", "round_to: 16"),
    ("a rate", "works", "a100", {"format": "fp16", "way": "tensorrt"}, "312 TFLOP/s at best, 16.0 times FP32.", ""),
    ("a rate", "works", "l4", {"format": "fp8"}, "a rate to be confirmed", ""),
    ("a rate", "works", BLACKWELL, {"format": "fp4"}, "not known", ""),
    ("nothing against it", "works", "cpu", {"way": "openvino"}, "Nothing speaks against it.", ""),
]  # fmt: skip


def choice(device: Any, asked: dict[str, Any]) -> Choice:
    return Choice(target=target(device) if isinstance(device, str) else of(device), **asked)


@pytest.mark.parametrize(
    ("rule", "verdict", "device", "asked", "reason", "nearest"),
    CASES,
    ids=[f"{c[0]}, {c[2] if isinstance(c[2], str) else c[2]['name']}" for c in CASES],
)
def test_a_rule_decides(rule: str, verdict: str, device: Any, asked: dict[str, Any], reason: str, nearest: str) -> None:
    found = judge(choice(device, asked))
    assert (found.rule, found.verdict) == (rule, verdict)
    assert reason in found.reason and nearest in found.nearest
    assert bool(found.nearest) == bool(nearest)


def test_every_rule_has_a_case_and_a_name_of_its_own() -> None:
    names = [r.name for r in RULES]
    assert len(names) == len(set(names))
    assert {c[0] for c in CASES} == set(names)


@pytest.mark.parametrize(
    ("device", "asked"),
    [
        ("l4", {"format": "fp8", "way": "tensorrt"}),
        ("a100", {"format": "bf16", "way": "torch"}),
        ("a100", {"format": "int8", "way": "tensorrt", "facts": Facts(batch=16)}),
        ("rtx3090", {"format": "int8", "way": "tensorrt"}),
        ("v100", {"format": "fp16", "way": "torch"}),
        ("cpu", {"format": "bf16", "way": "openvino", "instructions": AMX}),
        ("cpu", {"format": "int8", "way": "openvino"}),
        ("a100", {"step": "prune", "config": {"round_to": 8}}),
        ("cpu", {"step": "prune", "config": {"round_to": 4}}),
        ("a100", {"step": "distill", "facts": Facts(blind_nfe=1, nfe=50), "config": {"nfe": 2}}),
        ("a100", {"step": "distill", "facts": Facts(blind_nfe=3), "config": {"nfe": 4, "head": "keep"}}),
        ("a100", {"step": "distill", "facts": Facts(preserving=False), "config": {"nfe": 2}}),
        ("a100", {"step": "distill", "facts": Facts(blind_nfe=3), "config": {"nfe": 2, "head": "v"}}),
    ],
)
def test_what_works_is_not_spoiled_by_a_rule(device: str, asked: dict[str, Any]) -> None:
    assert judge(choice(device, asked)).verdict == "works"


def test_every_cell_of_every_target_has_one_sentence_and_a_way_out() -> None:
    for device in targets().values():
        for format in FORMATS:
            for way in ("", *WAYS):
                found = judge(Choice(target=device, format=format, way=way))
                assert found.reason.endswith(".") and "{" not in found.text
                assert found.verdict == "works" or found.nearest
            assert judge(Choice(target=device, format="fp32")).verdict == "works"


def test_an_unlisted_gpu_is_judged_by_its_compute_capability() -> None:
    verdicts = {f: judge(choice(BLACKWELL, {"format": f})).verdict for f in (*FORMATS, "fp4")}
    assert verdicts == {f: "impossible" if f == "int4" else "works" for f in verdicts}
    assert judge(choice(PASCAL, {"format": "fp16"})).verdict == "works"  # computes in it, its rate is not known


def test_the_text_of_a_judgement_offers_the_way_out() -> None:
    found = judge(choice("v100", {"format": "bf16"}))
    assert found.text == "SM 7.0 has no BF16 arithmetic, only 8.0 and newer have. Instead: fp16."
    assert found.to_json()["verdict"] == "impossible"
