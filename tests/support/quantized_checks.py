"""How a quantized graph is compared with its network on every processor: layer by layer, on the network's own codes.

Kernels add in different orders. A value on the edge between two codes then falls to the other side, and a network with
random weights makes that grow to percents: two right ones differ end to end, on one processor more than on another.
So the graph is cut behind every rounded activation. What reaches a cut is compared with what the network has there, and
what goes on from it is the network's own: nothing grows, and the limits are those of float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from optimize.diffusion.model import Model
from optimize.diffusion.parity import relative_l2

CODES = (".int8", ".fp8")
FLOAT = 1e-5  # relative L2: float32 kernels from one quantized layer to the next, ten times over
EDGE = 1e-5  # of the largest value: how near the edge between two codes a value may fall to either side


@dataclass(frozen=True)
class Rounded:
    """What one layer's input quantizer was given and what it gave, and the quantizer."""

    given: torch.Tensor
    made: torch.Tensor
    quantizer: Any


@dataclass(frozen=True)
class Cut:
    """One rounded activation of a graph: the value before, the rounded one, the input that stands in, the layers behind."""

    before: str
    rounded: str
    stand_in: str
    layers: tuple[str, ...]


def differences(model: Model, file: Path, feed: dict[str, torch.Tensor]) -> list[str]:
    """Where the graph in `file` computes other numbers than the quantized network on `feed`; empty where nowhere.

    Every sentence names a layer, in the order that the network runs them: its input differs, or its input is rounded to
    other codes; the last is of the output.
    """
    wanted, output = _recorded(model, feed)
    graph = ir.load(file)
    cuts = _cut(graph)
    found = _run(graph, file, feed | {c.stand_in: wanted[c.layers[0]].made for c in cuts})
    at = {layer: cut for cut in cuts for layer in cut.layers}
    said = [f"{layer}: not rounded in the graph" for layer in wanted if layer not in at]
    for layer, own in wanted.items():
        if layer in at:
            said += _compared(layer, own, found[at[layer].before], found[at[layer].rounded])
    far = relative_l2(found[graph.graph.outputs[0].name], output.double())
    return said + ([] if far <= FLOAT else [f"output: {far:.1e} off"])


def _compared(layer: str, own: Rounded, before: torch.Tensor, rounded: torch.Tensor) -> Iterator[str]:
    far = relative_l2(before, own.given.double())
    if not far <= FLOAT:
        yield f"{layer}: its input is {far:.1e} off"
    slack = EDGE * float(own.given.abs().max())
    low, high = (own.quantizer(own.given + d).double() for d in (-slack, slack))  # rounding is monotonic
    noise = 1e-6 * float(own.made.abs().max())
    wrong = (rounded < low - noise) | (rounded > high + noise)
    if bool(wrong.any()):
        yield f"{layer}: {int(wrong.sum())} of {wrong.numel()} values are rounded to other codes"


def _recorded(model: Model, feed: dict[str, torch.Tensor]) -> tuple[dict[str, Rounded], torch.Tensor]:
    """What every quantized layer of the network rounds, in the order they run, and the network's output."""
    table = model.structure.edits[-1]["record"]["quantizers"]
    found: dict[str, Rounded] = {}

    def keep(layer: str) -> Callable[..., None]:
        def hook(quantizer: Any, given: Any, made: torch.Tensor) -> None:
            assert layer not in found, f"{layer} runs twice"
            found[layer] = Rounded(given[0].clone(), made.clone(), quantizer)

        return hook

    inputs = {r["module"]: model.module.get_submodule(r["module"]).input_quantizer for r in table if r["input"]}
    hooks = [quantizer.register_forward_hook(keep(layer)) for layer, quantizer in inputs.items()]
    try:
        with torch.inference_mode():
            output = model.denoiser.network(**feed)
    finally:
        for hook in hooks:
            hook.remove()
    return found, output


def _cut(model: ir.Model) -> list[Cut]:
    """Cut the graph behind every rounded activation: new inputs stand in for them, and they become outputs."""
    graph, cuts = model.graph, []
    for node in [n for n in graph if n.op_type == "DequantizeLinear" and n.inputs[0].producer() is not None]:
        before, rounded = node.inputs[0].producer().inputs[0], node.outputs[0]
        layers = tuple(_layer(user) for user, _ in rounded.uses())
        if not layers:
            continue
        stand_in = ir.Value(name=f"stand_in.{len(cuts)}", type=ir.TensorType(ir.DataType.FLOAT))
        rounded.replace_all_uses_with(stand_in)
        graph.inputs.append(stand_in)
        for value in (before, rounded):
            value.type = ir.TensorType(ir.DataType.FLOAT)
            if value not in graph.outputs:
                graph.outputs.append(value)
        cuts.append(Cut(before.name, rounded.name, stand_in.name, layers))
    return cuts


def _layer(node: ir.Node) -> str:
    """Path of the layer that a Conv, Gemm or MatMul is, from the name of its codes."""
    codes = node.inputs[1].producer().inputs[0].name
    kind = next(k for k in CODES if codes.endswith(k))
    return codes.removesuffix(kind).removesuffix(".T").removesuffix(".weight")


def _run(model: ir.Model, file: Path, feed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All outputs by name, float64, computed as the graph says: no integer kernels, which saturate on some processors."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.parent))
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    taken = {i.name for i in session.get_inputs()}
    names = [o.name for o in session.get_outputs()]
    arrays = session.run(names, {k: v.numpy() for k, v in feed.items() if k in taken})
    return {n: torch.from_numpy(np.asarray(a)).double() for n, a in zip(names, arrays, strict=True)}
