"""What the table of architectures holds of each: how it is built from its config, what it is fed, what it means.

A config may carry the key `_optimize` beside diffusers' own: `sizes` {symbol: number} that replace default sizes of
inputs, and `controlnet`: true for a U-Net that is fed a ControlNet's residuals. It is stored with the structure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimize.diffusion.denoiser import Conditioning
from optimize.diffusion.network import TensorSpec
from optimize.errors import shown

if TYPE_CHECKING:
    from torch import nn

Config = dict[str, Any]
OURS = "_optimize"


def _no(config: Config) -> bool:
    return False


@dataclass(frozen=True)
class Architecture:
    """`build(config)` gives the module; the other functions read the config. `shape` is one sample's, without batch;
    `learned_variance` says whether the output holds a variance behind its mean; `limit` is the largest absolute value
    of a sample, None for latents."""

    build: Callable[[Config], nn.Module]
    inputs: Callable[[Config], tuple[TensorSpec, ...]]
    conditioning: Callable[[Config], Conditioning]
    shape: Callable[[Config], tuple[int, ...]]
    learned_variance: Callable[[Config], bool] = _no
    limit: float | None = None


def from_diffusers(name: str) -> Callable[[Config], nn.Module]:
    """The builder of a class of diffusers."""

    def build(config: Config) -> nn.Module:
        import diffusers

        kind = getattr(diffusers, name)
        _check_kinds(kind, config)
        return kind.from_config({k: v for k, v in config.items() if k != OURS})

    return build


def _check_kinds(kind: type, config: Config) -> None:
    """Raise TypeError for a config's value of another kind than its default, which a layer would meet when it computes."""
    for name, about in inspect.signature(kind.__init__).parameters.items():  # type: ignore[misc]
        usual, given = about.default, config.get(name, about.default)
        if given is usual or (given is None and not isinstance(usual, float | bool)):
            continue
        if isinstance(usual, bool):
            fits = isinstance(given, bool)
        elif isinstance(usual, float):
            fits = isinstance(given, int | float) and not isinstance(given, bool)
        elif isinstance(usual, int):
            fits = isinstance(given, list | tuple) or (type(given) is int and (given >= 0 or usual < 0))
        else:
            fits = not isinstance(usual, str) or isinstance(given, str | list | tuple | bool)
        if not fits:
            raise TypeError(f"{name} is {shown(given)}, and {shown(usual)} by default")


def ours(config: Config, key: str, default: Any = None) -> Any:
    """An entry of the config's `_optimize`."""
    return (config.get(OURS) or {}).get(key, default)


def sized(config: Config, **defaults: int) -> tuple[tuple[str, int], ...]:
    """Default sizes of symbols, with those the config names in their place."""
    return tuple((symbol, int(ours(config, "sizes", {}).get(symbol, size))) for symbol, size in defaults.items())


def square(config: Config, default: int) -> tuple[int, int]:
    """Height and width of the config's samples."""
    size = config.get("sample_size") or default
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def told(inputs: tuple[TensorSpec, ...], nulled: tuple[str, ...], extra: tuple[TensorSpec, ...] = ()) -> Conditioning:
    """Conditioning by every input behind the latents and the time, and by `extra`; `nulled` are those that another value
    takes the place of in the unconditional branch."""
    tensors = (*inputs[2:], *extra)
    names = {spec.name for spec in tensors}
    return Conditioning("tensors", tensors=tensors, nulled=tuple(n for n in nulled if n in names))
