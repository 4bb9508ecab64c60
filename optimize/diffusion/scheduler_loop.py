"""Sampling as a diffusers pipeline does it: the loop of its own scheduler, around a denoiser.

For the schedulers whose steps no solver of `solvers.py` takes: UniPC, DEIS, single-step and third-order solvers,
thresholding, and those that add noise. Their noise is drawn for each sample from its own first noise, so that a seed
gives the same image in any batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.diffusion.schedule import Schedule
from optimize.diffusion.scheduler_config import classes
from optimize.diffusion.scheduler_config.laid import first_scale, placed
from optimize.diffusion.solvers import Step
from optimize.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from optimize.diffusion.parameterization import Parameterization

Evaluate = Callable[["Tensor", float], tuple["Tensor", "Tensor"]]


def own_loop(
    schedule: Schedule, head: Parameterization, steps: int, noise: Tensor, evaluate: Evaluate
) -> Iterator[Step | Tensor]:
    """Yields a `Step` before every evaluation and at the end the clean sample; `evaluate(z, t)` gives guided (x^, e^).

    Raises UserError for a schedule that comes from no scheduler of diffusers.
    """
    check_own(schedule)
    config = schedule.diffusers
    scheduler, generators = placed(config, schedule.shift, steps), _generators(noise)
    plain, z = _keeps(config), noise.double() * first_scale(scheduler)
    for i, timestep in enumerate(scheduler.timesteps):
        seen = z if plain else scheduler.scale_model_input(z, timestep)
        t = _native(scheduler, config, i, timestep)
        x, e = evaluate(seen, t)
        yield Step(t, seen, x, e)
        raw = head.target(x, e, float(schedule.alpha(t)), float(schedule.sigma(t)))
        z = _stepped(scheduler, raw, timestep, z, generators)
    yield z


def check_own(schedule: Schedule) -> None:
    """Raise UserError where a schedule has no scheduler of its own."""
    if not schedule.diffusers.get("_class_name"):
        raise UserError(
            'sampler.solver: "scheduler" given, and this model has no scheduler_config.json with a _class_name. '
            "Allowed here: ddim, heun, dpmpp_2m, ipndm, pndm."
        )


def own_times(schedule: Schedule, steps: int) -> np.ndarray:
    """Native times of the evaluations, and behind them clean data's."""
    check_own(schedule)
    scheduler = placed(schedule.diffusers, schedule.shift, steps)
    found = [_native(scheduler, schedule.diffusers, i, t) for i, t in enumerate(scheduler.timesteps)]
    return np.asarray([*found, schedule.clean])


def _keeps(config: dict[str, Any]) -> bool:
    """Whether the state is what the library calls z: EDM's is scaled by the parameterization, not by the scheduler."""
    return classes.is_edm(config) or classes.is_consistency(config) or classes.is_flow(config)


def _native(scheduler: Any, config: dict[str, Any], i: int, timestep: Any) -> float:
    if classes.is_flow(config):
        return float(timestep) / float(classes.value(config, "num_train_timesteps", 1000))
    if classes.is_edm(config) or classes.is_consistency(config):
        return float(scheduler.sigmas[i])
    return float(timestep)


def _stepped(scheduler: Any, raw: Tensor, timestep: Any, z: Tensor, generators: list[Any]) -> Tensor:
    """The next state; a step that draws no noise takes no generator."""
    import inspect

    import torch

    options = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True  # else it warns at every step: the parameterization scaled
    raw = raw if raw.dtype == torch.float64 else raw.double()
    made: Tensor = scheduler.step(raw.float(), timestep, z.float(), return_dict=False, **options)[0]
    return made.double()


def _generators(noise: Tensor) -> list[Any]:
    """A generator a sample, seeded by the bytes of its first noise."""
    import torch

    rows = noise.detach().cpu().float().numpy()
    seeds = (int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:8], "little") >> 1 for row in rows)
    return [torch.Generator().manual_seed(seed) for seed in seeds]
