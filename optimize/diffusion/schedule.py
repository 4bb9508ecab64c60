"""Noise schedules: z_t = alpha(t) x + sigma(t) eps, for variance-preserving, variance-exploding and flow models.

`from_diffusers` reads a scheduler's config; which classes and fields there are is told in `scheduler_config/`.

Native time t: a (possibly fractional) training index in [-1, N-1] for `vp`, where -1 is clean data; sigma itself for
`ve`; flow time in [0, 1] for `flow`. Between the indices of a discrete schedule the angle atan2(sigma, alpha) is
interpolated, which is finite everywhere. All maths in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from optimize.diffusion.scheduler_config import classes
from optimize.diffusion.scheduler_config.fields import known
from optimize.diffusion.scheduler_config.laid import Grid
from optimize.errors import UserError

Spacing = Literal["trailing", "leading", "linspace", "logsnr"]
ALMOST_BLIND = 2.0**-24  # alpha² at the last index where these classes rescale to zero SNR, instead of 0
KEEPS_SIGNAL = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
)


@dataclass(frozen=True)
class Schedule:
    """alpha(t), sigma(t) and time grids; `alpha_bar` (N,) is the product of (1 - beta) of a discrete VP schedule.

    `shift` moves a flow's grid towards noise, t' = s t / (1 + (s - 1) t) (Esser et al., arXiv 2403.03206, equation 23).
    `levels` {t: (alpha, sigma)} take the place of what the schedule has at these very times: a grid's own.
    """

    kind: Literal["vp", "ve", "flow"] = "vp"
    alpha_bar: tuple[float, ...] = ()
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    shift: float = 1.0
    diffusers: dict[str, Any] = field(default_factory=dict, compare=False, hash=False)
    levels: Mapping[float, tuple[float, float]] = field(default_factory=dict, compare=False, hash=False, repr=False)

    @cached_property
    def _angles(self) -> np.ndarray:
        bar = np.asarray((1.0, *self.alpha_bar), dtype=np.float64)
        return np.arctan2(np.sqrt(1 - bar), np.sqrt(bar))

    def alpha(self, t: Any) -> np.ndarray:
        """Signal scale at native time `t` (scalar or array), float64."""
        if isinstance(t, float) and t in self.levels:
            return np.asarray(self.levels[t][0])
        t = np.asarray(t, dtype=np.float64)
        if self.kind == "vp":
            return np.cos(self._angle(t))
        return np.ones_like(t) if self.kind == "ve" else 1.0 - t

    def sigma(self, t: Any) -> np.ndarray:
        """Noise scale at native time `t` (scalar or array), float64."""
        if isinstance(t, float) and t in self.levels:
            return np.asarray(self.levels[t][1])
        t = np.asarray(t, dtype=np.float64)
        return np.sin(self._angle(t)) if self.kind == "vp" else t

    def _angle(self, t: np.ndarray) -> np.ndarray:
        return np.interp(t + 1.0, np.arange(len(self._angles)), self._angles)

    @property
    def clean(self) -> float:
        """Native time of clean data."""
        return -1.0 if self.kind == "vp" else 0.0

    @property
    def end(self) -> float:
        """Native time where sampling ends: clean data, or index 0 of a schedule that says so (set_alpha_to_one: false)."""
        kept = self.kind == "vp" and classes.value(self.diffusers, "set_alpha_to_one", True) is False
        return 0.0 if kept else self.clean

    @property
    def noisiest(self) -> float:
        """Native time where sampling starts."""
        return float(len(self.alpha_bar) - 1) if self.kind == "vp" else (self.sigma_max if self.kind == "ve" else 1.0)

    def along(self, times: np.ndarray) -> Grid:
        """The grid of given times, the last one clean, with this schedule's own levels."""
        listed = tuple(float(t) for t in times)
        return Grid(listed, listed[1:], {}, self.sigma_max if self.kind == "ve" else 1.0)

    def on(self, levels: Mapping[float, tuple[float, float]]) -> Schedule:
        """The same with a grid's levels in the place of its own."""
        return replace(self, levels=dict(levels)) if levels else self

    def time(self, u: Any) -> np.ndarray:
        """Native time of the fraction u in [0, 1], 0 clean and 1 noisiest."""
        return self.clean + np.asarray(u, dtype=np.float64) * (self.noisiest - self.clean)

    def grid(self, steps: int, spacing: Spacing = "trailing") -> np.ndarray:
        """(steps+1,) native times from the noisiest used to clean; VP grids are whole indices, as in diffusers."""
        if self.kind == "ve":
            return self._karras(steps)
        if self.kind == "flow" or not self.alpha_bar:
            return self._shifted(self._flow_times(steps, spacing))
        n = len(self.alpha_bar)
        if not 1 <= steps <= n:
            raise UserError(f"sampler.steps: {steps} given, allowed 1 to {n}, the schedule's training steps")
        return np.append(self._vp_times(steps, spacing, n), self.end)

    def _vp_times(self, steps: int, spacing: Spacing, n: int) -> np.ndarray:
        if spacing == "trailing":
            return np.round(np.arange(n, 0, -n / steps))[:steps] - 1
        if spacing == "leading":
            offset = int(classes.value(self.diffusers, "steps_offset", 0) or 0)
            return (np.arange(steps) * (n // steps) + offset)[::-1].astype(np.float64)
        if spacing == "linspace":
            return np.round(np.linspace(0, n - 1, steps))[::-1].astype(np.float64)
        snr = np.log(self.alpha(np.arange(n))) - np.log(self.sigma(np.arange(n)))
        levels = np.linspace(max(snr[-1], -4.5), min(snr[0], 3.0), steps)
        return np.interp(-levels, -snr, np.arange(n)).round()

    def _flow_times(self, steps: int, spacing: Spacing) -> np.ndarray:
        """(steps+1,) evenly from 1 to 0; "linspace" ends at the smallest training time before 0, as diffusers' flow
        scheduler does where it is given no times."""
        if spacing != "linspace":
            return np.linspace(1.0, 0.0, steps + 1)
        smallest = float(self._shifted(np.asarray(1 / int(self.diffusers.get("num_train_timesteps", 1000)))))
        return np.append(np.linspace(1.0, smallest, steps), 0.0)

    def _shifted(self, t: np.ndarray) -> np.ndarray:
        return t if self.shift == 1.0 else self.shift * t / (1 + (self.shift - 1) * t)

    def _karras(self, steps: int, rho: float = 7.0) -> np.ndarray:
        """Karras et al. 2022 (arXiv 2206.00364), equation 5."""
        ramp = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
        low, high = self.sigma_min ** (1 / rho), self.sigma_max ** (1 / rho)
        return np.append((high + ramp * (low - high)) ** rho, 0.0)

    def to_json(self) -> dict[str, Any]:
        """JSON form; a schedule that came from diffusers is stored as its scheduler config."""
        if self.diffusers:
            return {"kind": self.kind, "diffusers": self.diffusers, **self._shift_json()}
        return {
            "kind": self.kind,
            "alpha_bar": list(self.alpha_bar),
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            **self._shift_json(),
        }

    def _shift_json(self) -> dict[str, float]:
        return {} if self.shift == 1.0 else {"shift": self.shift}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Schedule:
        """Inverse of `to_json`."""
        return (
            replace(from_diffusers(value["diffusers"]), shift=value.get("shift", 1.0))
            if "diffusers" in value
            else cls(**{**value, "alpha_bar": tuple(value["alpha_bar"])})
        )


def from_diffusers(config: dict[str, Any], tokens: int | None = None) -> Schedule:
    """Schedule of a diffusers scheduler config (DDPM/DDIM/DPM-Solver families, or flow matching). `tokens` is the number
    of positions of an image, on which a dynamic shift depends."""
    known(config)
    config = {
        k: v for k, v in config.items() if (not k.startswith("_") or k == "_class_name") and not classes.endless(v)
    }
    if classes.is_flow(config):
        return Schedule(kind="flow", shift=_shift(config, tokens), diffusers=config)
    if classes.is_consistency(config) or classes.is_edm(config):
        return _exploding(config)
    schedule = Schedule(kind="vp", alpha_bar=tuple(_alpha_bar(config).tolist()), diffusers=config)
    _check_signal(schedule, config)
    return schedule


def _alpha_bar(config: dict[str, Any]) -> np.ndarray:
    betas, rescaled = _betas(config), classes.value(config, "rescale_betas_zero_snr")
    bar = np.cumprod(1.0 - (_zero_snr(betas) if rescaled else betas))
    if rescaled and config.get("_class_name") in KEEPS_SIGNAL:
        bar[-1] = ALMOST_BLIND
    return bar


def _check_signal(schedule: Schedule, config: dict[str, Any]) -> None:
    """Epsilon says nothing of the image where there is no signal: x^ = (z - sigma e) / alpha."""
    blind = classes.value(config, "rescale_betas_zero_snr") or schedule.alpha_bar[-1] < 1e-12
    if blind and classes.value(config, "prediction_type", "epsilon") == "epsilon":
        last = float(schedule.alpha(schedule.noisiest))
        raise UserError(
            f'{classes.FILE}: prediction_type "epsilon" given with zero terminal SNR (alpha {last:.1e} at the last '
            "step): nothing can be read from such a network there. Allowed: v_prediction or sample, where the network "
            "was trained so; or rescale_betas_zero_snr: false."
        )


def _exploding(config: dict[str, Any]) -> Schedule:
    """EDM's range of sigma; Euler's with continuous time takes it from its betas where it is not given."""
    low, high = classes.value(config, "sigma_min"), classes.value(config, "sigma_max")
    if config.get("_class_name") == "EulerDiscreteScheduler":
        bar = _alpha_bar(config)
        converted = any(classes.value(config, name) for name in classes.SIGMAS)
        ends = np.sqrt((1 - bar) / bar)[[0, -1]]
        low, high = (low, high) if converted else (None, None)
        low, high = (float(own) if given is None else given for given, own in zip((low, high), ends, strict=True))
    low, high = (0.002 if low is None else low), (80.0 if high is None else high)
    return Schedule(kind="ve", sigma_min=float(low), sigma_max=float(high), diffusers=config)


def _shift(config: dict[str, Any], tokens: int | None) -> float:
    """A flow's shift: given, or mu, or exp(mu), with mu linear in the number of tokens, as Flux's pipeline computes it."""
    if not classes.value(config, "use_dynamic_shifting"):
        return float(classes.value(config, "shift") or classes.value(config, "flow_shift") or 1.0)
    mu = dynamic_mu(config, tokens)
    return math.exp(mu) if classes.value(config, "time_shift_type", "exponential") == "exponential" else mu


def dynamic_mu(config: dict[str, Any], tokens: int | None) -> float:
    """mu of a dynamic shift for an image of so many positions."""
    few, many = (classes.value(config, f"{n}_image_seq_len") or d for n, d in (("base", 256), ("max", 4096)))
    low, high = (
        d if (v := classes.value(config, f"{n}_shift")) is None else v for n, d in (("base", 0.5), ("max", 1.15))
    )
    return float(low + ((tokens or many) - few) * (high - low) / (many - few))


def _betas(config: dict[str, Any]) -> np.ndarray:
    """float64 betas (N,) of diffusers' named beta schedules."""

    def of(name: str, default: Any) -> Any:
        return classes.value(config, name, default)

    n, name = int(of("num_train_timesteps", 1000)), of("beta_schedule", "linear")
    low, high = float(of("beta_start", 1e-4)), float(of("beta_end", 0.02))
    if of("trained_betas", None) is not None:
        return np.asarray(config["trained_betas"], dtype=np.float64)
    if name == "linear":
        return np.linspace(low, high, n)
    if name == "scaled_linear":
        return np.linspace(math.sqrt(low), math.sqrt(high), n) ** 2
    bar = np.cos((np.arange(n + 1) / n + 0.008) / 1.008 * math.pi / 2) ** 2  # squaredcos_cap_v2
    return np.minimum(1 - bar[1:] / bar[:-1], 0.999)


def _zero_snr(betas: np.ndarray) -> np.ndarray:
    """Rescale to zero terminal SNR (Lin et al., arXiv 2305.08891, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas))
    bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    return 1 - np.append(bar[:1], bar[1:] / bar[:-1])
