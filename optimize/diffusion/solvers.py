"""The solvers' steps, z_t and (x^, e^) -> z_s at any times, for torch tensors and numpy arrays alike.

With alpha and sigma of a schedule they cover VP, VE and flow models. Nothing but the standard library is imported: a
served model takes a copy of this file with it (see `optimize/serving`), so that it draws the library's images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Array = Any  # a float64 torch tensor or numpy array (B, ...)
Evaluate = Callable[[Array, float], tuple[Array, Array]]  # (z, t) -> (x^, e^)


class Levels(Protocol):
    """alpha(t) and sigma(t) of a schedule."""

    def alpha(self, t: float) -> Any: ...

    def sigma(self, t: float) -> Any: ...


@dataclass(frozen=True)
class Step:
    """State before a solver step: native time t, z_t and the guided, clipped predictions there."""

    t: float
    z: Array
    x: Array
    e: Array


def solve(
    solver: str,
    schedule: Levels,
    times: Sequence[float],
    z: Array,
    evaluate: Evaluate,
    arrivals: Sequence[float] | None = None,
) -> Iterator[Step | Array]:
    """Yields a `Step` before every solver step from times[0] to times[-1], and at the end the clean sample. `arrivals` are
    the times that the steps lead to, by default the next ones."""
    history: list[Step] = []
    for t, s in zip(times[:-1], times[1:] if arrivals is None else arrivals, strict=True):
        step = Step(t, z, *evaluate(z, t))
        yield step
        history = [*history[-3:], step]
        z = NEXT[solver](schedule, history, s, evaluate)
    yield z


PRECONDITIONED = ("edm", "edm_v")


def preconditioning(prediction: str, sigma: Any, sigma_data: float, boundary: float) -> tuple[Any, Any]:
    """(c_skip, c_out) of x^ = c_skip z + c_out raw (Karras et al. 2022, table 1); from `boundary` on for a consistency
    model (Song et al. 2023, appendix C); negative c_out for a v head."""
    beyond, whole = sigma - boundary, (sigma**2 + sigma_data**2) ** 0.5
    out = beyond * sigma_data / whole
    return sigma_data**2 / (beyond**2 + sigma_data**2), -out if prediction == "edm_v" else out


def fed(prediction: str, z: Array, sigma: Any, sigma_data: float) -> Array:
    """What a network is fed of z_t: of EDM's heads c_in z = z / sqrt(sigma² + sigma_data²), z itself of the others."""
    return z / (sigma**2 + sigma_data**2) ** 0.5 if prediction in PRECONDITIONED else z


def split(
    prediction: str, raw: Array, z: Array, alpha: Any, sigma: Any, sigma_data: float = 0.0, boundary: float = 0.0
) -> tuple[Array, Array]:
    """(x^, e^), each shaped like `z`, from a network's raw output; alpha and sigma broadcast against `z`."""
    if prediction in PRECONDITIONED:
        skip, out = preconditioning(prediction, sigma, sigma_data, boundary)
        x = skip * z + out * raw
        return x, (z - x) / sigma
    if prediction == "epsilon":
        return (z - sigma * raw) / alpha, raw
    if prediction == "sample":
        return raw, (z - alpha * raw) / sigma
    if prediction == "v":
        return alpha * z - sigma * raw, sigma * z + alpha * raw
    return z - sigma * raw, z + alpha * raw  # flow: u = eps - x, alpha = 1 - t, sigma = t


def guided(w: Any, conditional: Array, unconditional: Array) -> Array:
    """(1 + w) x_cond - w x_null (Meng et al. 2022); w is a number, or one a sample shaped to broadcast."""
    return (1 + w) * conditional - w * unconditional


def clipped(
    schedule: Levels, z: Array, t: float, x: Array, limit: float, e: Array | None = None
) -> tuple[Array, Array]:
    """(x^, e^) with |x^| at most `limit`, and the `e` that is given or the one recomputed from x^."""
    x = x.clip(-limit, limit)
    return x, e if e is not None else (z - float(schedule.alpha(t)) * x) / float(schedule.sigma(t))


def ddim(schedule: Levels, z: Array, x: Array, e: Array, s: float) -> Array:
    """z_s = alpha_s x^ + sigma_s e^ (Song et al. 2021, eta = 0); Euler in the VE coordinates z/alpha."""
    return float(schedule.alpha(s)) * x + float(schedule.sigma(s)) * e


def _next_ddim(schedule: Levels, history: list[Step], s: float, evaluate: Evaluate) -> Array:
    now = history[-1]
    return ddim(schedule, now.z, now.x, now.e, s)


def _along(schedule: Levels, now: Step, e: Array, s: float) -> Array:
    """Euler step in VE coordinates along another noise direction `e` than the one predicted at `now`."""
    alpha, sigma = float(schedule.alpha(now.t)), float(schedule.sigma(now.t))
    return ddim(schedule, now.z, (now.z - sigma * e) / alpha, e, s)


def _next_heun(schedule: Levels, history: list[Step], s: float, evaluate: Evaluate) -> Array:
    """Heun in VE coordinates (Karras et al. 2022, algorithm 1); plain Euler into sigma = 0, and where alpha < 0.01,
    since there the correction would divide by alpha."""
    now = history[-1]
    z = ddim(schedule, now.z, now.x, now.e, s)
    if float(schedule.sigma(s)) == 0.0:
        return z
    e_next = evaluate(z, s)[1]
    return z if float(schedule.alpha(now.t)) < 0.01 else _along(schedule, now, (now.e + e_next) / 2, s)


def _next_dpmpp_2m(schedule: Levels, history: list[Step], s: float, evaluate: Evaluate) -> Array:
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


def _log_snr(schedule: Levels, t: float) -> float:
    """lambda = ln(alpha / sigma); minus infinity where there is no signal, so that the next step is of first order."""
    alpha = float(schedule.alpha(t))
    return (math.log(alpha) if alpha > 0 else -math.inf) - math.log(float(schedule.sigma(t)))


_ADAMS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}


def _next_ipndm(schedule: Levels, history: list[Step], s: float, evaluate: Evaluate) -> Array:
    """Improved PNDM (Zhang & Chen, arXiv 2204.13902): Adams-Bashforth on e^ with a lower-order start."""
    now = history[-1]
    if len(history) == 1:
        return ddim(schedule, now.z, now.x, now.e, s)
    e: Array = sum(c * step.e for c, step in zip(_ADAMS[len(history)], reversed(history)))
    return _along(schedule, now, e, s)


def _next_pndm(schedule: Levels, history: list[Step], s: float, evaluate: Evaluate) -> Array:
    """PNDM without its Runge-Kutta start (Liu et al., arXiv 2202.09778), as diffusers has it: the first step is evaluated
    again at its end, the others are `ipndm`'s."""
    now = history[-1]
    if len(history) > 1:
        return _next_ipndm(schedule, history, s, evaluate)
    e_next = evaluate(ddim(schedule, now.z, now.x, now.e, s), s)[1]
    return _along(schedule, now, (now.e + e_next) / 2, s)


NEXT: dict[str, Callable[[Levels, list[Step], float, Evaluate], Array]] = {
    "ddim": _next_ddim,
    "heun": _next_heun,
    "dpmpp_2m": _next_dpmpp_2m,
    "ipndm": _next_ipndm,
    "pndm": _next_pndm,
}
