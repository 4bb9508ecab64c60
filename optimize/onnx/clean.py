"""An exported graph cleaned by onnxscript, with rules that change no number it computes.

Weights take no part: they stand as inputs while the graph is cleaned, so that none is folded, expanded, or copied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from optimize.onnx.graph import drop_unused, later, quiet

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

# onnxscript's rewriting rules that change no number; `_neutral` stands for those that drop x * 1 and the like. Of its default
# set are left out: what merges Min, Max, Clip and Relu (wrong where bounds cross; two of one tensor get one bound), products
# of reshaped factors (it looks at sizes alone), a scatter to a whole tensor (it forgets `reduction`), Flatten (two of one
# tensor get one shape), two casts (rounds once instead of twice), auto_pad (forgets dilations), the Dropout of older operator
# sets, and slice_split_rule, which takes half the time of a large export
RULES = (
    "cast_constant_of_shape_rule", "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule", "collapse_slice2_rule", "materialize_reshape_shape_rule", "successive_relu_rule",
    "no_op_cast_rule", "no_op_expand_rule", "reshape_reshape_rule",
    "no_op_transpose_rule", "transpose_transpose_rule", "unsqueeze_unsqueeze_rule", "squeeze_reshape_1d_rule",
    "no_op_dynamic_scatter_nd_rule", "fuse_pad_into_conv_rule",
    "remove_optional_bias_from_conv_rule", "remove_optional_bias_from_conv_transpose_rule",
    "remove_optional_bias_from_gemm_rule",
)  # fmt: skip
ROUNDS = 2  # of folding and rewriting; what changes nothing ends them


def simplify(model: ir.Model) -> None:
    """Fold constants, drop what is unused, merge equal subexpressions, transpose weights for good; in place."""
    with quiet("onnx_ir", "onnxscript"):
        with _weights_as_inputs(model):
            _by_onnxscript(model)
        transpose_weights(model)


@contextmanager
def _weights_as_inputs(model: ir.Model) -> Iterator[None]:
    """Inside the block initializers of two or more dims are inputs as well, which is what no pass folds."""
    weights = [v for v in model.graph.initializers.values() if v.shape is not None and len(v.shape) > 1]
    model.graph.inputs.extend(weights)
    try:
        yield
    finally:
        del model.graph.inputs[len(model.graph.inputs) - len(weights) :]


def _by_onnxscript(model: ir.Model) -> None:
    """What `onnxscript.optimizer.optimize` does, with rules that change no number."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common

    rules = [*_neutral(), *(getattr(common, name) for name in RULES)]
    passes.InlinePass()(model)
    for _ in range(ROUNDS):
        folded = optimizer.fold_constants_ir(model, onnx_shape_inference=True).modified
        rewritten = rewriter.RewritePass(rules)(model).modified
        drop_unused(model)
        if not (folded or rewritten):
            break
    for last in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    ):
        last(model)


def _neutral() -> list[Any]:
    """Rules that take out what changes no bit of a number: x * 1, x / 1, x - 0, x + (-0), and 0 added to integers.

    onnxscript's own take for 0 or 1 what is within 1e-8 or 1e-5 of it, such as the epsilon that keeps a division from
    0 / 0; and x + 0 is not x where that is -0."""
    from onnxscript.rewriter.pattern import RewriteRule

    def same(op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Identity(x)

    def where(is_neutral: Any) -> Any:
        return lambda context, c, **_: (number := _scalar(c)) is not None and is_neutral(number)

    one, zero, minus_zero = where(_is_one), where(_is_zero), where(_is_minus_zero)
    return [
        *RewriteRule(lambda op, x, c: op.Mul(x, c), same, one).commute(),
        *RewriteRule(lambda op, x, c: op.Add(x, c), same, minus_zero).commute(),
        RewriteRule(lambda op, x, c: op.Sub(x, c), same, zero),
        RewriteRule(lambda op, x, c: op.Div(x, c), same, one),
    ]


def _scalar(value: ir.Value) -> Any:
    """The number of a constant without dims; None of anything else."""
    held = value.const_value
    return None if held is None or value.is_graph_input() or len(held.shape) else held.numpy().item()


def _is_one(number: Any) -> bool:
    return bool(number == 1)


def _is_zero(number: Any) -> bool:
    return bool(number == 0) and (isinstance(number, int) or math.copysign(1, number) > 0)


def _is_minus_zero(number: Any) -> bool:
    return bool(number == 0) and (isinstance(number, int) or math.copysign(1, number) < 0)


def transpose_weights(model: ir.Model) -> None:
    """Replace Transpose(W) by a transposed initializer: linear layers arrive as MatMul(x, Transpose(W))."""
    for node in [n for n in model.graph if n.op_type == "Transpose"]:
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.name not in model.graph.initializers:
            continue
        assert source.const_value is not None
        perm = tuple(node.attributes["perm"].as_ints())
        shape = [source.const_value.shape[i] for i in perm]
        make = partial(_turned, source.const_value, perm)
        turned = later(model, f"{source.name}.T", make, source.const_value.dtype, shape)
        result.replace_all_uses_with(turned)
        model.graph.remove(node, safe=True)
    drop_unused(model)


def _turned(tensor: Any, perm: tuple[int, ...]) -> np.ndarray:
    """The tensor's own memory, read in another order: a copy is made when it is written."""
    return tensor.numpy().transpose(perm)
