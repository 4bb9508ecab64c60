"""What an ONNX file must keep to before a backend may parse it; run it through `check.py`, which is isolated.

The file is untrusted: nothing is allocated by what it claims, and every external file is looked at before it is opened.
onnx's own checker comes last: it knows operators, attributes, types and the order of nodes, but not custom domains,
sizes, nesting, recursion between functions, or opsets that are too new (see tests/onnx/test_check.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

from optimize.errors import ArtifactError

DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")  # operators that backends bring with them
OLDEST_IR, OLDEST_OPSET = 4, 7  # IR 4: initializers need not be inputs; ONNX Runtime's oldest supported opset
DEEPEST = 16  # subgraphs within subgraphs
MOST_NODES = 2_000_000  # after functions are expanded
LARGEST = 128 * 2**30  # bytes of one tensor
TYPED = {"float_data": (1, 14), "int64_data": (7,), "string_data": (8,), "double_data": (11, 15), "uint64_data": (12, 13)}  # fmt: skip
COMPLEX = (14, 15)  # two numbers an element


def examine(path: Path) -> list[str]:
    """The external files of a model that keeps all rules, relative to its folder. Raises ArtifactError for the first rule
    that it breaks, ImportError without onnx."""
    from google.protobuf.message import DecodeError

    try:
        model = _parsed(path)
        _versions(path, model)
        _depth(path, model.graph, 0)
        _functions(path, model)
        external = sorted({name for t in _tensors(model) if (name := _tensor(path, t))})
        _values(path, model)
        _by_onnx(path)
        _by_onnx_ir(path, model)
        _inferred(path, model)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _broken(path, error) from error
    return external


def _broken(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(
        f"{path}: not a whole ONNX file ({type(error).__name__}: {_first(error)}). Copy or export it again."
    )


def _first(error: Exception) -> str:
    """What an error says, on one line: onnx breaks its sentences anywhere."""
    return " ".join(str(error).split())[:300] or "no reason given"


def _parsed(path: Path) -> Any:
    import onnx

    if not path.is_file():
        raise ArtifactError(f"{path}: no such file. Give an ONNX file.")
    model = onnx.ModelProto()
    model.ParseFromString(path.read_bytes())
    if not model.HasField("graph") or not model.graph.output:
        raise ArtifactError(
            f"{path}: no graph with an output in it: truncated, or no ONNX model. Copy or export it again."
        )
    return model


def _versions(path: Path, model: Any) -> None:
    """IR version and opsets that the installed onnx knows, and no operators from elsewhere."""
    import onnx

    if not OLDEST_IR <= model.ir_version <= onnx.IR_VERSION:
        raise ArtifactError(
            f"{path}: IR version {model.ir_version}; allowed are {OLDEST_IR} to {onnx.IR_VERSION} (onnx {onnx.__version__}). Export it again with such a version."
        )
    local = {f.domain for f in model.functions}
    newest = {"": onnx.defs.onnx_opset_version(), "ai.onnx": onnx.defs.onnx_opset_version()}
    if not any(o.domain in newest for o in model.opset_import):
        raise ArtifactError(
            f"{path}: it imports no ONNX opset. Export it again with opset {OLDEST_OPSET} to {newest['']}."
        )
    for opset in (*model.opset_import, *(o for f in model.functions for o in f.opset_import)):
        _domain(path, opset.domain, local)
        if opset.domain in newest and not OLDEST_OPSET <= opset.version <= newest[opset.domain]:
            raise ArtifactError(
                f"{path}: opset {opset.version}; allowed are {OLDEST_OPSET} to {newest['']} (onnx {onnx.__version__}). Export it again with such an opset."
            )
    known = {(f.domain, f.name) for f in model.functions}
    for node in _nodes(model):
        if (node.domain, node.op_type) not in known:
            _domain(path, node.domain, set())


def _domain(path: Path, domain: str, local: set[str]) -> None:
    if domain not in DOMAINS and domain not in local:
        allowed = ", ".join(d or '"" (ONNX)' for d in DOMAINS)
        raise ArtifactError(
            f'{path}: operators of domain "{domain}" need code from elsewhere, which is never loaded. Allowed: {allowed}, and functions within the file.'
        )


def _graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _depth(path: Path, graph: Any, depth: int) -> None:
    """Subgraphs are not nested deeper than any network needs, in the graph and in what it holds."""
    if depth > DEEPEST:
        raise ArtifactError(
            f"{path}: subgraphs are nested deeper than {DEEPEST}; no network needs that. It is not opened."
        )
    for node in graph.node:
        for inner in _graphs(node):
            _depth(path, inner, depth + 1)


def _functions(path: Path, model: Any) -> None:
    """Functions of the file are defined once, do not call themselves, and do not unfold into too many nodes."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    if len(bodies) != len(model.functions):
        raise ArtifactError(f"{path}: a function is defined twice. Export it again.")
    sizes: dict[tuple[str, str], int] = {}
    for function in model.functions:
        _depth(path, function, 0)

    def size(body: Any, calling: tuple[Any, ...]) -> int:
        total = 0
        for node in _within(body):
            total += 1
            key = (node.domain, node.op_type)
            if key in calling:
                raise ArtifactError(f"{path}: function {key[1]} calls itself. It is not opened.")
            if key in bodies:
                if key not in sizes:
                    sizes[key] = size(bodies[key], (*calling, key))
                total += sizes[key]
        return total

    for key, body in bodies.items():  # unused ones as well
        sizes.setdefault(key, size(body, (key,)))
    total = size(model.graph, ())
    if total > MOST_NODES:
        raise ArtifactError(f"{path}: its functions unfold into {total} nodes; at most {MOST_NODES} are opened.")


def _within(body: Any) -> Iterator[Any]:
    """Nodes of a graph or function, those of its subgraphs included."""
    for node in body.node:
        yield node
        for inner in _graphs(node):
            yield from _within(inner)


def _nodes(model: Any) -> Iterator[Any]:
    for body in (model.graph, *model.functions):
        yield from _within(body)


def _all_graphs(body: Any) -> Iterator[Any]:
    """A graph (not a function itself) and all graphs in its nodes."""
    if hasattr(body, "initializer"):
        yield body
    for node in body.node:
        for inner in _graphs(node):
            yield from _all_graphs(inner)


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor stored anywhere in the model."""
    for body in (model.graph, *model.functions):
        for graph in _all_graphs(body):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in _within(body):
            yield from _of_attributes(node.attribute)
    for function in model.functions:
        yield from _of_attributes(function.attribute_proto)


def _of_attributes(attributes: Any) -> Iterator[Any]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
        for s in (*sparse, *attribute.sparse_tensors):
            yield from (s.values, s.indices)


def _tensor(path: Path, tensor: Any) -> str:
    """Check one tensor's dims against what is stored; returns the name of its external file, or nothing."""
    import onnx

    of = f'{path}: tensor "{tensor.name}"'
    if tensor.data_type not in onnx.TensorProto.DataType.values() or tensor.data_type == 0:
        raise ArtifactError(f"{of}: data type {tensor.data_type} is none that ONNX has. Export it again.")
    count = _elements(of, tensor.dims)
    size = _bytes(of, count, tensor.data_type)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return _external(of, path.parent, tensor, size)
    if tensor.HasField("raw_data"):
        _equal(of, tensor, size, len(tensor.raw_data), "bytes")
    else:
        field = next((f for f, kinds in TYPED.items() if tensor.data_type in kinds), "int32_data")
        _equal(of, tensor, _typed(count, tensor.data_type), len(getattr(tensor, field)), f"values in {field}")
    return ""


def _equal(of: str, tensor: Any, needed: int, stored: int, unit: str) -> None:
    if needed != stored:
        raise ArtifactError(
            f"{of}: its dims {list(tensor.dims)} need {needed} {unit}, the file holds {stored}. Copy or export it again."
        )


def _elements(of: str, dims: Any) -> int:
    if any(d < 0 for d in dims):
        raise ArtifactError(f"{of}: negative dims {list(dims)}. Export it again.")
    return prod(dims)


def _bits(data_type: int) -> int:
    """Bits an element takes as raw data; those of less than a byte are packed."""
    import onnx

    name = onnx.TensorProto.DataType.Name(data_type)
    narrow = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}
    if name == "STRING":
        return 8
    return narrow.get(name) or 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize


def _bytes(of: str, count: int, data_type: int) -> int:
    size = -(-count * _bits(data_type) // 8)
    if size > LARGEST:
        raise ArtifactError(f"{of}: {size} bytes; a tensor has at most {LARGEST}. It is not opened.")
    return size


def _typed(count: int, data_type: int) -> int:
    """Values that a tensor of `count` elements has in a typed field: packed below a byte, two for a complex number."""
    if (bits := _bits(data_type)) < 8:
        return -(-count * bits // 8)
    return count * 2 if data_type in COMPLEX else count


def _external(of: str, folder: Path, tensor: Any, size: int) -> str:
    """An external tensor lies wholly in an ordinary file inside the model's folder."""
    entries = {e.key: e.value for e in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise ArtifactError(f"{of}: a key of its external data stands there twice. Export it again.")
    name = entries.get("location", "")
    plain = PurePosixPath(name)
    if not name or not name.isprintable() or "\\" in name or plain.is_absolute() or ".." in plain.parts:
        raise ArtifactError(
            f'{of}: external data at {name!r}: allowed is a relative path inside the model\'s folder, without "..". It is not opened.'
        )
    file = folder / plain
    for place in [file, *file.parents][: len(plain.parts)]:
        if place.is_symlink():
            raise ArtifactError(
                f"{of}: external data at {name!r}: {place} is a symbolic link. Put the file itself there."
            )
    if not file.is_file():
        raise ArtifactError(f"{of}: external data at {name!r}: no such file in {folder}. Copy it beside the model.")
    if (names := file.stat().st_nlink) > 1:
        raise ArtifactError(
            f"{of}: external data at {name!r}: the file has {names} names (hard links), and may be another program's. Put a copy of its own there."
        )
    return _within_file(of, file, entries, size, plain.as_posix())


def _within_file(of: str, file: Path, entries: dict[str, str], size: int, name: str) -> str:
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or size)
    except ValueError:
        raise ArtifactError(
            f"{of}: external data at {name!r}: offset {entries.get('offset')!r} and length {entries.get('length')!r} must be whole numbers. Export it again."
        ) from None
    if length != size:
        raise ArtifactError(
            f"{of}: external data at {name!r}: its dims need {size} bytes, length is {length}. Export it again."
        )
    there = os.path.getsize(file)
    if offset < 0 or offset + length > there:
        raise ArtifactError(
            f"{of}: external data at {name!r}: bytes {offset} to {offset + length} of a file of {there}: truncated, or of another model. Copy or export it again."
        )
    return name


def _values(path: Path, model: Any) -> None:
    """Inputs and outputs are tensors whose known dims multiply to something that fits a machine."""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        _value(path, value)


def _value(path: Path, value: Any) -> None:
    import onnx

    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return
    of, known = f'{path}: value "{value.name}"', [d.dim_value for d in tensor.shape.dim if d.HasField("dim_value")]
    if tensor.elem_type in onnx.TensorProto.DataType.values() and tensor.elem_type:
        _bytes(of, _elements(of, known), tensor.elem_type)


def _by_onnx(path: Path) -> None:
    """onnx's checker on the file, with full shape inference."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except _refusals() as error:
        raise ArtifactError(f"{path}: onnx refuses it: {_first(error)} Export it again.") from error


def _refusals() -> tuple[type[Exception], ...]:
    import onnx

    return onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError, ValueError, TypeError


def _inferred(path: Path, model: Any) -> None:
    """The sizes that onnx infers for fixed shapes inside the graph fit a machine; the model loses its weights."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(_without_weights(model), data_prop=True)
    except _refusals() as error:
        raise ArtifactError(f"{path}: onnx refuses it: {_first(error)} Export it again.") from error
    for value in inferred.graph.value_info:
        _value(path, value)


def _by_onnx_ir(path: Path, model: Any) -> None:
    """What edits graphs here can build the model; it is stricter about attributes than onnx's checker."""
    import onnx_ir as ir

    try:
        ir.from_proto(model)
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise ArtifactError(f"{path}: onnx_ir refuses it: {_first(cause)} Export it again.") from error


def _without_weights(model: Any) -> Any:
    """The model with the numbers of its larger weights left out, in place: shapes do not depend on them."""
    import onnx

    for tensor in model.graph.initializer:
        if prod(tensor.dims) > 1024:
            for field in ("raw_data", "int32_data", *TYPED):
                tensor.ClearField(field)
            tensor.data_location = onnx.TensorProto.EXTERNAL
    return model
