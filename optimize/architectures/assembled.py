"""A Model from an architecture's name, a network config and a scheduler config; what sources have in common."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from optimize.architectures.entry import Architecture, Config
from optimize.architectures.known import architecture
from optimize.diffusion import parameterization, schedule
from optimize.diffusion.denoiser import Conditioning, Denoiser
from optimize.diffusion.followed import followed
from optimize.diffusion.model import Model, Structure
from optimize.diffusion.network import TorchNetwork
from optimize.diffusion.scheduler_config.classes import FILE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optimize.diffusion.parameterization import Parameterization
    from optimize.diffusion.sampling import Sampler

log = logging.getLogger(__name__)


def assembled(
    name: str,
    config: Config,
    scheduler: dict[str, Any],
    sampler: Sampler,
    *,
    module: nn.Module | None = None,
    source: dict[str, Any] | None = None,
    conditions: Mapping[str, Tensor] | None = None,
    conditioning: Conditioning | None = None,
) -> Model:
    """The Model, in evaluation mode; `module` is the network with its weights, built anew where it is not given, and
    `conditioning` that of its config where that is not given. Raises UserError for guidance that it cannot have."""
    entry = architecture(name)
    inputs, shape = entry.inputs(config), entry.shape(config)
    conditioning = conditioning or entry.conditioning(config)
    conditioning.check_guidance(sampler.guidance.cfg)
    module = entry.build(config) if module is None else module
    tokens = shape[0] if len(shape) == 2 else math.prod(shape[1:]) // 4
    denoiser = Denoiser(
        TorchNetwork(module.eval().requires_grad_(False), inputs),
        _parameterization(entry, config, scheduler),
        schedule.from_diffusers(scheduler, tokens),
        conditioning,
    )
    sampler, notes = followed(sampler, denoiser.schedule, packed=len(shape) == 2)
    for note in notes:
        log.warning("%s: %s", FILE, note)
    return Model(
        denoiser,
        sampler,
        Structure(name, config),
        shape,
        source={**(source or {}), **({"notes": list(notes)} if notes else {})},
        limit=entry.limit,
        conditions=conditions or {},
    )


def _parameterization(entry: Architecture, config: Config, scheduler: dict[str, Any]) -> Parameterization:
    """The scheduler's, with what the architecture knows: a learned variance, and a time that is fed as it is in [0, 1]."""
    found = parameterization.from_diffusers(scheduler)
    time = entry.inputs(config)[1]
    scale = float(time.fill[0]) if found.time == "flow" and isinstance(time.fill, tuple) else found.time_scale
    return replace(found, time_scale=scale, learned_variance=entry.learned_variance(config))
