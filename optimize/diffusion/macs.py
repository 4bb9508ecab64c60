"""Parameters and multiply-accumulates (MACs) of a torch network.

Convention: one sample through the network once (batch 1; a guided step is two of these). One MAC is one multiplication
with its addition, half a FLOP pair. Counted: convolutions, linear layers, matrix products and both products of
attention. Not counted: biases, norms, activations, softmax, resampling and element-wise sums. Every parameter counts
once, however often it is used; buffers do not count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimize.diffusion.model import Model


def count(model: Model) -> dict[str, int]:
    """`{"params", "macs"}` of the model's torch network at batch 1. Raises TypeError for a runner (it has no module)."""
    return {
        "params": sum(p.numel() for p in model.module.parameters()),
        "macs": sum(by_module(model).values()),
    }


def by_module(model: Model) -> dict[str, int]:
    """MACs that each module performs itself, outside its children, by module path (`""` is the root).

    The values add up to `count(model)["macs"]`. An attention's own share is its two products; its projections are
    linear layers of their own. The network runs once, without gradients, on the device its weights are on.
    """
    inclusive = _inclusive(model)
    own = dict(inclusive)
    for path, macs in inclusive.items():
        if path:
            own[_parent(path, inclusive)] -= macs
    return {path: macs for path, macs in own.items() if macs}


def _parent(path: str, known: dict[str, int]) -> str:
    """Nearest enclosing module that was called (a ModuleList never is)."""
    while path:
        path = path.rpartition(".")[0]
        if path in known:
            return path
    return ""


def _inclusive(model: Model) -> dict[str, int]:
    """MACs by module path, each with everything inside it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from optimize.diffusion.network import example_inputs

    module = model.module
    device = next(module.parameters()).device
    feed = {name: value.to(device) for name, value in example_inputs(model.inputs, 1).items()}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=_attention_on_cpu()) as counter:
        model.denoiser.network(**feed)
    root = type(module).__name__
    flops = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
    found = {name.removeprefix(f"{root}."): n // 2 for name, n in flops.items() if name.startswith(f"{root}.")}
    return {"": counter.get_total_flops() // 2, **found}


def _attention_on_cpu() -> dict[Any, Any]:
    """torch's counter knows every fused attention but the CPU's: q k^T and its product with v, 2 FLOPs a MAC."""
    import torch

    def flops(q: Any, k: Any, v: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        batch, heads, queries, width = q
        return 2 * batch * heads * queries * k[-2] * (width + v[-1])

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flops}
