"""A float network as an ONNX graph, by torch's exporters, traced once for every structure.

Tracing is the slow part of an export, and depends on the structure alone: the graph is kept without its weights, and
a network of the same structure (recovered, distilled, or a quantized one's float copy) only puts its own weights in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimize.errors import EnvironmentLacks, UserError
from optimize.onnx.symbols import alike, dims, example, lost, multiple, opened, rename, sizes_of, spatial, symbols
from optimize.storage.weights import read_json

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import Tensor, nn

    from optimize.diffusion.context import Keep
    from optimize.diffusion.network import TensorSpec

OUTPUT = "out_sample"
FILE, RECORD = "skeleton.onnx", "trace.json"
PREFIX = "network."  # of the names that the exporters give to weights
OLDER_OPSET = 20  # the newest that the older exporter writes
UNPROVEN = "the older exporter may note a size as a number without a word; name the dims in `symbolic` to keep them"
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

    from optimize.storage.commit import write_json

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
    """Trace; where the network fixed a dim at the size it was traced with, again with that dim at the network's own."""
    kept = _wanted(inputs, how)
    made, kept = _by_either(module, inputs, how, kept)
    while gone := lost(made.graph, inputs, kept):
        if how.symbolic is not None:
            raise UserError(
                f"symbolic: {type(module).__name__} fixes {', '.join(sorted(gone))} when it is traced. "
                "Leave out what it fixes: it then has the network's own size."
            )
        made, kept = _by_either(module, inputs, how, kept - gone)
    rename(made.graph, inputs)
    own = sizes_of(inputs)
    fixed = {s: own[s] for s in sorted(symbols(inputs) - kept)}
    return Traced(made.graph, {**made.record, "symbols": sorted(kept), "fixed": fixed})


def _wanted(inputs: tuple[TensorSpec, ...], how: Tracing) -> set[str]:
    """Symbols that are to stay; UserError for one that no input has."""
    present = symbols(inputs)
    asked = present if how.symbolic is None else set(how.symbolic)
    if strange := asked - present:
        allowed = symbols(opened(inputs, ("H", "W")))
        raise UserError(
            f"symbolic: {', '.join(sorted(strange))} is no symbolic dim of this network's inputs. Allowed: {', '.join(sorted(allowed))}."
        )
    return asked


def _by_either(
    module: nn.Module, inputs: tuple[TensorSpec, ...], how: Tracing, kept: set[str]
) -> tuple[Traced, set[str]]:
    """torch.export's exporter with all dims, with fewer of them, and where it fails and may be replaced the older one,
    which notes a size in Python as a number without a word; the graph, and the dims that stayed."""
    name, problems = type(module).__name__, []
    about: dict[str, Any]
    fewer = [kept] if how.symbolic is not None else [kept, kept - spatial(inputs), kept & {"B"}]
    for some in dict.fromkeys(map(frozenset, fewer)) if how.exporter != "torchscript" else ():
        for step in (multiple(inputs, module), None):
            try:
                graph = _dynamo(module, inputs, how.opset, set(some), step)
            except _failures() as error:
                problems.append(_said(error))
                continue
            about = {"exporter": "dynamo", "reason": None}
            if some < kept:
                about["fixed_because"] = problems[0]
            if step and some & spatial(inputs):
                about["multiple_of"] = dict.fromkeys(sorted(some & spatial(inputs)), step)
            return Traced(graph, about), set(some)
    reason = problems[0] if problems else "asked for"
    if how.exporter == "dynamo":
        raise UserError(f"exporter: dynamo cannot trace {name} ({reason}). Use auto or torchscript.")
    unproven = problems and how.symbolic is None and kept & spatial(inputs)
    return _by_the_older(module, inputs, how, (kept, [kept - spatial(inputs)] if unproven else fewer), reason)


def _by_the_older(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    how: Tracing,
    wanted: tuple[set[str], list[set[str]]],
    reason: str,
) -> tuple[Traced, set[str]]:
    """The older exporter's graph with the first of the sets of dims that it can be traced with, out of all `kept`."""
    kept, sets = wanted
    problems: list[BaseException] = []
    for some in map(set, dict.fromkeys(map(frozenset, sets))):
        try:
            graph, warned = _torchscript(module, inputs, how.opset, some)
        except _failures() as error:
            problems.append(error)
            continue
        about: dict[str, Any] = {"exporter": "torchscript", "reason": reason, "warnings": warned}
        if some < kept:
            about["fixed_because"] = _said(problems[0]) if problems else UNPROVEN
        return Traced(graph, about), some
    raise UserError(
        f"onnx: no exporter can trace {type(module).__name__}. dynamo: {reason}. torchscript: {_said(problems[0])}. "
        "Rewrite the part of its forward that is named, or export a part of it."
    ) from problems[0]


def _failures() -> tuple[type[Exception], ...]:
    """What a network that cannot be traced makes the exporters raise."""
    from torch.onnx.errors import OnnxExporterError

    return (OnnxExporterError, RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)


def _said(error: BaseException) -> str:
    """The first line of what went wrong at the bottom, without the stack."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:300]


def _dynamo(
    module: nn.Module, inputs: tuple[TensorSpec, ...], opset: int, wanted: set[str], step: int | None
) -> ir.Model:
    """torch.export's program as ONNX. The program is made here and without strict mode: torch.onnx's own attempts give
    graphs whose dims are symbolic by name although a loop in Python has counted them."""
    import torch

    from optimize.onnx.graph import quiet

    names = [s.name for s in inputs]
    with quiet("torch"):
        program = _program(_positional(module, names, alike(inputs, wanted)), inputs, wanted, step, module)
        _drop_idle_squeezes(program)
        try:
            made = torch.onnx.export(
                program, dynamo=True, opset_version=opset, input_names=names, output_names=[OUTPUT], optimize=False,
                verbose=False,
            )  # fmt: skip
        except ImportError as error:
            raise EnvironmentLacks(f"onnx: {error}. Install it: pip install onnx onnxscript") from error
    assert made is not None
    return made.model


def _drop_idle_squeezes(program: Any) -> None:
    """Take out squeezes of a dim that is not 1, which leave a tensor as it is; as ONNX they would fail."""
    import torch

    aten = torch.ops.aten
    for node in [n for n in program.graph.nodes if n.target in (aten.squeeze.dim, aten.squeeze.dims)]:
        if node.meta["val"].dim() == node.args[0].meta["val"].dim():
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _program(
    called: nn.Module, inputs: tuple[TensorSpec, ...], wanted: set[str], step: int | None, module: nn.Module
) -> Any:
    """torch.export's program; where the network bounds a dim, exported again within those bounds."""
    import torch
    from torch._dynamo.exc import UserError as Violated
    from torch.export.dynamic_shapes import refine_dynamic_shapes_from_suggested_fixes as refine

    feed = tuple(example(inputs, wanted, module).values())
    shapes: Any = (dims(inputs, wanted, step),)
    try:
        return torch.export.export(called, feed, dynamic_shapes=shapes, strict=False)
    except Violated as error:
        if "Suggested fixes:" not in str(error):
            raise
        return torch.export.export(called, feed, dynamic_shapes=refine(str(error), shapes), strict=False)


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

    from optimize.onnx.stand_ins import stand_ins

    feed = tuple(example(inputs, wanted, module).values())
    names = [s.name for s in inputs]
    axes = {
        s.name: {i: d for i, d in enumerate(s.dims) if isinstance(d, str) and d.partition("/")[0] in wanted}
        for s in inputs
    }
    file = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught, torch.inference_mode(), stand_ins(module), _unlogged():
        warnings.simplefilter("always")
        torch.onnx.export(
            _positional(module, names), feed, file, dynamo=False, opset_version=min(opset, OLDER_OPSET), input_names=names,
            output_names=[OUTPUT], dynamic_axes=axes, export_params=False, do_constant_folding=False,
        )  # fmt: skip
    said = {str(w.message).splitlines()[0] for w in caught if issubclass(w.category, torch.jit.TracerWarning)}
    graph = ir.serde.deserialize_model(onnx.load_from_string(file.getvalue()))
    return _raised(graph, opset), sorted(said)


@contextmanager
def _unlogged() -> Iterator[None]:
    """Inside the block torch does not print the whole graph of an export that fails: it means to ask whether it may, but
    takes the function that would say so for the answer."""
    import torch

    said = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *words: None
    try:
        yield
    finally:
        torch._C._jit_onnx_log = said


def _raised(graph: ir.Model, opset: int) -> ir.Model:
    """The graph in a newer operator set."""
    if opset > OLDER_OPSET:
        from onnxscript import version_converter

        version_converter.convert_version(graph, opset)
        if graph.opset_imports[""] != opset:
            raise RuntimeError(f"opset {graph.opset_imports['']} could not be raised to {opset}")
    return graph


def _positional(module: nn.Module, names: list[str], same: Iterable[list[tuple[int, int]]] = ()) -> nn.Module:
    """The module called with positional tensors and returning one tensor, as tracing wants it; `same` are groups of
    (input, dim) of equal size, which is told before the network divides one by the other."""
    import torch
    from torch import nn

    from optimize.diffusion.network import nested, raw_output

    groups = tuple(same)

    class Positional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = module

        def forward(self, *tensors: Any) -> Any:
            for (i, d), *others in groups:
                for j, e in others:
                    torch._check(tensors[i].shape[d] == tensors[j].shape[e])
            return raw_output(self.network(**nested(dict(zip(names, tensors)))))

    return Positional().eval()


def _name_scopes(model: ir.Model) -> None:
    """Every node keeps the path of its module, and no other trace of where the graph came from."""
    from optimize.onnx.graph import SCOPE, forget_origins

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
    return ".".join(p for p, after in pairwise([*parts[1:], ""]) if not after.startswith(f"{p}."))
