"""A float network as an ONNX graph, by torch's exporter, traced once for every structure.

Tracing is the slow part of an export, and depends on the structure alone: the graph is kept without its weights, and
a network of the same structure (recovered, distilled, or a quantized one's float copy) only puts its own weights in.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import EnvironmentLacks
from optimize.network import example_inputs, raw_output

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from optimize.context import Keep
    from optimize.network import TensorSpec

OUTPUT = "out_sample"
FILE = "skeleton.onnx"


def traced(
    module: nn.Module, inputs: tuple[TensorSpec, ...], opset: int, structure: Any, keep: Keep | None = None
) -> ir.Model:
    """The network as an onnx_ir model with a symbolic batch, initializers named as its parameters and buffers.

    `structure` (JSON values) must tell apart all networks that compute differently with equal weights. `keep` is where
    graphs without weights are kept; None traces anew. Raises EnvironmentLacks where onnx or onnxscript is missing.
    """
    import onnx_ir as ir

    weights = _weights(module)
    if keep is None:
        graph = _skeleton(module, inputs, opset)
    else:
        depends = {"structure": structure, "opset": opset, "weights": _shapes(weights)}
        graph = ir.load(keep("trace", depends, lambda folder: _write(_skeleton(module, inputs, opset), folder)) / FILE)
    return _filled(graph, weights)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as they compute, whatever form a state_dict hook stores them in."""
    both = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in both}


def _shapes(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Shape and dtype of every tensor, and the first of those it shares its memory with."""
    first: dict[int, str] = {}
    return {n: [list(w.shape), str(w.dtype), first.setdefault(w.data_ptr(), n)] for n, w in weights.items()}


def _write(graph: ir.Model, folder: Path) -> None:
    import onnx_ir as ir

    from optimize.onnx_graph import forget_origins

    forget_origins(graph)
    ir.save(graph, folder / FILE)


def _skeleton(module: nn.Module, inputs: tuple[TensorSpec, ...], opset: int) -> ir.Model:
    """The traced graph, its weights turned into inputs after its own."""
    graph, weights = _exported(module, inputs, opset), _weights(module)
    for value in list(graph.graph.initializers.values()):
        value.name = (value.name or "").removeprefix("network.")
        if value.name in weights:
            del graph.graph.initializers[value.name]
            value.const_value = None
            graph.graph.inputs.append(value)
    return graph


def _filled(graph: ir.Model, weights: dict[str, Tensor]) -> ir.Model:
    """The graph with the weights as initializers again."""
    from onnx_ir.tensor_adapters import TorchTensor

    for value in [v for v in graph.graph.inputs if v.name in weights]:
        graph.graph.inputs.remove(value)
        value.const_value = TorchTensor(weights[value.name or ""].cpu(), name=value.name)
        graph.graph.register_initializer(value)
    return graph


def _exported(module: nn.Module, inputs: tuple[TensorSpec, ...], opset: int) -> ir.Model:
    import torch

    from optimize.onnx_graph import quiet

    feed = tuple(example_inputs(inputs, batch=3).values())
    # diffusers' upsampling copies memory from a batch of 64 on, a branch that bounds the trace but not the graph
    batch = torch.export.Dim("B", min=1, max=63)
    shapes = tuple({i: batch for i, d in enumerate(s.dims) if d == "B"} for s in inputs)
    names = [s.name for s in inputs]
    with quiet("torch.onnx"):
        try:
            program = torch.onnx.export(
                _positional(module, names), feed, dynamo=True, opset_version=opset, input_names=names, output_names=[OUTPUT],
                dynamic_shapes=(shapes,), optimize=False, verbose=False,
            )  # fmt: skip
        except ImportError as error:
            raise EnvironmentLacks(f"onnx: {error}. Install it: pip install onnx onnxscript") from error
    assert program is not None
    return program.model


def _positional(module: nn.Module, names: list[str]) -> nn.Module:
    """The module called with positional tensors and returning one tensor, as tracing wants it."""
    from torch import nn

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, *tensors: Any) -> Any:
            return raw_output(self.network(**dict(zip(names, tensors))))

    return Positional().eval()
