"""Pure maths of step distillation: DDIM from x^, its inverse, segment times, weights and the consistency target.

Salimans & Ho 2022 (arXiv 2202.00512, progressive distillation), Heek et al. 2024 (arXiv 2403.06807, multistep
consistency). z_t = alpha_t x + sigma_t eps; `Level` = (alpha, sigma), numbers or arrays that broadcast against z.
Works on numpy arrays and torch tensors alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Level = tuple[Any, Any]  # (alpha, sigma) at one time


def consistency_target(
    z_t: Any, x_teacher: Any, f: Callable[[Any], Any], t: Level, s: Level, step: Level, at_step: Any
) -> Any:
    """The x that the student shall predict at z_t (Heek et al., algorithm 1), shaped like z_t.

    The teacher goes from t to s by one DDIM step on `x_teacher`; the student `f(z_s)` -> x^ goes on from s to the end
    of the segment, `step`; the target is the x of the single DDIM step from t to there. `at_step` (bool, broadcasts)
    marks samples with s = step, whose reference is the teacher's state itself.
    """
    z_s = ddim_from_x(z_t, x_teacher, t, s)
    z_ref = _where(at_step, z_s, ddim_from_x(z_s, f(z_s), s, step))
    return inv_ddim(z_ref, z_t, *step, *t)


def ddim_from_x(z_t: Any, x: Any, t: Level, s: Level) -> Any:
    """z_s = alpha_s x + (sigma_s / sigma_t)(z_t - alpha_t x): the DDIM step t -> s given x^. Where sigma_t = 0, alpha_s x."""
    ratio = _ratio(s[1], t[1])
    return s[0] * x + ratio * (z_t - t[0] * x)


def inv_ddim(z_s: Any, z_t: Any, alpha_s: Any, sigma_s: Any, alpha_t: Any, sigma_t: Any) -> Any:
    """x = (z_s - (sigma_s/sigma_t) z_t) / (alpha_s - alpha_t sigma_s/sigma_t): the x whose DDIM step takes z_t to z_s.

    Salimans & Ho, appendix G. Needs sigma_t > 0 and s cleaner than t, otherwise the denominator is 0.
    """
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z_t) / (alpha_s - alpha_t * ratio)


@dataclass(frozen=True)
class SegmentTimes:
    """Fractions u in [0, 1], (B,) float64 each: noisier `t`, one teacher step cleaner `s`, the segment's end `step`."""

    t: np.ndarray
    s: np.ndarray
    step: np.ndarray


def segment_times(uniform_B: np.ndarray, segments: int, teacher_steps: int) -> SegmentTimes:
    """Times of multistep consistency from uniforms in [0, 1): t = step/S + n/T with n in 1..T/S, s = t - 1/T.

    `teacher_steps` T is a multiple of `segments` S; s equals `step` exactly where n = 1, t is 1 at the noisiest.
    """
    per_segment, rest = divmod(teacher_steps, segments)
    if rest or per_segment < 1:
        raise ValueError(f"teacher_steps {teacher_steps} must be a positive multiple of the {segments} segments")
    j = np.minimum((uniform_B * teacher_steps).astype(np.int64), teacher_steps - 1)  # the teacher step (j+1)/T -> j/T
    return SegmentTimes((j + 1) / teacher_steps, j / teacher_steps, (j // per_segment) * per_segment / teacher_steps)


def stratified(uniform_B: np.ndarray) -> np.ndarray:
    """One uniform per stratum: (i + u_i)/B. Each sample is still uniform, the batch covers [0, 1) evenly."""
    return (np.arange(len(uniform_B)) + uniform_B) / len(uniform_B)


def annealed_steps(step: int, steps: int, low: int, high: int, segments: int) -> int:
    """Teacher steps at training step `step`: geometric from `low` to `high`, rounded to a multiple of `segments`."""
    share = step / max(steps - 1, 1)
    wanted = low * (high / low) ** share
    return max(1, round(wanted / segments)) * segments


def segment_grid(segments: int) -> np.ndarray:
    """(S,) fractions u at which a student of S steps is called, noisiest first: 1, (S-1)/S, ..., 1/S."""
    return np.arange(segments, 0, -1) / segments


def snr(alpha: Any, sigma: Any) -> Any:
    """alpha² / sigma²."""
    return alpha**2 / sigma**2


def snr_plus_one(alpha: Any, sigma: Any) -> Any:
    """SNR + 1; on |x - x^|² of a variance-preserving model this is the error of v."""
    return snr(alpha, sigma) + 1


def jump_gain(t: Level, s: Level) -> Any:
    """What an error of e^ is multiplied by on the DDIM step t -> s, in units of the state's scale: |sigma_s - alpha_s
    sigma_t / alpha_t| / hypot(alpha_s, sigma_s). An error of v is never multiplied by more than 1."""
    return abs(s[1] - s[0] * t[1] / t[0]) / (s[0] ** 2 + s[1] ** 2) ** 0.5


def sight(alpha: Any, sigma: Any, half: float) -> Any:
    """1 / (1 + (sigma / (alpha half))²): near 1 where an epsilon head sees x, 1/2 where sigma / alpha is `half`, 0 at pure
    noise. It weighs x^, whose error grows with sigma / alpha, against x, whose distance to its mean does not."""
    return alpha**2 / (alpha**2 + (sigma / half) ** 2)


def truncated_snr(alpha: Any, sigma: Any) -> Any:
    """max(SNR, 1): error of eps where there is signal, of x where there is noise (Salimans & Ho, section 4)."""
    value = snr(alpha, sigma)
    return value.clip(min=1.0) if hasattr(value, "clip") else max(value, 1.0)


def pseudo_huber(squared: Any, c: float) -> Any:
    """sqrt(d² + c²) - c of a squared distance: near 0 quadratic, far away linear; c = 0 is the plain norm."""
    return (squared + c * c) ** 0.5 - c


def huber_width(dimensions: int) -> float:
    """c = 0.00054 sqrt(D), D values a sample (Song & Dhariwal 2023, arXiv 2310.14189, section 3.3)."""
    return 0.00054 * math.sqrt(dimensions)


def _ratio(top: Any, bottom: Any) -> Any:
    """top / bottom, 0 where bottom is 0, without a NaN on the way."""
    zero = bottom == 0
    return _where(zero, 0.0 * top, top / _where(zero, 1.0 + 0.0 * bottom, bottom))


def _where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where `condition`, else `b`: numbers, numpy arrays or torch tensors."""
    if not any(np.ndim(v) for v in (condition, a, b)):
        return a if condition else b
    for value in (condition, a, b):
        if hasattr(value, "new_zeros"):
            import torch

            return torch.where(torch.as_tensor(condition, device=value.device), a, b)
    return np.where(condition, a, b)
