"""16-bit floats as a property of the graph: every node computes in FP16 or BF16 but those that must not.

What stays in float32, and is named: layers whose activations come near FP16's largest number (measured, see
`overflow.py`); what feeds a sine or cosine (a time of 999 has no neighbours in 16 bits); sums, powers and roots written
out as operators; constants that 16 bits cannot hold; operators without a 16-bit form in this operator set. A strongly
typed runtime computes what the graph says, so nothing is left to it. Weights are narrowed while they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from optimize.onnx.graph import SCOPE, drop_unused, narrow_in_place, narrowed, quiet

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

Half = Literal["fp16", "bf16"]
LOWEST_OPSET = {"fp32": 18, "fp16": 20, "bf16": 22}  # GELU and Q/DQ of 16 bits: 20; BF16 convolution: 22
NAMES = {"fp16": "float16", "bf16": "bfloat16"}
SUMS = {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceProd", "Pow", "Sqrt", "Reciprocal", "Exp", "Log"}  # fmt: skip
WAVES = {"Sin", "Cos"}
MADE = {"Range", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "EyeLike"}
LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "LayerNormalization", "Attention"}
GUARDS = {"Add", "Max", "Clip"}  # keep a divisor from zero
MOVES = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Expand", "Identity"}  # put numbers elsewhere, as they are
LARGEST = {"fp16": 65504.0, "bf16": 3.3895314e38}
ANY_TYPE = {"Cast", "Shape", "Size"}  # take a tensor of any type as it is
# islands: layer -> largest |activation|, or None where the user asked for it
Islands = Mapping[str, float | None]


def lower(model: ir.Model, dtype: Half, islands: Islands | None = None, outside: str = "float32") -> dict[str, Any]:
    """Rewrite a float32 graph in place; returns `{precision, casts, nodes_16_bit, nodes_fp32, fp32_layers}`, the last
    by reason: overflow ({layer: largest |activation|}), asked, sine, sums, constant, operator (lists of layers).

    `outside`: dtype of the network's own inputs and outputs, "float32" (every feed of the float network still fits, one
    cast each) or "same" (16 bit, but what only float32 nodes read). Islands are modules' paths. Raises RuntimeError for
    a graph whose types cannot be inferred.
    """
    from onnx_ir.passes.common import LiftConstantsToInitializersPass

    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    infer_types(model)
    kept = _kept(model, dtype, islands or {})
    casts = _Rewriter(model, dtype, kept).rewrite(outside)
    drop_unused(model)
    wide = sum(any(map(is_float, n.outputs)) for n in kept)
    narrow = sum(n.op_type != "Cast" and any(v.dtype == half(dtype) for v in n.outputs) for n in model.graph)
    about = {"precision": dtype, "casts": casts, "nodes_fp32": wide, "nodes_16_bit": narrow}
    return about | {"fp32_layers": _named(kept, islands or {})}


def infer_types(model: ir.Model) -> None:
    """Give every value of the graph its type; RuntimeError where one stays unknown."""
    from onnx_ir.passes.common import ShapeInferencePass

    with quiet("onnx_ir"):
        ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
    for node in model.graph:
        _infer(node, model.opset_imports[""])
    unknown = [v.name for n in model.graph for v in n.outputs if v.dtype is None and list(v.uses())]
    if unknown:
        raise RuntimeError(f"onnx: the types of {len(unknown)} values are not known, the first {unknown[0]}")


def _infer(node: ir.Node, version: int) -> None:
    """An output whose type onnx does not find has that of the input which its operator's definition ties it to."""
    import onnx
    import onnx_ir as ir

    for index, value in enumerate(node.outputs):
        if value.dtype is not None or node.domain not in ("", "ai.onnx"):
            continue
        schema = onnx.defs.get_schema(node.op_type, version)
        tied = schema.outputs[min(index, len(schema.outputs) - 1)].type_str
        formal = list(schema.inputs)
        same = (v for i, v in enumerate(node.inputs) if formal[min(i, len(formal) - 1)].type_str == tied)
        known = next((v for v in same if v is not None and v.dtype is not None), None)
        if known is not None and known.dtype is not None:
            value.type = ir.TensorType(known.dtype)


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a float32 tensor."""
    import onnx_ir as ir

    return value is not None and value.dtype == ir.DataType.FLOAT


def half(dtype: Half) -> ir.DataType:
    """onnx_ir's name of a 16-bit type."""
    import onnx_ir as ir

    return {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}[dtype]


def scope(node: ir.Node) -> str:
    """Path of the module a node comes from, by its own note or that of a node before it; empty for the network itself."""
    seen = 0
    at: ir.Node | None = node
    while at is not None and SCOPE not in at.metadata_props and seen < 8:
        source = next((v for v in at.inputs if v is not None and v.producer() is not None), None)
        at, seen = (source.producer() if source is not None else None), seen + 1
    return at.metadata_props.get(SCOPE, "") if at is not None else ""


def _named(kept: Mapping[ir.Node, str], islands: Islands) -> dict[str, Any]:
    """The float32 layers by reason; of overflow with their largest activation."""
    found: dict[str, Any] = {}
    for node, reason in kept.items():
        if any(map(is_float, node.outputs)):
            found.setdefault(reason, set()).add(scope(node) or "(network)")
    named: dict[str, Any] = {reason: sorted(layers) for reason, layers in sorted(found.items())}
    if "overflow" in named:
        named["overflow"] = {layer: islands.get(layer.replace("(network)", "")) for layer in named["overflow"]}
    return named


def _kept(model: ir.Model, dtype: Half, islands: Islands) -> dict[ir.Node, str]:
    """Nodes that stay in float32, and why; the first reason that holds."""
    nodes = list(model.graph)
    version = model.opset_imports[""]
    waves = _before_waves(nodes)
    tests: tuple[tuple[str, Callable[[ir.Node], bool]], ...] = (
        ("asked", lambda n: scope(n) in islands and islands[scope(n)] is None),
        ("overflow", lambda n: scope(n) in islands),
        ("sine", lambda n: n in waves),
        ("sums", lambda n: n.op_type in SUMS or _squares(n)),
        ("operator", lambda n: not _has_form(n, version, dtype)),
        ("constant", lambda n: any(_unfit(v, n, dtype) for v in n.inputs) or _by_an_epsilon(n, dtype)),
    )
    found = ((n, next((reason for reason, holds in tests if holds(n)), "")) for n in nodes)
    kept = {n: reason for n, reason in found if reason}
    return kept | dict.fromkeys(_between(nodes, kept), "sums")


def _before_waves(nodes: list[ir.Node]) -> set[ir.Node]:
    """Sines, cosines, and what computes their arguments, back to the next layer with weights."""
    found: set[ir.Node] = set()
    waiting = [n for n in nodes if n.op_type in WAVES]
    while waiting:
        node = waiting.pop()
        if node in found or (node.op_type in LAYERS and any(map(_is_weight, node.inputs))):
            continue
        found.add(node)
        waiting += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return found


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.shape is not None and len(value.shape) > 1


def _squares(node: ir.Node) -> bool:
    """x * x on the way into a sum: its square is out of FP16's range from 256 on."""
    same = node.op_type == "Mul" and node.inputs[0] is node.inputs[1]
    return same and any(u.op_type in SUMS for u, _ in node.outputs[0].uses())


def _has_form(node: ir.Node, version: int, dtype: Half) -> bool:
    """Whether the operator takes and gives 16-bit tensors; one with a graph inside is left alone."""
    if node.domain not in ("", "ai.onnx") or node.op_type in MADE or any(a.type.name.startswith("GRAPH") for a in node.attributes.values()):  # fmt: skip
        return False
    if node.op_type in ANY_TYPE:
        return True
    floats = [i for i, v in enumerate(node.inputs) if is_float(v)][:1]
    made = [i for i, v in enumerate(node.outputs) if is_float(v)][:1]
    return all(takes(node.op_type, version, i, dtype) for i in floats) and all(
        takes(node.op_type, version, i, dtype, "outputs") for i in made
    )


@cache
def takes(op: str, version: int, index: int, dtype: Half, side: str = "inputs") -> bool:
    """Whether an operator's input or output number `index` may be of a 16-bit type in an operator set."""
    import onnx

    formal = list(getattr(onnx.defs.get_schema(op, version), side))
    return f"tensor({NAMES[dtype]})" in formal[min(index, len(formal) - 1)].types


def _unfit(value: ir.Value | None, node: ir.Node, dtype: Half) -> bool:
    """Whether a constant is beyond the type's range, or a small one becomes zero; of a scale, becomes imprecise."""
    import numpy as np

    if value is None or not is_float(value) or value.const_value is None:
        return False
    numbers = value.const_value.numpy()
    if _largest(numbers) > LARGEST[dtype]:
        return True
    if dtype == "bf16":
        return False
    scale = node.op_type.endswith("QuantizeLinear")
    if numbers.size > 16 and not scale:
        return False
    few = np.abs(numbers[np.isfinite(numbers)])
    return bool(((few > 0) & (few < (6.2e-5 if scale else 3.0e-8))).any())


def _by_an_epsilon(node: ir.Node, dtype: Half) -> bool:
    """A quotient whose divisor is kept from zero by a constant that 16 bits cannot hold: narrowed, it would be zero."""
    source = node.inputs[1].producer() if node.op_type == "Div" and node.inputs[1] is not None else None
    while source is not None and source.op_type in MOVES and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    guards = source is not None and source.op_type in GUARDS
    return guards and source is not None and any(_unfit(v, source, dtype) for v in source.inputs)


def _largest(numbers: np.ndarray) -> float:
    """The largest finite |value|; only numbers that hold an infinity or NaN are copied."""
    import numpy as np

    ends = float(numbers.min(initial=0.0)), float(numbers.max(initial=0.0))
    if not np.isfinite(ends).all():
        finite = numbers[np.isfinite(numbers)]
        ends = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    return max(-ends[0], ends[1])


def _between(nodes: list[ir.Node], kept: Mapping[ir.Node, str]) -> set[ir.Node]:
    """Nodes on a path between two kept ones, all in one module: a norm written out stays whole."""
    paths = {n: scope(n) for n in nodes}
    after = _reached(nodes, kept, paths, lambda n: (p for v in n.inputs if v is not None and (p := v.producer())))
    before = _reached(nodes[::-1], kept, paths, lambda n: (u for v in n.outputs for u, _ in v.uses()))
    return {n for n in after & before if n not in kept}


def _reached(
    nodes: list[ir.Node],
    kept: Mapping[ir.Node, str],
    paths: Mapping[ir.Node, str],
    neighbours: Callable[[ir.Node], Iterable[ir.Node]],
) -> set[ir.Node]:
    """Nodes with a kept one on one side of them, in their own module, seen in the order of `nodes`."""
    found: set[ir.Node] = set()
    for node in nodes:
        if any((n in kept or n in found) and paths.get(n) == paths[node] for n in neighbours(node)):
            found.add(node)
    return found


class _Rewriter:
    """One rewriting: which values are 16 bit by now, and the casts made so far."""

    def __init__(self, model: ir.Model, dtype: Half, kept: Mapping[ir.Node, str]) -> None:
        self.model, self.dtype, self.kept = model, dtype, kept
        self.version = model.opset_imports[""]
        self.casts: dict[tuple[int, str], ir.Value] = {}
        self.nodes = list(model.graph)

    def rewrite(self, outside: str) -> int:
        """Types of values first, then a cast wherever a node reads the other type; returns the number of casts."""
        floats = {id(v) for n in self.nodes for v in n.outputs if is_float(v)}
        inputs = [v for v in self.model.graph.inputs if is_float(v)]
        constants = [v for v in self.model.graph.initializers.values() if is_float(v)]
        wants = {(n, i): self._wants(n, i) for n in self.nodes for i, v in enumerate(n.inputs) if is_float(v)}
        for node in self.nodes:
            self._narrow_outputs(node)
        for value in inputs:
            if outside == "same" and any(wants.get(use) == "low" for use in _uses(value)):
                value.type = _tensor(half(self.dtype))
        for value in constants:
            self._constant(value, wants)
        for value in (*inputs, *(v for n in self.nodes for v in n.outputs if id(v) in floats)):
            self._connect(value, wants)
        self._outputs(outside)
        return len(self.casts)

    def _wants(self, node: ir.Node, index: int) -> str:
        """What a node reads at an input: "low", "float", or "any" type."""
        if node.op_type in ANY_TYPE and not node.domain:
            return "any"
        if node in self.kept:
            return "float"
        return "low" if takes(node.op_type, self.version, index, self.dtype) else "float"

    def _narrow_outputs(self, node: ir.Node) -> None:
        import onnx_ir as ir

        if node in self.kept:
            return
        for index, value in enumerate(node.outputs):
            if is_float(value) and takes(node.op_type, self.version, index, self.dtype, "outputs"):
                value.type = _tensor(half(self.dtype))
        if node.op_type == "Cast" and node.attributes["to"].as_int() == int(ir.DataType.FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(half(self.dtype)))
        if node.op_type == "ConstantOfShape":
            given = node.attributes.get("value")
            if given is None or given.as_tensor().dtype == ir.DataType.FLOAT:
                number = given.as_tensor().numpy() if given is not None else _zero()
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(number.astype(half(self.dtype).numpy())))

    def _constant(self, value: ir.Value, wants: Mapping[tuple[ir.Node, int], str]) -> None:
        """A constant becomes 16 bit, or gets a 16-bit copy where some nodes read it in float32."""
        wanted = {use: wants.get(use, "float") for use in _uses(value)}
        low = [use for use, want in wanted.items() if want == "low"]
        if not low:
            return
        if "float" not in wanted.values():
            narrow_in_place(value, half(self.dtype))
            return
        copy = narrowed(self.model, value, half(self.dtype), f"{value.name}.{self.dtype}")
        for node, index in low:
            node.replace_input_with(index, copy)

    def _connect(self, value: ir.Value, wants: Mapping[tuple[ir.Node, int], str]) -> None:
        has = "float" if is_float(value) else "low"
        for node, index in _uses(value):
            want = wants.get((node, index), "float")  # a node in a graph within a node reads float32
            if want not in (has, "any"):
                node.replace_input_with(index, self._cast(value, want))

    def _cast(self, value: ir.Value, to: str) -> ir.Value:
        """The value in the other type; made once, right after the value, so that it is there for whoever reads it."""
        import onnx_ir as ir

        key = (id(value), to)
        if key not in self.casts:
            kind = half(self.dtype) if to == "low" else ir.DataType.FLOAT
            node = ir.node("Cast", [value], attributes={"to": int(kind)})
            made, producer, graph = node.outputs[0], value.producer(), self.model.graph
            made.name, made.type, made.shape = f"{value.name}.{kind.name.lower()}", _tensor(kind), value.shape
            if producer is None:
                graph.insert_before(graph[0], node)
            else:
                node.metadata_props[SCOPE] = scope(producer)
                graph.insert_after(producer, node)
            self.casts[key] = made
        return self.casts[key]

    def _outputs(self, outside: str) -> None:
        """Outputs keep their names, and with `outside` float32 their type."""
        for index, value in enumerate(self.model.graph.outputs):
            if outside == "float32" and value.dtype == half(self.dtype):
                made, name = self._cast(value, "float"), value.name
                value.name, made.name = f"{name}.{self.dtype}", name
                self.model.graph.outputs[index] = made


def _uses(value: ir.Value) -> list[tuple[ir.Node, int]]:
    return [(use.node, use.idx) for use in value.uses()]


def _tensor(kind: ir.DataType) -> ir.TensorType:
    import onnx_ir as ir

    return ir.TensorType(kind)


def _zero() -> Any:
    import numpy as np

    return np.zeros(1, np.float32)
