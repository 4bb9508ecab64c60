"""The layers of a network as a graph sees them: one row an operator, in the order they run, with what each one costs.

The network runs on the meta device (shapes without numbers), so one of any size is read within a few hundred megabytes
and its weights are neither copied nor changed. MACs and parameters are those of `optimize.diffusion.macs`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optimize.diffusion.model import Model


@dataclass(frozen=True)
class Layer:
    """One operator. Counts are integers at the batch asked for; elements, not bytes, so that any format can be priced.

    `kind`: conv, linear, attention (both products and the softmax of a fused call), matmul (of two activations), norm,
    softmax, elementwise, resample, embedding, reduce, copy, or unused (weights that nothing reads).
    """

    path: str  # innermost module that ran it; "" is the root
    kind: str
    macs: int = 0  # multiply-accumulates, by the convention of `optimize.diffusion.macs`
    other_flops: int = 0  # floating-point operations besides
    weights: int = 0  # elements of parameters, each where it is first read: they add up to the parameters
    inputs: int = 0  # elements of activations read
    outputs: int = 0  # elements of activations written
    live: int = 0  # elements of all activations held at that moment, this operator's own among them
    format: str = ""  # "int8" where the model is quantized here; otherwise the format of the run


def layers(
    network: Model | nn.Module,
    batch: int = 1,
    feed: Mapping[str, Any] | None = None,
    formats: Mapping[str, str] | None = None,
) -> list[Layer]:
    """Every operator of one network call, in order; views cost nothing and are left out.

    `network`: a Model (its inputs at `batch` are made here) or any module with the `feed` it is called with, whose
    values may live on any device, meta as well. `formats`: of quantized modules by path (see `fake_quant.formats`), a
    Model's own where not given. Raises TypeError for a module without a feed and for a runner.
    """
    import torch

    from optimize.diffusion.model import Model

    module, formats = network, formats or {}
    if isinstance(network, Model):
        from optimize.diffusion.network import example_inputs
        from optimize.quantization.fake_quant import formats as of_table

        module = network.module
        formats = of_table(r for e in network.structure.edits for r in e["record"].get("quantizers", ()))
        feed = example_inputs(network.inputs, batch) if feed is None else feed
    if feed is None:
        raise TypeError("layers: a module alone does not say what it is called with; give feed={name: tensor}")
    with _unquantized(module, formats), torch.no_grad():
        return _Trace(module, formats).run(feed)


def params(found: Iterable[Layer]) -> int:
    """Parameters of the network."""
    return sum(layer.weights for layer in found)


def macs(found: Iterable[Layer]) -> int:
    """Multiply-accumulates of one call."""
    return sum(layer.macs for layer in found)


@contextmanager
def _unquantized(module: nn.Module, formats: Mapping[str, str]) -> Iterator[None]:
    """Inside the block modelopt's quantizers let everything pass: a quantized layer is one operator, not its emulation."""
    found = [m for m in module.modules() if hasattr(m, "disable_quant")] if formats else []
    was_on = [m for m in found if m.is_enabled]
    try:
        for quantizer in was_on:
            quantizer.disable()
        yield
    finally:
        for quantizer in was_on:
            quantizer.enable()


VIEWS = frozenset({"_unsafe_view", "_reshape_alias", "lift_fresh", "alias", "detach"})
MAKING = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"})
COPIES = frozenset(
    {"cat", "stack", "clone", "copy_", "_to_copy", "constant_pad_nd", "roll", "repeat", "index", "gather", "contiguous"}
)
REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "var", "var_mean", "argmax", "cumsum", "any", "all"})
# Floating-point operations an element, by plain counting of the formula; one where the name is not listed.
PER_ELEMENT = {"silu": 4, "sigmoid": 3, "gelu": 8, "tanh": 5, "softplus": 3, "norm": 8, "softmax": 4}


def kind_of(name: str, reads_weights: bool) -> str:
    """Kind of an ATen operator by its name ("addmm"); a matrix product with a parameter is a linear layer."""
    bare = name.lstrip("_").removesuffix("_")
    if "convolution" in bare or "conv2d" in bare:
        return "conv"
    if bare in ("mm", "addmm", "bmm", "baddbmm"):
        return "linear" if reads_weights else "matmul"
    for part, kind in (
        ("attention", "attention"),
        ("norm", "norm"),
        ("softmax", "softmax"),
        ("embedding", "embedding"),
    ):
        if part in bare:
            return kind
    if bare.startswith("upsample") or "pool" in bare or bare in ("pixel_shuffle", "pixel_unshuffle"):
        return "resample"
    return "copy" if name in COPIES else "reduce" if name in REDUCTIONS else "elementwise"


class _Trace:
    """One run of a module on meta tensors, operator by operator."""

    def __init__(self, module: nn.Module, formats: Mapping[str, str]) -> None:
        import torch

        self.module, self.formats = module, formats
        self.names = {id(m): name for name, m in module.named_modules()}
        self.stack = [""]
        self.found: list[Layer] = []
        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        twins: dict[int, Tensor] = {}  # tied weights keep one twin
        for _, tensor in tensors:
            twins.setdefault(id(tensor), torch.empty_like(tensor, device="meta", requires_grad=False))
        self.twins = {name: twins[id(tensor)] for name, tensor in tensors}
        self.constant = {t.untyped_storage()._cdata for t in self.twins.values()}
        own = {id(twins[id(p)]): twins[id(p)] for p in module.parameters()}
        self.unread = {t.untyped_storage()._cdata: t.numel() for t in own.values()}
        self.sizes: dict[int, int] = {}  # live activations by storage
        self.live = 0

    def run(self, feed: Mapping[str, Any]) -> list[Layer]:
        """The operators; weights that no operator read close the list."""
        import torch
        from torch.utils._pytree import tree_map_only

        from optimize.diffusion.network import nested

        given = tree_map_only(torch.Tensor, lambda t: t.to("meta"), nested(feed))
        self.hold(given.values())
        with ExitStack() as stack:
            hooks = torch.nn.modules.module
            stack.callback(hooks.register_module_forward_pre_hook(self._enter).remove)
            stack.callback(hooks.register_module_forward_hook(self._leave, always_call=True).remove)
            stack.enter_context(_modes(self))
            torch.func.functional_call(self.module, self.twins, kwargs=given)
        rest = sum(self.unread.values())
        return [*self.found, *([Layer("", "unused", weights=rest)] if rest else [])]

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.names.get(id(module), self.stack[-1]))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()

    def hold(self, values: Iterable[Any]) -> None:
        """Count these tensors as live until their storage is freed."""
        for tensor in _tensors(values):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.constant or key in self.sizes:
                continue
            self.sizes[key] = size = storage.nbytes() // tensor.element_size()
            self.live += size
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key, 0)

    def record(self, name: str, inputs: list[Tensor], output: Any, flops: Callable[[], int] | None) -> None:
        """Append the operator `name` that read `inputs` and wrote `output`."""
        self.hold([output])
        if name in VIEWS or name in MAKING or not inputs:
            return
        by_storage = {t.untyped_storage()._cdata: t for t in inputs}
        read = [t for key, t in by_storage.items() if key not in self.constant]
        weights = sum(self.unread.pop(key, 0) for key in by_storage)
        kind = kind_of(name, any(key in self.constant for key in by_storage))
        if kind == "embedding":
            read = []
        written = _tensors([output])[: 1 if kind == "norm" else None]  # a norm's statistics are for training
        outputs = sum(t.numel() for t in written)
        counted = flops() // 2 if flops else 0
        path = self.stack[-1]
        self.found.append(
            Layer(
                path,
                kind,
                counted,
                0 if counted or kind in ("copy", "embedding") else _other_flops(name, kind, outputs, read),
                weights,
                sum(min(t.numel(), t.untyped_storage().nbytes() // t.element_size()) for t in read),
                outputs,
                self.live,
                self.formats.get(path, "") if kind in ("conv", "linear") else "",
            )
        )


def _other_flops(name: str, kind: str, outputs: int, read: list[Tensor]) -> int:
    each = PER_ELEMENT.get(kind) or PER_ELEMENT.get(name.removesuffix("_"), 1)
    return each * max([outputs, *(t.numel() for t in read)] if kind == "reduce" else [outputs])


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    """All tensors in nested values."""
    import torch
    from torch.utils._pytree import tree_leaves

    return [t for t in tree_leaves(list(values)) if isinstance(t, torch.Tensor)]


@contextmanager
def _modes(trace: _Trace) -> Iterator[None]:
    """Let `trace` see every operator, and fused attention as one."""
    import torch
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_map_only
    from torch.utils.flop_counter import flop_registry

    class Operators(TorchDispatchMode):
        """Every ATen operator; a tensor from elsewhere (a constant of the module) joins the meta device."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            args, kwargs = tree_map_only(torch.Tensor, lambda t: t.to("meta"), (args, kwargs or {}))
            output = func(*args, **kwargs)
            if not _is_view(func):
                count = flop_registry.get(func.overloadpacket)
                flops = (lambda: int(count(*args, **kwargs, out_val=output))) if count else None
                trace.record(func.overloadpacket.__name__, _tensors([args, kwargs]), output, flops)
            return output

    class Attention(TorchFunctionMode):
        """`scaled_dot_product_attention`, whichever kernels it would fall apart into."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is not torch.nn.functional.scaled_dot_product_attention:
                return func(*args, **(kwargs or {}))
            return attention(*args, **(kwargs or {}))

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Any:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]), device="meta")
        read = _tensors([query, key, value, attn_mask])
        flops = 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        trace.record("attention", read, output, lambda: flops)
        return output

    with Attention(), Operators():
        yield


def _is_view(func: Any) -> bool:
    """Whether an operator only looks at its input's storage."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
