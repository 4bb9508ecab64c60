"""What works on a device class, what will not pay and what is impossible: one table of rules, for `plan` and for runs.

A `Choice` is one thing a user may want: a format, a way to run it, or a pass, on a target. Every rule that applies is a
reason; the gravest decides. Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from optimize.hardware.targets import RTX_SMS, Target

Verdict = Literal["works", "will not pay", "impossible"]
GRAVITY: tuple[Verdict, ...] = ("works", "will not pay", "impossible")
FORMATS = ("fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "2:4")
NARROW = ("int8", "fp8", "int4", "fp4")
WAYS = {  # name -> title
    "torch": "PyTorch",
    "onnxruntime-cuda": "ONNX Runtime CUDA",
    "onnxruntime-cpu": "ONNX Runtime CPU",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "openvino": "OpenVINO",
}
GPU_WAYS = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
BF16 = {"avx512_bf16", "amx_bf16"}


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of the model; None: not known, and rules that need it stay silent."""

    nfe: int | None = None  # network evaluations an image takes today
    guided: bool = False  # whether guidance is on
    folded: float | None = None  # guidance the network contains already
    positions: int | None = None  # height x width of a sample
    blind_nfe: int = 0  # calls of the largest student for whom its head is blind (`training/reread.py`)
    wide_steps: int = 0  # the most steps that are too wide for its head
    preserving: bool = True  # whether alpha² + sigma² = 1, which the head v needs
    clipped: bool = True  # whether today's sampler clips x^
    batch: int = 1  # images drawn at once


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A format, a way to run, a pass, or any of them together, on a target; empty where not asked about."""

    target: Target
    format: str = ""
    way: str = ""
    step: str = ""  # a pass's name
    config: Mapping[str, Any] = field(default_factory=dict)  # its resolved fields
    requires: frozenset[str] = frozenset()  # what it declares
    refuses_after: Mapping[str, str] = field(default_factory=dict)
    provided: frozenset[str] = frozenset()  # what stands before it: trained, data, pruned, distilled, folded, quantized
    later: str = ""  # format that the network ends in
    facts: Facts = Facts()
    installed: Mapping[str, str] = field(default_factory=dict)  # versions, where the target is this machine
    instructions: frozenset[str] = frozenset()  # of the CPU

    def has(self, format: str) -> bool:
        """Whether the hardware computes in a format; of a GPU without listed peaks its SM says so."""
        target = self.target
        if not target.cuda:
            return format in ("fp32", "int8") or (format == "bf16" and bool(BF16 & self.instructions))
        return target.computes(format) if target.peak_tflops else _by_sm(target.sm or (0, 0), format)

    def older(self, major: int, minor: int) -> bool:
        """Whether the target is an NVIDIA GPU below this compute capability."""
        return self.target.cuda and (self.target.sm or (0, 0)) < (major, minor)

    def release(self, package: str) -> tuple[int, ...]:
        """Installed version as numbers; empty where it is not installed here."""
        return tuple(int(n) for n in re.findall(r"\d+", self.installed.get(package, "").partition("+")[0])[:2])


def _by_sm(sm: tuple[int, int], format: str) -> bool:
    first = {"fp32": (0, 0), "tf32": (8, 0), "fp16": (7, 0), "bf16": (8, 0), "fp8": (8, 9), "fp4": (10, 0)}
    if format == "int4":
        return (7, 5) <= sm < (9, 0)
    return sm >= first.get(format, (6, 1))


@dataclass(frozen=True)
class Rule:
    """`when` it applies, the verdict and why. A reason or nearest thing that depends on the choice is a function of it."""

    name: str
    verdict: Verdict
    when: Callable[[Choice], bool]
    reason: str | Callable[[Choice], str]
    nearest: str | Callable[[Choice], str] = ""


@dataclass(frozen=True)
class Judgement:
    """The verdict on a choice, why (one sentence), the nearest thing that works, and the rule that decided."""

    verdict: Verdict
    reason: str
    nearest: str = ""
    rule: str = ""

    @property
    def text(self) -> str:
        """Reason and nearest thing as one line."""
        return f"{self.reason} Instead: {self.nearest}." if self.nearest else self.reason

    def to_json(self) -> dict[str, str]:
        """JSON form."""
        return {"verdict": self.verdict, "reason": self.reason, "nearest": self.nearest, "rule": self.rule}


def judge(choice: Choice) -> Judgement:
    """The gravest of the rules that apply, the first among equals."""
    found = [r for r in RULES if r.when(choice)]
    rule = max(found, key=lambda r: GRAVITY.index(r.verdict))
    return Judgement(rule.verdict, _said(rule.reason, choice), _said(rule.nearest, choice), rule.name)


def _said(what: str | Callable[[Choice], str], choice: Choice) -> str:
    if callable(what):
        return what(choice)
    sm, title = choice.target.sm_text, choice.target.title
    return what.format(sm=sm, title=title, format=choice.format.upper(), way=WAYS.get(choice.way, choice.way))


def _gpu(choice: Choice, *formats: str) -> bool:
    return choice.target.cuda and choice.format in formats


def _cpu(choice: Choice, *formats: str) -> bool:
    return not choice.target.cuda and choice.format in formats


def _narrow_instead(choice: Choice) -> str:
    """The nearest narrow format that pays."""
    return "int8" if choice.target.int8_tensor_cores else "fp16"


def _volta(choice: Choice) -> bool:
    return choice.target.sm == (7, 0)


def _same_rate(choice: Choice) -> bool:
    peak = choice.target.peak_tflops
    return _gpu(choice, "tf32") and "tf32" in peak and peak["tf32"] <= 1.05 * peak["fp32"]


def _torch_dropped_volta(choice: Choice) -> bool:
    """CUDA 13 builds never had SM 7.0, CUDA 12.8 ones dropped it at torch 2.11, 12.6 ones go on through 2.14."""
    version, build = choice.release("torch"), choice.installed.get("torch", "").partition("+cu")[2]
    limit = (2, 15) if build in ("", "126") else (2, 11)
    return bool(version) and (build.startswith("13") or version >= limit)


def _width_step(choice: Choice) -> int:
    """Channels that tensor cores take at once: 8 of 16 bit, 16 of INT8 (NVIDIA, "Tensor Core requirements")."""
    return 16 if choice.later in NARROW else 8


def _blind(choice: Choice) -> bool:
    """Whether the head is blind for a student of so few calls."""
    return choice.step == "distill" and 0 < choice.config.get("nfe", 0) <= choice.facts.blind_nfe


def _wide(choice: Choice) -> bool:
    """Whether the steps of a teacher's trajectories are too wide for its head."""
    return choice.step == "distill" and 0 < choice.config.get("trajectory_steps", 0) <= choice.facts.wide_steps


def _read_as_v(choice: Choice) -> bool:
    head = choice.config.get("head", "auto")
    return choice.step == "distill" and (head == "v" or (head == "auto" and _blind(choice)))


def _peak(choice: Choice) -> str:
    peak, format = choice.target.peak_tflops, choice.format
    if format not in peak:
        return "Its peak rate is not known."
    unit = "TOP/s" if format.startswith("int") else "TFLOP/s"
    note = ", a rate to be confirmed" if format in choice.target.unconfirmed else ""
    return f"{peak[format]:g} {unit} at best, {peak[format] / peak['fp32']:.1f} times FP32{note}."


# Sources: HW = the project's hardware notes (NVIDIA's datasheets, TensorRT's release notes and support matrix, and what
# was tried in November 2026); issues are named by repository and number.
RULES: tuple[Rule, ...] = (
    # -- formats on GPUs. HW: formats by SM; FP8 asked for on Ampere fails late (Model-Optimizer#70, flux2#54)
    Rule("fp8 before 8.9", "impossible", lambda c: _gpu(c, "fp8") and not c.has("fp8"),
         "SM {sm} has no FP8 arithmetic, only 8.9 and newer have.", _narrow_instead),
    Rule("bf16 before 8.0", "impossible", lambda c: _gpu(c, "bf16") and not c.has("bf16"),
         "SM {sm} has no BF16 arithmetic, only 8.0 and newer have.", "fp16"),
    Rule("tf32 before 8.0", "impossible", lambda c: _gpu(c, "tf32") and not c.has("tf32"),
         "SM {sm} has no TF32 arithmetic, only 8.0 and newer have.", "fp16"),
    Rule("fp4 before 10.0", "impossible", lambda c: _gpu(c, "fp4") and not c.has("fp4"),
         "SM {sm} has no FP4 arithmetic, only 10.0 and newer have.", lambda c: "fp8" if c.has("fp8") else _narrow_instead(c)),
    Rule("int4 without tensor cores", "impossible", lambda c: _gpu(c, "int4") and not c.has("int4"),
         "SM {sm} has no INT4 tensor cores, only 7.5 to 8.9 have.", lambda c: "fp8" if c.has("fp8") else _narrow_instead(c)),
    Rule("2:4 before 8.0", "impossible", lambda c: _gpu(c, "2:4") and not c.target.sparsity_2_4,
         "SM {sm} has no sparse tensor cores, only 8.0 and newer have.", "prune whole channels"),
    # ALGORITHMS §2: "needs SM >= 8.0 and kernels that use it; measure, do not assume"
    Rule("2:4 needs kernels", "works", lambda c: _gpu(c, "2:4") and c.target.sparsity_2_4,
         "SM {sm} has sparse tensor cores; only layers whose kernels use them gain, so measure before you believe it."),
    # HW: DP4A, about half of FP16's rate; Model-Optimizer#57 (torch 55 ms, TensorRT FP16 48, INT8 58)
    Rule("int8 without tensor cores", "will not pay", lambda c: _gpu(c, "int8") and not c.target.int8_tensor_cores,
         "SM {sm} computes INT8 without tensor cores (DP4A), at about half of FP16's rate.", "fp16"),
    # MixDQ: A100 30.7 -> 28.8 ms (1.07x); TensorRT#3776, Model-Optimizer#3
    Rule("int8 on a100", "will not pay", lambda c: _gpu(c, "int8") and c.target.name == "a100" and c.facts.batch < 8,
         "At small batches a U-Net in FP16 already runs near what INT8 reaches on an A100 (published: 1.07 times).", "fp16"),
    # HW: 35.6 and 35.6 TFLOP/s on the RTX 3090, 82.6 and 82.6 on the RTX 4090
    Rule("tf32 as slow as fp32", "will not pay", _same_rate,
         "The {title} computes TF32 no faster than FP32.", "fp16"),
    # -- formats on CPUs
    Rule("no such format on cpus", "impossible", lambda c: _cpu(c, "tf32", "fp8", "fp4", "int4", "2:4"),
         "CPUs do not compute in {format}.", lambda c: "prune whole channels" if c.format == "2:4" else "int8"),
    # runners/openvino.py: a CPU without BF16 would silently compute in FP32
    Rule("bf16 on this cpu", "impossible", lambda c: _cpu(c, "bf16") and not c.has("bf16"),
         "This CPU has no BF16 arithmetic (avx512_bf16 or amx_bf16).", "fp32 or int8"),
    # onnxruntime#16778: twice the latency; every layer is widened and rounded again
    Rule("fp16 on cpus", "will not pay", lambda c: _cpu(c, "fp16"),
         "CPUs widen FP16 to FP32 around every layer, which is slower than FP32.", lambda c: "bf16" if c.has("bf16") else "fp32"),
    # examples/digits/README.md: 0.35 -> 0.31 of the uncompressed call on AVX2
    Rule("int8 without vnni", "works", lambda c: _cpu(c, "int8") and not VNNI & c.instructions,
         "This CPU has no VNNI, so INT8 is only a little faster than FP32."),
    # examples/digits/README.md: 14.8 ms with the attention's linear layers rounded, 14.1 without
    Rule("int8 linears of small images", "will not pay",
         lambda c: _cpu(c, "int8") and c.config.get("linear") == "quantize" and (c.facts.positions or 10**9) <= 256,
         "Rounding a linear layer of at most 256 positions costs a CPU more than INT8 saves.", "linear: weight_only"),
    # -- ways to run
    Rule("gpu software on a cpu", "impossible", lambda c: not c.target.cuda and c.way in GPU_WAYS,
         "{way} needs an NVIDIA GPU.", "OpenVINO"),
    Rule("openvino on a gpu", "impossible", lambda c: c.target.cuda and c.way == "openvino",
         "OpenVINO does not run on NVIDIA GPUs.", "ONNX Runtime CUDA"),
    Rule("cpu software on a gpu machine", "will not pay", lambda c: c.target.cuda and c.way == "onnxruntime-cpu",
         "It runs on the machine's CPU and leaves the {title} idle.", "ONNX Runtime CUDA"),
    # HW: 10.4.0 is the last, SM 7.0 was removed in 10.5
    Rule("tensorrt after 10.4 on volta", "impossible",
         lambda c: _volta(c) and c.way == "tensorrt" and c.release("tensorrt") > (10, 4),
         "TensorRT dropped SM 7.0 after 10.4, and a newer one is installed.", "TensorRT 10.4, or ONNX Runtime for CUDA 12"),
    Rule("tensorrt on volta", "works", lambda c: _volta(c) and c.way == "tensorrt",
         "TensorRT 10.4 only: 10.5 dropped SM 7.0, and so did CUDA 13."),
    Rule("no tensorrt", "impossible", lambda c: c.target.cuda and c.target.tensorrt is None and c.way == "tensorrt",
         "TensorRT has no kernels for SM {sm}.", "ONNX Runtime CUDA"),
    Rule("no tensorrt-rtx", "impossible", lambda c: c.target.cuda and not c.target.tensorrt_rtx and c.way == "tensorrt-rtx",
         lambda c: f"TensorRT-RTX cannot target SM {c.target.sm_text}, only {', '.join(f'{a}.{b}' for a, b in sorted(RTX_SMS))}.",
         "TensorRT"),
    # HW: accepted by the API, not named by the support matrix
    Rule("tensorrt-rtx on 8.0", "works", lambda c: c.target.sm == (8, 0) and c.way == "tensorrt-rtx",
         "Engines build for SM 8.0, but its support matrix does not name it: built, not verified."),
    # pytorch#172352, #190385
    Rule("torch dropped volta", "impossible", lambda c: _volta(c) and c.way == "torch" and _torch_dropped_volta(c),
         lambda c: f"The installed torch {c.installed['torch']} has no kernels for SM 7.0.", "torch <= 2.14 built for CUDA 12.6"),
    Rule("torch on volta", "works", lambda c: _volta(c) and c.way == "torch",
         "Needs a CUDA 12.6 build of torch, 2.14 at most: later builds have no kernels for SM 7.0."),
    Rule("onnxruntime on volta", "works", lambda c: _volta(c) and c.way == "onnxruntime-cuda",
         "Needs an ONNX Runtime built for CUDA 12: CUDA 13 dropped SM 7.0."),
    # -- formats by way
    Rule("torch only simulates", "impossible", lambda c: c.way == "torch" and c.format in NARROW,
         "A quantized network is only simulated in torch, slower than it was.",
         lambda c: "export it and run it in TensorRT" if c.target.cuda else "export it and run it in OpenVINO"),
    # Hugging Face optimum, "Accelerated inference on NVIDIA GPUs": no quantized models on the CUDA provider
    Rule("onnxruntime cuda has no int8 kernels", "will not pay", lambda c: c.way == "onnxruntime-cuda" and c.format in NARROW,
         "ONNX Runtime's CUDA provider has no {format} convolutions: it computes in floating point between rounding steps.",
         lambda c: "fp16" if _volta(c) else "TensorRT"),
    # TensorRT's documentation, "Working with quantized types": INT4 is weight-only
    Rule("int4 weights alone", "will not pay",
         lambda c: c.way in ("tensorrt", "tensorrt-rtx") and c.format == "int4" and c.has("int4"),
         "{way} takes INT4 for weights alone and computes in 16 bits: smaller, hardly faster.",
         lambda c: "fp8" if c.has("fp8") else "int8"),
    Rule("onnxruntime cpu has no bf16 kernels", "impossible", lambda c: c.way == "onnxruntime-cpu" and c.format == "bf16",
         "ONNX Runtime has no BF16 convolutions on CPUs.", "OpenVINO"),
    # HW: "7.5 falls back or fails on FP32 GEMM"
    Rule("tensorrt-rtx int8 on 7.5", "impossible",
         lambda c: c.target.sm == (7, 5) and c.way == "tensorrt-rtx" and c.format == "int8",
         "TensorRT-RTX falls back or fails on INT8 graphs for SM 7.5.", "fp16, or TensorRT"),
    # -- passes
    Rule("wrong order", "impossible", lambda c: any(what in c.provided for what in c.refuses_after),
         lambda c: next(f"{why}." for what, why in c.refuses_after.items() if what in c.provided)),
    Rule("lacks what it needs", "impossible", lambda c: bool(c.requires - c.provided),
         lambda c: f"It needs {', '.join(sorted(c.requires - c.provided))}, which no earlier pass provides."),
    # passes/distill.py: refuse
    Rule("guidance folded twice", "impossible", lambda c: c.step == "distill" and "folded" in c.provided,
         "The network already contains its guidance; folding it again would amplify the condition twice.",
         "one distill pass with the nfe you want"),
    Rule("guidance is in the source", "impossible", lambda c: c.step == "source" and c.facts.folded is not None,
         "Only a distilled network contains its guidance.", "give cfg for the source model"),
    # passes/distill.py: refuse_heads
    Rule("v without its schedule", "impossible", lambda c: _read_as_v(c) and not c.facts.preserving,
         "The head v needs a variance-preserving schedule (alpha² + sigma² = 1).", "head: keep"),
    Rule("blind teacher", "impossible",
         lambda c: c.config.get("method") == "trajectory_regression" and not c.facts.clipped and _wide(c),
         "The noise that the teacher predicts says too little of the image for steps as wide as its trajectories'.",
         "more trajectory_steps, sampler.clip, or method: multistep_consistency"),
    Rule("blind head kept", "will not pay", lambda c: c.config.get("head") == "keep" and _blind(c),
         "The noise that the network predicts says too little of the image for so few calls.", "head: auto"),
    Rule("as many calls as before", "will not pay",
         lambda c: c.step == "distill" and c.facts.nfe is not None and c.config.get("nfe", 0) >= c.facts.nfe,
         lambda c: f"The sampler takes {c.facts.nfe} network evaluations already.", "a smaller nfe"),
    Rule("blind head", "works", lambda c: _read_as_v(c) and c.facts.preserving and _blind(c),
         lambda c: "The noise that the network predicts says too little of the image for so few calls: its output is read as v "
                   f"first, fitted in {c.config.get('reread_steps', 'a few hundred')} steps."),
    # Torch-Pruning#97, TensorRT#3884: fewer MACs, no less latency
    Rule("odd widths", "will not pay",
         lambda c: c.step == "prune" and c.target.cuda and c.config.get("round_to", 8) < _width_step(c),
         lambda c: f"Widths that are no multiple of {_width_step(c)} leave tensor cores partly idle: fewer MACs, no less time.",
         lambda c: f"round_to: {_width_step(c)}"),
    # -- and what nothing speaks against
    Rule("a rate", "works", lambda c: bool(c.format) and c.target.cuda and c.format != "2:4", _peak),
    Rule("nothing against it", "works", lambda c: True, "Nothing speaks against it."),
)  # fmt: skip
