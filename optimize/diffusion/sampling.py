"""Sampling: one small solver core over (x^, e^) at any timesteps, with guidance and clipping.

`trajectory` is the whole loop; the solvers' steps are in `solvers.py`, and what a sampler leaves open is filled in from
the scheduler's config in `followed.py`. State is float64 on the CPU. Guidance
follows Meng et al. 2022: x = (1 + w) x_cond - w x_null, so w = 0 is no guidance and costs one evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from optimize.configs import Config
from optimize.diffusion.denoiser import Denoiser
from optimize.diffusion.schedule import Schedule, Spacing
from optimize.diffusion.scheduler_config.laid import Grid, laid_grid
from optimize.diffusion.scheduler_loop import check_own, own_loop, own_times
from optimize.diffusion.solvers import Step, clipped, guided, solve

if TYPE_CHECKING:
    from torch import Tensor

SOLVERS = ("ddim", "heun", "dpmpp_2m", "ipndm")  # those that are searched
OWN = "scheduler"  # solver: the loop of the model's own diffusers scheduler; spacing: its grid
Pair = tuple["Tensor", "Tensor"]


ALL_SOLVERS = (*SOLVERS, "pndm", OWN)


class Guidance(Config):
    """How the condition is amplified. `cfg` evaluates twice a step; `folded` was trained into the network."""

    cfg: Annotated[float, Field(ge=0)] | None = None
    """Weight w of classifier-free guidance, x = (1 + w) x_cond - w x_null; 0 or more."""
    folded: float | None = None
    """Weight that a distilled network already contains; it is not applied again."""
    interval: tuple[float, float] | None = None
    """Native times [low, high] inside which cfg is applied; by default everywhere."""
    batched: bool = True
    """With cfg: both branches in one call of twice the batch."""

    @model_validator(mode="after")
    def _one_kind(self) -> Guidance:
        if self.cfg is not None and self.folded is not None:
            raise ValueError(
                "cfg and folded given together: the folded network already contains its guidance; keep one"
            )
        return self

    def applies(self, t: float) -> bool:
        """Whether two branches are evaluated at native time `t`."""
        inside = self.interval is None or self.interval[0] <= t <= self.interval[1]
        return bool(self.cfg) and inside


class Sampler(Config):
    """How images are drawn from a denoiser."""

    solver: Literal["ddim", "heun", "dpmpp_2m", "ipndm", "pndm", "scheduler"] = "ddim"
    """How a step is computed; ddim is Euler's method, heun evaluates twice a step, scheduler is the loop of the model's own
    diffusers scheduler. Left out: as that scheduler samples."""
    steps: Annotated[int, Field(ge=1, le=1000)] = 50
    """Solver steps."""
    spacing: Literal["trailing", "leading", "linspace", "logsnr", "scheduler"] = "trailing"
    """Where the steps lie when timesteps are not given. Left out: where the model's own diffusers scheduler has them."""
    timesteps: tuple[float, ...] | None = None
    """Native times, decreasing, as many as steps; clean is appended. Takes the place of spacing."""
    clip: Annotated[float, Field(gt=0)] | None = None
    """|x^| is clipped to this. Left out: as the model's own diffusers scheduler clips; null: not at all."""
    use_clipped_model_output: bool = True
    """With clip: e^ is recomputed from the clipped x^. Left out: as the model's own diffusers scheduler does."""
    guidance: Guidance = Guidance()
    """How the condition is amplified."""

    @model_validator(mode="after")
    def _decreasing(self) -> Sampler:
        if self.timesteps is not None and (
            len(self.timesteps) != self.steps or any(a <= b for a, b in pairwise(self.timesteps))
        ):
            raise ValueError(f"timesteps must be `steps` = {self.steps} strictly decreasing native times")
        return self

    def grid(self, schedule: Schedule) -> Grid:
        """Times, levels and first scale of a native solver's steps on a schedule."""
        if self.timesteps is not None:
            return schedule.along(np.append(np.asarray(self.timesteps, dtype=np.float64), schedule.end))
        if self.spacing == OWN:
            check_own(schedule)
            return laid_grid(schedule.diffusers, schedule.shift, self.steps)
        return schedule.along(schedule.grid(self.steps, cast(Spacing, self.spacing)))

    def times(self, schedule: Schedule) -> np.ndarray:
        """(steps+1,) native times, the last one clean; of the scheduler's own loop those of its evaluations."""
        if self.solver == OWN:
            return own_times(schedule, self.steps)
        return np.asarray(self.grid(schedule).times)

    def nfe(self, schedule: Schedule) -> int:
        """Network evaluations per image; a guided evaluation counts two."""
        plain = self.spacing != OWN or len(schedule.alpha_bar) % self.steps == 0  # else diffusers may lay one step more
        if self.solver != OWN and not self.guidance.interval and plain:
            return (self.steps + self._again(self.steps)) * (2 if self.guidance.cfg else 1)
        times = self.times(schedule)
        cost = [2 if self.guidance.applies(float(t)) else 1 for t in times[:-1]]
        return sum(cost) + sum(cost[1 : 1 + self._again(len(cost))])

    def _again(self, steps: int) -> int:
        """Steps that are evaluated at their end as well: Heun's all but the last, PNDM's first."""
        return {"heun": steps - 1, "pndm": min(steps - 1, 1)}.get(self.solver, 0)


def sample(sampler: Sampler, denoiser: Denoiser, noise_BCHW: Tensor, condition: Any = None) -> Tensor:
    """x_0 (B,C,H,W) float64 from unit noise (B,C,H,W); `condition` is labels (B,), tensors by input name, or None."""
    last = noise_BCHW
    for state in trajectory(sampler, denoiser, noise_BCHW, condition):
        last = state.z if isinstance(state, Step) else state
    return last


def trajectory(
    sampler: Sampler, denoiser: Denoiser, noise_BCHW: Tensor, condition: Any = None
) -> Iterator[Step | Tensor]:
    """Yields a `Step` before every solver step and at the end the clean sample."""
    if sampler.solver == OWN:

        def unclipped(z: Tensor, t: float) -> Pair:
            return predict(sampler, denoiser, z, t, condition)

        yield from own_loop(denoiser.schedule, denoiser.parameterization, sampler.steps, noise_BCHW, unclipped)
        return
    grid = sampler.grid(denoiser.schedule)
    placed = replace(denoiser, schedule=denoiser.schedule.on(grid.levels))
    z = noise_BCHW.double() * grid.initial

    def evaluate(z: Tensor, t: float) -> Pair:
        return predict(sampler, placed, z, t, condition)

    solver = "ddim" if sampler.steps == 1 else sampler.solver  # one step is one Euler step, whatever the solver
    for state in solve(solver, placed.schedule, grid.times, z, evaluate, grid.arrivals):
        yield state if isinstance(state, Step) else state * grid.final


def predict(sampler: Sampler, denoiser: Denoiser, z: Tensor, t: float, condition: Any) -> Pair:
    """Guided and clipped (x^, e^) at native time t."""
    if sampler.guidance.applies(t):
        x, e = _guided(sampler.guidance, denoiser, z, t, condition)
    else:
        x, e = denoiser(z, t, condition)
    if sampler.clip is None:
        return x, e
    return clipped(denoiser.schedule, z, t, x, sampler.clip, None if sampler.use_clipped_model_output else e)


def _guided(guidance: Guidance, denoiser: Denoiser, z: Tensor, t: float, condition: Any) -> Pair:
    import torch

    w, null = cast(float, guidance.cfg), denoiser.unconditional(condition)
    if null is None:
        raise ValueError(
            "sampler.guidance.cfg needs a denoiser with an unconditional branch (a null label or tensor) and a condition"
        )
    if guidance.batched:
        x, e = denoiser(torch.cat([z, z]), t, denoiser.both(condition, null))
        (x_c, x_u), (e_c, e_u) = x.chunk(2), e.chunk(2)
    else:
        (x_c, e_c), (x_u, e_u) = denoiser(z, t, condition), denoiser(z, t, null)
    return guided(w, x_c, x_u), guided(w, e_c, e_u)
