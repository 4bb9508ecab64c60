"""An exported graph cleaned by onnxscript and onnxslim, which leaves what it computes as it is.

Weights take no part: they stand as inputs while the graph is cleaned, so that none is folded, expanded, or copied.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from optimize.onnx.graph import drop_unused, later, quiet

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

# onnxscript's rewriting rules. Its default set has one more, slice_split_rule, which tries every pair of slices and looks
# at the whole graph for every node: half the time of a large export
RULES = (
    "mul_by_1_rule", "add_0_rule", "sub_0_rule", "div_by_1_rule", "dropout_zero_rule", "dropout_inference_rule",
    "two_reshapes_matmul_reshape_rule", "one_reshape_matmul_reshape_rule",
    "cast_constant_of_shape_rule", "cast_constant_of_shape_without_value_rule",
    "collapse_slice_rule", "collapse_slice2_rule", "materialize_reshape_shape_rule",
    "min_min_rule", "max_max_rule", "min_max_rule", "max_min_rule",
    "successive_clip_relu_rule", "successive_relu_clip_rule", "successive_relu_rule", "successive_clip_rule",
    "cast_cast_rule", "no_op_cast_rule", "no_op_expand_rule", "flatten_to_reshape_rule", "reshape_reshape_rule",
    "no_op_transpose_rule", "transpose_transpose_rule", "unsqueeze_unsqueeze_rule", "squeeze_reshape_1d_rule",
    "no_op_dynamic_scatter_nd_rule", "no_op_static_scatter_nd_rule",
    "normalize_pad_format_conv_rule", "fuse_pad_into_conv_rule",
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
    """What `onnxscript.optimizer.optimize` does, with `RULES`."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer, rewriter
    from onnxscript.rewriter.rules import common

    rules = [getattr(common, name) for name in RULES]
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
