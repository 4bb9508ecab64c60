"""Sampling: one small solver core over (x^, e^) at any timesteps, with guidance and clipping.

`trajectory` is the whole loop. A solver maps the predictions seen so far to the next state; with alpha, sigma of the
schedule it covers VP, VE and flow models alike. State is float64 on the CPU. Guidance follows Meng et al. 2022:
x = (1 + w) x_cond - w x_null, so w = 0 is no guidance and costs one evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, model_validator

from optimize.configs import Config
from optimize.denoiser import Denoiser
from optimize.schedule import Schedule, Spacing

if TYPE_CHECKING:
    from torch import Tensor

SOLVERS = ("ddim", "heun", "dpmpp_2m", "ipndm")
Pair = tuple["Tensor", "Tensor"]


class Guidance(Config):
    """How the condition is amplified. `cfg` evaluates twice a step; `folded` was trained into the network."""

    cfg: Annotated[float, Field(ge=0)] | None = None  # weight w >= 0 of classifier-free guidance
    folded: float | None = None  # the weight a distilled network already contains; not applied again
    interval: tuple[float, float] | None = None  # native times [low, high] inside which cfg is applied
    batched: bool = True  # cfg: both branches in one call of twice the batch

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

    solver: Literal["ddim", "heun", "dpmpp_2m", "ipndm"] = "ddim"
    steps: Annotated[int, Field(ge=1, le=1000)] = 50  # solver steps
    spacing: Spacing = "trailing"  # where the steps lie when `timesteps` is not given
    timesteps: tuple[float, ...] | None = None  # native times, decreasing; clean is appended; overrides steps, spacing
    clip: Annotated[float, Field(gt=0)] | None = None  # |x^| is clipped to this, and e^ recomputed from it
    guidance: Guidance = Guidance()

    @model_validator(mode="after")
    def _decreasing(self) -> Sampler:
        if self.timesteps is not None and (
            len(self.timesteps) != self.steps or any(a <= b for a, b in pairwise(self.timesteps))
        ):
            raise ValueError(f"timesteps must be `steps` = {self.steps} strictly decreasing native times")
        return self

    def times(self, schedule: Schedule) -> np.ndarray:
        """(steps+1,) native times, the last one clean."""
        if self.timesteps is not None:
            return np.append(np.asarray(self.timesteps, dtype=np.float64), schedule.end)
        return schedule.grid(self.steps, self.spacing)

    def nfe(self, schedule: Schedule) -> int:
        """Network evaluations per image; a guided evaluation counts two."""
        times = self.times(schedule)
        cost = [2 if self.guidance.applies(float(t)) else 1 for t in times]
        return sum(cost[:-1]) + (sum(cost[1:-1]) if self.solver == "heun" else 0)


@dataclass(frozen=True)
class Step:
    """State before a solver step: native time t, z_t and the guided, clipped predictions there."""

    t: float
    z: Tensor
    x: Tensor
    e: Tensor


Evaluate = Callable[["Tensor", float], Pair]


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
    schedule = denoiser.schedule
    times = sampler.times(schedule)
    z = noise_BCHW.double() * float(schedule.sigma_max if schedule.kind == "ve" else 1.0)

    def evaluate(z: Tensor, t: float) -> Pair:
        return predict(sampler, denoiser, z, t, condition)

    history: list[Step] = []
    for t, s in pairwise(times.tolist()):
        step = Step(t, z, *evaluate(z, t))
        yield step
        history = [*history[-3:], step]
        z = _NEXT[sampler.solver](schedule, history, s, evaluate)
    yield z


def predict(sampler: Sampler, denoiser: Denoiser, z: Tensor, t: float, condition: Any) -> Pair:
    """Guided and clipped (x^, e^) at native time t."""
    if sampler.guidance.applies(t):
        x, e = _guided(sampler.guidance, denoiser, z, t, condition)
    else:
        x, e = denoiser(z, t, condition)
    if sampler.clip is None:
        return x, e
    x = x.clamp(-sampler.clip, sampler.clip)
    return x, (z - float(denoiser.schedule.alpha(t)) * x) / float(denoiser.schedule.sigma(t))


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
    return (1 + w) * x_c - w * x_u, (1 + w) * e_c - w * e_u


def ddim(schedule: Schedule, z: Tensor, x: Tensor, e: Tensor, s: float) -> Tensor:
    """z_s = alpha_s x^ + sigma_s e^ (Song et al. 2021, eta = 0); Euler in the VE coordinates z/alpha."""
    return float(schedule.alpha(s)) * x + float(schedule.sigma(s)) * e


def _next_ddim(schedule: Schedule, history: list[Step], s: float, evaluate: Evaluate) -> Tensor:
    now = history[-1]
    return ddim(schedule, now.z, now.x, now.e, s)


def _along(schedule: Schedule, now: Step, e: Tensor, s: float) -> Tensor:
    """Euler step in VE coordinates along another noise direction `e` than the one predicted at `now`."""
    alpha, sigma = float(schedule.alpha(now.t)), float(schedule.sigma(now.t))
    return ddim(schedule, now.z, (now.z - sigma * e) / alpha, e, s)


def _next_heun(schedule: Schedule, history: list[Step], s: float, evaluate: Evaluate) -> Tensor:
    """Heun in VE coordinates (Karras et al. 2022, algorithm 1); plain Euler into sigma = 0, and where alpha < 0.01,
    since there the correction would divide by alpha."""
    now = history[-1]
    z = ddim(schedule, now.z, now.x, now.e, s)
    if float(schedule.sigma(s)) == 0.0:
        return z
    e_next = evaluate(z, s)[1]
    return z if float(schedule.alpha(now.t)) < 0.01 else _along(schedule, now, (now.e + e_next) / 2, s)


def _next_dpmpp_2m(schedule: Schedule, history: list[Step], s: float, evaluate: Evaluate) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2); first order on the first step and into sigma = 0."""
    now = history[-1]
    alpha_s, sigma_s = float(schedule.alpha(s)), float(schedule.sigma(s))
    if len(history) == 1 or sigma_s == 0.0:
        return ddim(schedule, now.z, now.x, now.e, s)
    before = history[-2]
    level = {t: _log_snr(schedule, t) for t in (before.t, now.t, s)}
    h, h_before = level[s] - level[now.t], level[now.t] - level[before.t]
    d = now.x + (h / (2 * h_before)) * (now.x - before.x)
    return (sigma_s / float(schedule.sigma(now.t))) * now.z - alpha_s * math.expm1(-h) * d


def _log_snr(schedule: Schedule, t: float) -> float:
    """lambda = ln(alpha / sigma); minus infinity where there is no signal, so that the next step is of first order."""
    alpha = float(schedule.alpha(t))
    return (math.log(alpha) if alpha > 0 else -math.inf) - math.log(float(schedule.sigma(t)))


_ADAMS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def _next_ipndm(schedule: Schedule, history: list[Step], s: float, evaluate: Evaluate) -> Tensor:
    """Improved PNDM (Zhang & Chen, arXiv 2204.13902): Adams-Bashforth on e^ with a lower-order start."""
    now = history[-1]
    if len(history) == 1:
        return ddim(schedule, now.z, now.x, now.e, s)
    e: Any = sum(c * step.e for c, step in zip(_ADAMS[len(history)], reversed(history)))
    return _along(schedule, now, e, s)


_NEXT: dict[str, Callable[[Schedule, list[Step], float, Evaluate], Any]] = {
    "ddim": _next_ddim,
    "heun": _next_heun,
    "dpmpp_2m": _next_dpmpp_2m,
    "ipndm": _next_ipndm,
}
