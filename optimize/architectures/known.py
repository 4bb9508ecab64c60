"""Registered architectures: how to build a network from its config and what its inputs are.

Artifacts name an entry of this table; an import path never comes out of an artifact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimize.architectures.any_module import PREFIX, imported_architecture
from optimize.architectures.bounded import on_meta
from optimize.architectures.entry import OURS, Architecture, Config
from optimize.architectures.filled import emptied
from optimize.architectures.transformers import TRANSFORMERS
from optimize.architectures.unets import UNETS
from optimize.errors import unknown

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURES: dict[str, Architecture] = {**UNETS, **TRANSFORMERS}


def architecture(name: str) -> Architecture:
    """The entry called `name`, or the imported module it names; UserError with the nearest name otherwise."""
    if name.startswith(PREFIX):
        return imported_architecture(name)
    if name not in ARCHITECTURES:
        raise unknown("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def with_sizes(config: Config, **sizes: int) -> Config:
    """The config with other default sizes of its symbols, e.g. `H=16, W=16, L=8`."""
    mine = config.get(OURS) or {}
    return {**config, OURS: {**mine, "sizes": {**mine.get("sizes", {}), **sizes}}}


def with_controlnet(config: Config) -> Config:
    """The config of a conditional U-Net that is fed a ControlNet's residuals as well."""
    return {**config, OURS: {**(config.get(OURS) or {}), "controlnet": True}}


def hollow(name: str, config: Config) -> nn.Module:
    """The network of a config without memory for its parameters (see `filled.emptied`). Raises ArtifactError for a config
    that its class refuses, or that asks for an absurdly large network."""
    entry = architecture(name)
    if not name.startswith(PREFIX):  # code of the user's own may not know the meta device
        on_meta(lambda: entry.build(config), config, name)
    return emptied(lambda: entry.build(config), config, name)
