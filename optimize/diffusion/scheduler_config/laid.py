"""The grid that a diffusers scheduler lays, with its spacing, offset, Karras, exponential or beta sigmas, shift and final
sigma: the library is asked, not imitated.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from optimize.diffusion.scheduler_config import classes
from optimize.diffusion.scheduler_config.fields import known
from optimize.errors import UserError

log = logging.getLogger(__name__)
Level = tuple[float, float]  # (alpha, sigma)
APART = 1e-9  # between times that a scheduler rounds to the same one; nothing to a network fed float32


@dataclass(frozen=True)
class Grid:
    """`times` of the evaluations, noisiest first, and behind them where the last step ends; `arrivals`, one a step, are
    where the steps lead to, which is the next time but for schedulers that step by a fixed stride. Unit noise times
    `initial` is the first state, the last one times `final` the sample."""

    times: tuple[float, ...]
    arrivals: tuple[float, ...]
    levels: Mapping[float, Level] = field(default_factory=dict)
    initial: float = 1.0
    final: float = 1.0


def laid_grid(config: dict[str, Any], shift: float, steps: int) -> Grid:
    """The grid of a config's own scheduler; UserError where it lays none that other solvers can run along."""
    return _laid(json.dumps(config, sort_keys=True), shift, steps)


@lru_cache(maxsize=256)
def _laid(config_json: str, shift: float, steps: int) -> Grid:
    config = json.loads(config_json)
    scheduler = placed(config, shift, steps)
    if "sigmas" not in vars(scheduler):
        return _by_stride(scheduler, config, steps)
    sigmas = np.asarray(scheduler.sigmas, dtype=np.float64)
    times = np.asarray(scheduler.timesteps, dtype=np.float64)
    if len(times) == 2 * (len(sigmas) // 2) - 1 and len(times) > 1 and (sigmas[1:-1:2] == sigmas[2::2]).all():
        sigmas, times = np.append(sigmas[0], sigmas[1::2]), np.append(times[0], times[1::2])  # Heun evaluates twice
    sigmas = sigmas[: len(times) + 1]
    if len(sigmas) != len(times) + 1 or (np.diff(sigmas) > 0).any():
        raise UserError(
            f"sampler.spacing: {config['_class_name']} lays a grid that another solver cannot run along. "
            "Give sampler.spacing (trailing, leading, linspace) or sampler.timesteps, or leave sampler.solver out."
        )
    levels = [_level(config, sigma) for sigma in sigmas]
    keys = _apart(_native(config, times, sigmas))
    scaled = known(config).scaled and not classes.is_edm(config)
    first, last = (levels[0][0], 1 / levels[-1][0]) if scaled else (1.0, 1.0)
    return Grid(keys, keys[1:], dict(zip(keys, levels, strict=True)), first_scale(scheduler) * first, last)


def _by_stride(scheduler: Any, config: dict[str, Any], steps: int) -> Grid:
    """DDIM's family: whole indices, and steps of a fixed stride, whatever the distance to the next index is."""
    listed = [float(t) for t in scheduler.timesteps.tolist() if t >= 0]
    if len(listed) < len(scheduler.timesteps):
        log.warning(
            "%s: %s lays a step at index -1 for %d steps, which is left out",
            classes.FILE,
            config["_class_name"],
            steps,
        )
    times = _apart(listed)
    stride, bar = int(config.get("num_train_timesteps", 1000)) // steps, scheduler.alphas_cumprod.double()
    levels = {key: _of_bar(float(bar[round(key)])) for key in times}
    arrivals = []
    for key in times:
        index = round(key) - stride
        arrivals.append(float(index) if index >= 0 else -1.0)
        levels.setdefault(arrivals[-1], _of_bar(float(bar[index] if index >= 0 else scheduler.final_alpha_cumprod)))
    return Grid((*times, arrivals[-1]), tuple(arrivals), levels, first_scale(scheduler))


def first_scale(scheduler: Any) -> float:
    """What unit noise is multiplied by; 1 for flows, whose schedulers do not say."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))


def _of_bar(bar: float) -> Level:
    return float(np.sqrt(bar)), float(np.sqrt(max(1 - bar, 0.0)))


def _level(config: dict[str, Any], sigma: float) -> Level:
    """(alpha, sigma) of a scheduler's sigma, by its family."""
    if classes.is_flow(config):
        return float(1 - sigma), float(sigma)
    if classes.is_edm(config) or classes.is_consistency(config):
        return 1.0, float(sigma)
    return float(1 / np.sqrt(1 + sigma**2)), float(sigma / np.sqrt(1 + sigma**2))


def _native(config: dict[str, Any], times: np.ndarray, sigmas: np.ndarray) -> list[float]:
    """Native times of the levels: indices, the last one below them all, or sigma itself; a flow's as the network is fed
    them, which some schedulers round."""
    if classes.is_flow(config):
        return [
            *(float(t) for t in times / int(classes.value(config, "num_train_timesteps", 1000))),
            float(sigmas[-1]),
        ]
    if classes.is_edm(config) or classes.is_consistency(config):
        return [float(s) for s in sigmas]
    return [*map(float, times), -1.0 if sigmas[-1] == 0 else 0.0]


def _apart(times: list[float]) -> tuple[float, ...]:
    """Strictly falling: a time equal to the one before is moved by next to nothing."""
    found: list[float] = []
    for t in times:
        found.append(t if not found or t < found[-1] else found[-1] - APART)
    return tuple(found)


def placed(config: dict[str, Any], shift: float, steps: int) -> Any:
    """diffusers' scheduler of a config with its timesteps set; UserError where it refuses its config or the steps."""
    import diffusers

    own = {k: v for k, v in config.items() if k in known(config).fields}
    dynamic = {}
    if classes.value(config, "use_dynamic_shifting"):
        exponential = classes.value(config, "time_shift_type", "exponential") == "exponential"
        dynamic = {"mu": float(np.log(shift)) if exponential else shift}
    try:
        scheduler = getattr(diffusers, config["_class_name"])(**own)
        scheduler.set_timesteps(steps, **dynamic)
    except (ValueError, TypeError, NotImplementedError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise UserError(
            f"{classes.FILE}: {config['_class_name']} refuses {steps} steps or a field of its config: {error!s:.300}"
        ) from error
    return scheduler
