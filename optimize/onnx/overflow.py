"""Which layers of a float network come near FP16's largest number, found by running it and looking at every operator.

Modules' outputs are not enough: attention logits, gated products and residual sums are made between modules. So every
operator's inputs and outputs are looked at, and counted for the module that is running; attention is computed in its
parts, so that its logits are seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optimize.diffusion.network import nested

if TYPE_CHECKING:
    from torch import Tensor, nn

LARGEST_FP16 = 65504.0
HEADROOM = 4.0  # inputs that were not tried may go this much higher


def overflowing(
    module: nn.Module, feeds: Iterable[Mapping[str, Tensor]], limit: float = LARGEST_FP16 / HEADROOM
) -> dict[str, float]:
    """`{path of a module: largest |value|}` of those whose operators read or make values above `limit` on any feed.

    A NaN counts as infinite. Weights count as well; a module inside another counts for itself alone.
    """
    return {path: value for path, value in largest_activations(module, feeds).items() if not value <= limit}


def largest_activations(module: nn.Module, feeds: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """`{path of a module: largest |value|}` that an operator run by the module itself reads or makes; "" is the network."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    found: dict[str, float] = {}
    with torch.no_grad(), _running(module) as stack, sdpa_kernel(SDPBackend.MATH), _watch(found, stack):
        for feed in feeds:
            module(**nested(feed))
    return found


@contextmanager
def _running(module: nn.Module) -> Iterator[list[str]]:
    """A stack of the paths of the modules that are running."""
    stack = [""]
    hooks = []
    for path, part in module.named_modules():
        hooks.append(part.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
        hooks.append(part.register_forward_hook(lambda *_: _pop(stack), always_call=True))
    try:
        yield stack
    finally:
        for hook in hooks:
            hook.remove()


def _pop(stack: list[str]) -> None:
    stack.pop()


def _watch(found: dict[str, float], stack: list[str]) -> Any:
    """A dispatch mode that keeps the largest number an operator reads or makes, under the path on top of the stack."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if not _is_view(func):
                path = stack[-1]
                for tensor in _tensors((args, made)):
                    found[path] = max(found.get(path, 0.0), _largest(tensor))
            return made

    return Watch()


def _is_view(func: Any) -> bool:
    """Whether an operator only looks at its input's memory in another way."""
    return any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Floating-point tensors in nested tuples and lists, but parameters."""
    import torch

    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.numel() and not value.requires_grad and value.device.type != "meta":
            yield value
    elif isinstance(value, tuple | list):
        for entry in value:
            yield from _tensors(entry)


def _largest(tensor: Tensor) -> float:
    """The largest finite |value|: an infinite one is a mask, which FP16 holds as well. Infinite where one is NaN."""
    import torch

    low, high = (float(v) for v in torch.aminmax(tensor))
    if low != low:
        return float("inf")
    if max(-low, high) == float("inf"):
        finite = tensor[torch.isfinite(tensor)]
        return float(finite.abs().max()) if finite.numel() else 0.0
    return max(-low, high)
