"""A network of a config with its weights: every tensor accounted for, float32, evaluation mode.

The headers of its files are compared with the network before it is built and before any number is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from optimize.architectures.bounded import as_errors, on_meta
from optimize.storage.accounting import fill, fit, refuse_quantized

if TYPE_CHECKING:
    from torch import nn

    from optimize.storage.accounting import Fit
    from optimize.storage.variants import Weights


def filled(build: Callable[[], nn.Module], config: Any, weights: Weights) -> nn.Module:
    """The network of `build()`, which `config` describes, with these weights. Raises ArtifactError where they are missing,
    damaged or quantized, do not fit, or are not finite."""
    how = compared(build, config, weights)
    module = emptied(build, config, config_of(weights))
    fill(module, how, weights.read(), weights.where)
    if hasattr(module, "tie_weights"):  # what is one tensor to the network is one again
        module.tie_weights()
    return module.eval().requires_grad_(False)


def compared(build: Callable[[], nn.Module], config: Any, weights: Weights) -> Fit:
    """How the weights fill the network, by their headers alone; ArtifactError where they do not."""
    refuse_quantized(config, weights.where)
    stored = weights.stored()
    return fit(on_meta(build, config, config_of(weights), len(stored)), stored, weights.where)


def config_of(weights: Weights) -> str:
    """The config that belongs to some weights, for messages."""
    return f"config.json of {weights.where}"


def emptied(build: Callable[[], nn.Module], config: Any, where: str) -> nn.Module:
    """The network without memory for its parameters, which are on the meta device; buffers that are no part of its weights
    (tables of positions) hold their values."""
    from accelerate import init_empty_weights

    with as_errors(config, where), init_empty_weights(include_buffers=False):
        return build()
