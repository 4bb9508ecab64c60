"""What an engine says of itself: the format each convolution and matrix product really computes in, and for which GPUs.

A TensorRT-RTX plan holds readable text, so this needs no GPU; TensorRT's inspector is asked on the card. Standard
library only: a build kit's script is made of this file. Counts are by "conv int8", "matmul fp16" and so on.
"""

from __future__ import annotations

import json
import mmap
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from optimize.engines.builder import load_engine, logger

TEXT = rb"[\x20-\x7e]*"
TENSOR = re.compile(rb"tensor=\{" + TEXT + rb'? name="([^"]+)"' + TEXT + rb"? type=(\w+)")
LAYER = re.compile(
    rb'(corrltn|deconv\w*|fully_connected|\w*gemm|matmul)=\{ name="([^"]*)"' + TEXT + rb"? input=\{([^}]*)\}"
)
OWN = b"__mye"  # TensorRT's own name of a product it put in the place of one of the graph's
ACCELERATORS = re.compile(rb"accelerators=\{sm(\d+)(\d) \}")
TYPES = {b"int8": "int8", b"fp8_e4m3": "fp8", b"fp8_e5m2": "fp8", b"half": "fp16", b"bf16": "bf16", b"bfloat": "bf16",
         b"bfloat16": "bf16", b"float": "fp32", b"tf32": "fp32"}  # fmt: skip
KINDS = (("conv", "convolutions"), ("matmul", "matrix products"))
NARROWER = ("fp8", "int8", "fp16", "bf16", "fp32")  # a layer that moves to the right has lost precision's gain
TOLD = {"int8": "int8", "fp8": "fp8", "half": "fp16", "fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "float": "fp32",
        "fp32": "fp32"}  # fmt: skip


def read_plan(plan: Any) -> tuple[dict[str, int], list[str]]:
    """(layers by kind and format, SMs) of a TensorRT-RTX plan (bytes or a map of them). Products that TensorRT runs as
    one, such as the projections of an attention's input, bear all their names, "MatMul_1+MatMul_2", and count each; what
    stands in several kernels or profiles ("Conv_1 [profile 2]") counts once, in its widest format. The two products of an
    attention disappear in a kernel without a name. A convolution of one tap in a float format may become a product, and
    such a one, or a product whose output is split (GEGLU), may be replaced by TensorRT's own ("piece")."""
    types: dict[bytes, str] = {}  # profiles use names again: what was said last before a layer is meant
    layers: dict[tuple[str, bytes], list[str]] = {}
    for said in sorted((*TENSOR.finditer(plan), *LAYER.finditer(plan)), key=lambda match: match.start()):
        if said.re is TENSOR:
            types[said[1]] = TYPES.get(said[2], said[2].decode())
            continue
        op, name, inputs = said.groups()
        kind = "conv" if op.startswith((b"corr", b"deconv")) else "matmul"
        both = [types.get(x, "unknown") for x in re.findall(rb'"([^"]+)"', inputs)[:2]]
        for node in name.partition(b" [profile ")[0].split(b"+"):
            layers.setdefault(("piece" if node.startswith(OWN) else kind, node), []).extend(both)
    found = Counter(f"{kind} {widest(both)}" for (kind, _), both in layers.items())
    sms = sorted({(int(a), int(b)) for a, b in ACCELERATORS.findall(plan)})
    return dict(sorted(found.items())), [f"{a}.{b}" for a, b in sms]


def read_plan_file(path: Path) -> tuple[dict[str, int], list[str]]:
    """`read_plan` of a file, without holding it in memory."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as held:
        return read_plan(held)


def widest(formats: list[str]) -> str:
    """The format a layer of these operands computes in."""
    known = [f for f in formats if f in NARROWER]
    return max(known, key=NARROWER.index) if known else "unknown"


def inspected(trt: Any, plan: bytes, flags: Iterable[str] = ()) -> dict[str, int]:
    """Layers by kind and format as TensorRT's inspector tells them on the card; empty where it tells no formats. What it
    hides in a fused region is not counted. Never run so far: unverified."""
    _, engine = load_engine(trt, plan, logger(trt), flags)
    inspector = engine.create_engine_inspector()
    context = shaped(trt, engine)
    if context is not None:  # without shapes, formats are "N/A due to dynamic shapes"
        inspector.execution_context = context
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", ())
    found = Counter(told for told in map(told_of, layers) if told)
    return dict(sorted(found.items()))


def shaped(trt: Any, engine: Any) -> Any:
    """A context with the best shapes of the first profile; None where the GPU has no memory for one."""
    context = engine.create_execution_context()
    for name in (engine.get_tensor_name(i) for i in range(engine.num_io_tensors)):
        if context is not None and engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, tuple(engine.get_tensor_profile_shape(name, 0)[1]))
    return context


def told_of(layer: Any) -> str:
    """ "conv int8" of a layer as the inspector describes it, by its first input, or where that is not told by its weights;
    empty for what is neither convolution nor product, or not told."""
    if not isinstance(layer, dict) or "[profile " in str(
        layer.get("Name")
    ):  # a name alone, or a further profile's copy
        return ""
    about = f"{layer.get('LayerType', '')} {layer.get('ParameterType', '')}".lower()
    kind = "conv" if "conv" in about else "matmul" if "gemm" in about or "matrixmult" in about else ""
    weights = layer.get("Weights")
    given = (
        (layer.get("Inputs") or [{}])[0].get("Format/Datatype"),
        weights.get("Type") if isinstance(weights, dict) else "",
    )
    format = next((name for text in given for word, name in TOLD.items() if word in str(text).lower()), "")
    return f"{kind} {format}" if kind and format else ""


def compare(expected: dict[str, int], found: dict[str, int], exact: bool = True) -> list[str]:
    """What of the graph's precision an engine lost, as sentences; empty where nothing, or where it does not tell.

    More layers wider than the graph asks are always a loss; with `exact` (plans that tell every layer), so is one in INT8
    or FP8 that is missing. Of the wider products some may be missing: attention's run in a kernel of its own, others in
    pieces, which must only not be FP32 where the graph is not."""
    if not found:
        return []
    problems = []
    for name in ("int8", "fp8"):
        for kind, words in KINDS:
            asked, made = expected.get(f"{kind} {name}", 0), found.get(f"{kind} {name}", 0)
            if asked and (made < asked if exact else kind == "conv" and not made):
                problems.append(f"{asked} {words} of the graph are {name}, the engine computes {made} of them in it.")
    pieces = found.get("piece fp32", 0)
    if pieces and not _count(expected, ("conv", "matmul"), NARROWER[4:]):
        problems.append(
            f"the engine computes {pieces} pieces of the graph's products in fp32, the graph asks for none."
        )
    for start, limit in ((2, "16 bit or more"), (4, "fp32")):
        for kinds, words in ((("conv",), "convolutions"), (("conv", "matmul"), "convolutions and matrix products")):
            asked, made = (_count(counts, kinds, NARROWER[start:]) for counts in (expected, found))
            if made > asked:
                problems.append(f"the engine computes {made} {words} in {limit}, the graph asks for {asked}.")
                return problems
    return problems


def _count(counts: dict[str, int], kinds: tuple[str, ...], formats: tuple[str, ...]) -> int:
    return sum(counts.get(f"{kind} {format}", 0) for kind in kinds for format in formats)
