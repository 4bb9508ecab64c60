"""Networks of configs that someone else wrote: built without memory first, and never larger than their weights.

A config is text, and `num_layers: 10000000` is a line of it. What is built is counted as it grows, and given up where it
has more tensors than its weights hold; widths and tables cost nothing before anything is allocated.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError, OptimizeError, UserError

if TYPE_CHECKING:
    from torch import nn

    from optimize.diffusion.network import TensorSpec

MOST = 4_000  # tensors of a network whose weights are not known; SDXL's U-Net has 1,680
SPARE = 64  # tensors a network may have beside twice those of its file, so that a few missing ones are named
LARGEST_TABLES = 2**31  # bytes of a network's buffers that are no part of its weights, such as tables of positions
LARGEST_INPUT = 2**28  # numbers of one sample of an input
WRONG = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError, RuntimeError, TypeError, ValueError)  # fmt: skip


def on_meta(build: Callable[[], nn.Module], config: Any, where: str, tensors: int | None = None) -> nn.Module:
    """The network of `build()` on the meta device. `config` is what it is built from, `tensors` how many its file holds.

    Raises ArtifactError where it has far more, where its class refuses the config, and where its tables are absurd."""
    import torch

    most = MOST if tensors is None else 2 * tensors + SPARE
    held = "more than any network here has" if tensors is None else f"its weights hold {tensors}"
    check_depth(config, where)
    said = f"it asks for a network of more than {most} tensors, and {held}"
    with as_errors(config, where), _at_most(most, said), torch.device("meta"):
        module = build()
    _check_tables(module, config, where)
    return module


def check_depth(config: Any, where: str) -> None:
    """Raise ArtifactError where a config counts more layers or blocks than a network here may have tensors: some libraries
    make lists of that length before any layer."""
    for name, count in _numbers(config):
        if count > MOST and name.endswith(("layers", "per_block", "blocks", "depth", "depths", "stages")):
            raise ArtifactError(
                f"{where}: it asks for more layers than the {MOST} that a network here may have{_largest(config)}. Correct the config, or copy it again."
            )


@contextmanager
def as_errors(config: Any, where: str) -> Iterator[None]:
    """Whatever a library raises at a config inside is one ArtifactError, with the largest numbers of the config."""
    try:
        yield
    except OptimizeError as error:
        if type(error) is not _TooManyError:
            raise
        raise ArtifactError(f"{where}: {error}{_largest(config)}. Correct the config, or copy it again.") from None
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ArtifactError(f"{where}: it cannot be built from this config ({reason}){_largest(config)}.") from error


class _TooManyError(OptimizeError):
    """More tensors than allowed."""


@contextmanager
def _at_most(most: int, said: str) -> Iterator[None]:
    """No more than `most` parameters and four times as many modules are registered by this thread inside."""
    from torch.nn.modules import module as nn_module

    count, here = {"parameters": 0, "modules": 0}, threading.get_ident()

    def counted(kind: str, limit: int) -> Callable[..., None]:
        def count_one(*registered: Any) -> None:
            count[kind] += threading.get_ident() == here
            if count[kind] > limit:
                raise _TooManyError(said)

        return count_one

    hooks = [
        nn_module.register_module_parameter_registration_hook(counted("parameters", most)),
        nn_module.register_module_module_registration_hook(counted("modules", 4 * most)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _check_tables(module: nn.Module, config: Any, where: str) -> None:
    own = module.state_dict(keep_vars=True)
    tables = {name: b.numel() * b.element_size() for name, b in module.named_buffers() if name not in own}
    if sum(tables.values()) > LARGEST_TABLES:
        largest = max(tables, key=lambda name: tables[name])
        raise ArtifactError(
            f"{where}: its table {largest} would take {tables[largest] / 1e9:.3g} GB{_largest(config)}. Correct the config, or copy it again."
        )


def check_inputs(inputs: Sequence[TensorSpec], config: Any, where: str) -> None:
    """Raise ArtifactError where one sample of an input is absurdly large, or has no size at all."""
    for spec in inputs:
        try:
            shape = spec.shape(1)
        except UserError as error:  # a text in the place of a number
            raise ArtifactError(f"{where}: {error} Correct the config, or copy it again.") from error
        if not all(side > 0 for side in shape) or math.prod(shape) > LARGEST_INPUT:
            shown = str(list(shape))[:100]
            raise ArtifactError(
                f"{where}: a sample of {spec.name} would be {shown}; between 1 and {LARGEST_INPUT} numbers are allowed{_largest(config)}. Correct the config, or copy it again."
            )


def _largest(config: Any) -> str:
    """The three largest whole numbers of a config by name, in words; empty where it has none."""
    found = sorted(_numbers(config), key=lambda pair: -abs(pair[1]))[:3]
    shown = ", ".join(f"{_plain(name)} {value if abs(value) < 10**20 else f'of {value.bit_length()} bits'}" for name, value in found)  # fmt: skip
    return f"; its largest numbers are {shown}" if shown else ""


def _plain(name: str) -> str:
    return name[:60] if name.isprintable() else ascii(name)[:60]


def _numbers(config: Any, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _numbers(value, f"{name}.{key}" if name else str(key))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _numbers(value, name)
    elif type(config) is int:
        yield name, config
