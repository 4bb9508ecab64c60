"""A float network as an ONNX graph, by torch's exporters, traced once for every structure.

Tracing is the slow part of an export, and depends on the structure alone: the graph is kept without its weights, and
a network of the same structure (recovered, distilled, or a quantized one's float copy) only puts its own weights in.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimize.errors import EnvironmentLacks, UserError
from optimize.onnx_symbols import example, lost, rename, sizes_of, symbols
from optimize.weights import read_json

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from optimize.context import Keep
    from optimize.network import TensorSpec

OUTPUT = "out_sample"
FILE, RECORD = "skeleton.onnx", "trace.json"
PREFIX = "network."  # of the names that the exporters give to weights
OLDER_OPSET = 20  # the newest that the older exporter writes
Exporter = Literal["auto", "dynamo", "torchscript"]


@dataclass(frozen=True)
class Tracing:
    """How to trace. `exporter` auto: torch.export's, and the older one where a network defeats it. `symbolic`: the dims
    that must stay symbolic, all others fixed at the network's own sizes; None: all that can."""

    opset: int = 18
    exporter: Exporter = "auto"
    symbolic: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Traced:
    """The graph, its initializers named as the parameters and buffers, and what is to be said of it: `exporter`, `reason`
    (why not torch.export's), `symbols` kept, dims `fixed` with their sizes, `warnings` of the older exporter."""

    graph: ir.Model
    record: dict[str, Any]


def traced(
    module: nn.Module, inputs: tuple[TensorSpec, ...], how: Tracing, structure: Any, keep: Keep | None = None
) -> Traced:
    """The network as an onnx_ir model; every node says in `metadata_props["scope"]` which module it comes from.

    `structure` (JSON values) must tell apart all networks that compute differently with equal weights. `keep` is where
    graphs without weights are kept; None traces anew. Raises EnvironmentLacks where onnx or onnxscript is missing,
    UserError where no exporter can trace the network, or a dim in `how.symbolic` cannot stay so.
    """
    import onnx_ir as ir

    weights = _weights(module)
    if keep is None:
        made = _skeleton(module, inputs, how)
        return Traced(_filled(made.graph, weights), made.record)
    depends = {"structure": structure, "how": asdict(how), "inputs": repr(inputs), "weights": _shapes(weights)}
    folder = keep("trace", depends, lambda folder: _write(_skeleton(module, inputs, how), folder))
    return Traced(_filled(ir.load(folder / FILE), weights), read_json(folder / RECORD))


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers as they compute, whatever form a state_dict hook stores them in."""
    both = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return {name: tensor.detach() for name, tensor in both}


def _shapes(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Shape and dtype of every tensor, and the first of those it shares its memory with."""
    first: dict[int, str] = {}
    return {n: [list(w.shape), str(w.dtype), first.setdefault(w.data_ptr(), n)] for n, w in weights.items()}


def _write(made: Traced, folder: Path) -> None:
    import onnx_ir as ir

    from optimize.artifact import write_json

    ir.save(made.graph, folder / FILE)
    write_json(folder / RECORD, made.record)


def _filled(graph: ir.Model, weights: dict[str, Tensor]) -> ir.Model:
    """The graph with the weights as initializers again."""
    from onnx_ir.tensor_adapters import TorchTensor

    for value in [v for v in graph.graph.inputs if v.name in weights]:
        graph.graph.inputs.remove(value)
        value.const_value = TorchTensor(weights[value.name or ""].cpu(), name=value.name)
        graph.graph.register_initializer(value)
    return graph


def _skeleton(module: nn.Module, inputs: tuple[TensorSpec, ...], how: Tracing) -> Traced:
    """The traced graph, its weights turned into inputs after its own."""
    made = _within_its_dims(module, inputs, how)
    weights = _weights(module)
    for value in [*made.graph.graph.inputs, *made.graph.graph.initializers.values()]:
        value.name = (value.name or "").removeprefix(PREFIX)
        if value.name in weights and value.name in made.graph.graph.initializers:
            del made.graph.graph.initializers[value.name]
            value.const_value = None
            made.graph.graph.inputs.append(value)
    _name_scopes(made.graph)
    return made


def _within_its_dims(module: nn.Module, inputs: tuple[TensorSpec, ...], how: Tracing) -> Traced:
    """Trace; where the network runs at its own sizes alone, or fixes a dim at the size it is traced with, again with
    those dims at the network's own size."""
    kept = _wanted(inputs, how)
    try:
        made = _by_either(module, inputs, how, kept)
    except UserError as error:
        if how.symbolic is not None or kept <= {"B"}:
            raise
        kept, why = kept & {"B"}, str(error)
        made = _by_either(module, inputs, how, kept)
        made = Traced(made.graph, made.record | {"fixed_because": why})
    while gone := lost(made.graph, inputs, kept):
        if how.symbolic is not None:
            raise UserError(
                f"symbolic: {type(module).__name__} fixes {', '.join(sorted(gone))} when it is traced. "
                "Leave out what it fixes: it then has the network's own size."
            )
        kept = kept - gone
        made = _by_either(module, inputs, how, kept)
    rename(made.graph, inputs, kept)
    own = sizes_of(inputs)
    fixed = {s: own[s] for s in sorted(symbols(inputs) - kept)}
    return Traced(made.graph, {**made.record, "symbols": sorted(kept), "fixed": fixed})


def _wanted(inputs: tuple[TensorSpec, ...], how: Tracing) -> set[str]:
    """Symbols that are to stay; UserError for one that no input has."""
    present = symbols(inputs)
    asked = present if how.symbolic is None else set(how.symbolic)
    if strange := asked - present:
        raise UserError(
            f"symbolic: {', '.join(sorted(strange))} is no symbolic dim of this network's inputs. Allowed: {', '.join(sorted(present))}."
        )
    return asked


def _by_either(module: nn.Module, inputs: tuple[TensorSpec, ...], how: Tracing, wanted: set[str]) -> Traced:
    """torch.export's exporter, and where it fails and may be replaced the older one."""
    reason = "asked for"
    if how.exporter != "torchscript":
        try:
            return Traced(_dynamo(module, inputs, how.opset, wanted), {"exporter": "dynamo", "reason": None})
        except _failures() as error:
            reason = _said(error)
            if how.exporter == "dynamo":
                raise UserError(
                    f"exporter: dynamo cannot trace {type(module).__name__} ({reason}). Use auto or torchscript."
                ) from error
    try:
        graph, warned = _torchscript(module, inputs, how.opset, wanted)
    except _failures() as error:
        raise UserError(
            f"onnx: no exporter can trace {type(module).__name__}. dynamo: {reason}. torchscript: {_said(error)}. "
            "Rewrite the part of its forward that is named, or export a part of it."
        ) from error
    return Traced(graph, {"exporter": "torchscript", "reason": reason, "warnings": warned})


def _failures() -> tuple[type[Exception], ...]:
    """What a network that cannot be traced makes the exporters raise."""
    from torch.onnx.errors import OnnxExporterError

    return (OnnxExporterError, RuntimeError, TypeError, ValueError, KeyError, AttributeError, NotImplementedError)


def _said(error: BaseException) -> str:
    """The first line of what went wrong at the bottom, without the stack."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0]}"[:300]


def _dynamo(module: nn.Module, inputs: tuple[TensorSpec, ...], opset: int, wanted: set[str]) -> ir.Model:
    import torch

    from optimize.onnx_graph import quiet

    feed = tuple(example(inputs, wanted, module).values())
    # AUTO, since a network may bound a dim, or ask for a multiple, in ways that no name given before can hold
    shapes = tuple(
        {i: torch.export.Dim.AUTO for i, d in enumerate(s.dims) if isinstance(d, str) and d.partition("/")[0] in wanted}
        for s in inputs
    )
    names = [s.name for s in inputs]
    with quiet("torch.onnx", "torch.export"):
        try:
            program = torch.onnx.export(
                _positional(module, names), feed, dynamo=True, opset_version=opset, input_names=names, output_names=[OUTPUT],
                dynamic_shapes=(shapes,), optimize=False, verbose=False,
            )  # fmt: skip
        except ImportError as error:
            raise EnvironmentLacks(f"onnx: {error}. Install it: pip install onnx onnxscript") from error
    assert program is not None
    return program.model


def _torchscript(
    module: nn.Module, inputs: tuple[TensorSpec, ...], opset: int, wanted: set[str]
) -> tuple[ir.Model, list[str]]:
    """The older exporter's graph with the weights as inputs, and what its tracer warned of: choices made by values of the
    example, which the graph then holds for good."""
    import io
    import warnings

    import onnx
    import onnx_ir as ir
    import torch

    feed = tuple(example(inputs, wanted, module).values())
    names = [s.name for s in inputs]
    axes = {
        s.name: {i: d for i, d in enumerate(s.dims) if isinstance(d, str) and d.partition("/")[0] in wanted}
        for s in inputs
    }
    file = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode():
        warnings.simplefilter("always")
        torch.onnx.export(
            _positional(module, names), feed, file, dynamo=False, opset_version=min(opset, OLDER_OPSET), input_names=names,
            output_names=[OUTPUT], dynamic_axes=axes, export_params=False, do_constant_folding=False,
        )  # fmt: skip
    said = {str(w.message).splitlines()[0] for w in caught if issubclass(w.category, torch.jit.TracerWarning)}
    graph = ir.serde.deserialize_model(onnx.load_from_string(file.getvalue()))
    return _raised(graph, opset), sorted(said)


def _raised(graph: ir.Model, opset: int) -> ir.Model:
    """The graph in a newer operator set."""
    if opset > OLDER_OPSET:
        from onnxscript import version_converter

        version_converter.convert_version(graph, opset)
        if graph.opset_imports[""] != opset:
            raise RuntimeError(f"opset {graph.opset_imports['']} could not be raised to {opset}")
    return graph


def _positional(module: nn.Module, names: list[str]) -> nn.Module:
    """The module called with positional tensors and returning one tensor, as tracing wants it."""
    from torch import nn

    from optimize.network import nested, raw_output

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, *tensors: Any) -> Any:
            return raw_output(self.network(**nested(dict(zip(names, tensors)))))

    return Positional().eval()


def _name_scopes(model: ir.Model) -> None:
    """Every node keeps the path of its module, and no other trace of where the graph came from."""
    from optimize.onnx_graph import SCOPE, forget_origins

    scopes = {node: _scope(node) for node in model.graph}
    forget_origins(model)
    for node, scope in scopes.items():
        node.metadata_props[SCOPE] = scope


def _scope(node: ir.Node) -> str:
    """Path of the module that a node comes from; empty for the network itself."""
    import ast

    written = node.metadata_props.get("pkg.torch.onnx.name_scopes")
    if written is not None:
        scopes = [s for s in ast.literal_eval(written)[:-1] if s]
        return (scopes[-1] if scopes else "").removeprefix("network").removeprefix(".")
    parts = (node.name or "").split("/")[1:-1]  # the older exporter: /network/conv_in/Conv
    return ".".join(parts[1:])
