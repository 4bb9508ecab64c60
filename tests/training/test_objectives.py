"""Step distillation's maths against closed forms and against the pieces it is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimize import rng
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.schedule import Schedule, from_diffusers
from optimize.training import objectives as ops

COSINE = from_diffusers({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000})
FLOW = Schedule(kind="flow")
SCHEDULES = {"vp": COSINE, "flow": FLOW, "ve": Schedule(kind="ve")}
WIDTH = 0.6  # standard deviation of the Gaussian data


def level(schedule: Schedule, u: float) -> tuple[float, float]:
    t = float(schedule.time(u))
    return float(schedule.alpha(t)), float(schedule.sigma(t))


def gaussian(z: np.ndarray, at: tuple[float, float]) -> np.ndarray:
    """The optimal denoiser of N(0, WIDTH²) data."""
    alpha, sigma = at
    return z * alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2)


def gaussian_flow(z: np.ndarray, t: tuple[float, float], s: tuple[float, float]) -> np.ndarray:
    """The exact probability flow of that denoiser: z scales with its standard deviation."""
    spread = [np.sqrt(a**2 * WIDTH**2 + b**2) for a, b in (t, s)]
    return z * spread[1] / spread[0]


@pytest.mark.parametrize("head", ["epsilon", "sample", "v", "flow"])
@given(u_t=st.floats(0.2, 0.95), share=st.floats(0.0, 0.95))
@settings(max_examples=30, deadline=None)
def test_a_ddim_step_on_the_inverse_ddim_target_arrives_for_every_head(head: str, u_t: float, share: float) -> None:
    schedule = FLOW if head == "flow" else COSINE
    (alpha_t, sigma_t), (alpha_s, sigma_s) = level(schedule, u_t), level(schedule, u_t * share)
    z_t, z_s = (torch.from_numpy(rng.generator("inverse", i).standard_normal((2, 3))) for i in range(2))
    x = ops.inv_ddim(z_s, z_t, alpha_s, sigma_s, alpha_t, sigma_t)
    e = (z_t - alpha_t * x) / sigma_t
    head_of = Parameterization(head)  # type: ignore[arg-type]
    x_hat, e_hat = head_of.split(head_of.target(x, e, alpha_t, sigma_t), z_t, alpha_t, sigma_t)
    assert torch.allclose(alpha_s * x_hat + sigma_s * e_hat, z_s, atol=1e-6)


@pytest.mark.parametrize("kind", SCHEDULES)
def test_ddim_from_x_is_the_step_of_its_prediction_and_noise(kind: str) -> None:
    t, s = level(SCHEDULES[kind], 0.7), level(SCHEDULES[kind], 0.3)
    x, e = rng.normal((4,), "x").astype(float), rng.normal((4,), "e").astype(float)
    assert np.allclose(ops.ddim_from_x(t[0] * x + t[1] * e, x, t, s), s[0] * x + s[1] * e, atol=1e-12)


def test_with_as_many_segments_as_teacher_steps_the_target_is_the_teachers_prediction() -> None:
    u = ops.segment_times(np.linspace(0, 0.999, 7), segments=8, teacher_steps=8)
    assert (u.s == u.step).all()
    for t, s in zip(u.t, u.s):
        z, x_teacher = (
            rng.normal((5,), "z", str(t)).astype(float),
            rng.normal((5,), "x", str(t)).astype(float),
        )
        at_t, at_s = level(COSINE, t), level(COSINE, s)
        target = ops.consistency_target(z, x_teacher, lambda z_s: z_s * np.nan, at_t, at_s, at_s, True)
        assert np.allclose(target, x_teacher, atol=1e-6)


def test_where_the_teacher_reaches_the_segments_end_the_reference_is_its_state() -> None:
    z = torch.from_numpy(rng.normal((2, 4), "ends")).double()
    t, s = level(COSINE, 0.8), level(COSINE, 0.5)
    ends = torch.tensor([[True], [False]])
    x_teacher = gaussian(z, t)  # type: ignore[arg-type]
    target = ops.consistency_target(z, x_teacher, lambda z_s: 0 * z_s + 3.0, t, s, s, ends)
    assert torch.allclose(target, x_teacher)  # s = step: a DDIM step from s to s changes nothing, whatever f says


def test_one_teacher_step_of_progressive_distillation_has_its_closed_form() -> None:
    """Two DDIM steps of the Gaussian denoiser scale z by known factors; so does the x that replaces them by one."""
    t, half, s = (level(COSINE, u) for u in (0.75, 0.625, 0.5))
    factor = [b[0] * gaussian(1.0, a) + b[1] / a[1] * (1 - a[0] * gaussian(1.0, a)) for a, b in ((t, half), (half, s))]  # type: ignore[arg-type]
    z = np.array([-1.5, 0.2, 2.0])
    target = ops.consistency_target(z, gaussian(z, t), lambda z_half: gaussian(z_half, half), t, half, s, False)
    ratio = s[1] / t[1]
    assert np.allclose(target, z * (factor[0] * factor[1] - ratio) / (s[0] - t[0] * ratio), atol=1e-12)


@pytest.mark.parametrize("kind", ["vp", "flow"])
def test_the_exact_consistency_function_is_a_fixed_point_up_to_the_teachers_step(kind: str) -> None:
    """f(z_t) = x of the DDIM step onto the exact flow: its target is itself as the teacher's step goes to 0."""
    schedule, z, u_t, u_step = SCHEDULES[kind], np.array([-1.2, 0.4, 1.9]), 0.8, 0.5
    step = level(schedule, u_step)

    def exact(z_u: np.ndarray, at: tuple[float, float]) -> np.ndarray:
        return ops.inv_ddim(gaussian_flow(z_u, at, step), z_u, *step, *at)

    errors = []
    for n in (50, 100, 200):
        t, s = level(schedule, u_t), level(schedule, u_t - 1 / n)
        target = ops.consistency_target(z, gaussian(z, t), lambda z_s, s=s: exact(z_s, s), t, s, step, False)
        errors.append(np.abs(target - exact(z, t)).max())
    assert errors[0] < 0.01
    assert errors[1] / errors[0] < 0.3 and errors[2] / errors[1] < 0.3  # a local error, of second order in the step


@given(segments=st.integers(1, 8), per=st.integers(1, 40), seed=st.integers(0, 99))
@settings(deadline=None)
def test_segment_times_stay_in_their_segment(segments: int, per: int, seed: int) -> None:
    u = ops.segment_times(rng.uniform((64,), "times", seed), segments, segments * per)
    assert ((u.t > u.s) & (u.s >= u.step) & (u.t <= 1.0) & (u.step >= 0)).all()
    assert np.allclose(u.t - u.s, 1 / (segments * per))
    assert np.allclose(u.step * segments, np.round(u.step * segments))
    assert (u.t - u.step <= 1 / segments + 1e-12).all()
    assert ((u.s == u.step) | (u.s - u.step > 0.5 / (segments * per))).all()  # equal exactly or not at all


def test_segment_times_refuse_teacher_steps_that_the_segments_do_not_divide() -> None:
    with pytest.raises(ValueError, match="multiple of the 3 segments"):
        ops.segment_times(np.zeros(1), 3, 64)


def test_a_student_is_called_at_the_noisy_end_of_each_segment() -> None:
    assert ops.segment_grid(2).tolist() == [1.0, 0.5]
    assert COSINE.time(ops.segment_grid(4)).tolist() == COSINE.grid(4)[:-1].tolist()


def test_teacher_steps_rise_geometrically_from_first_to_last() -> None:
    found = [ops.annealed_steps(i, 101, 64, 1280, segments=2) for i in (0, 50, 100)]
    assert found == [64, 286, 1280]
    assert ops.annealed_steps(0, 1, 7, 7, segments=3) == 6


def test_weights_are_the_errors_of_v_and_of_the_noisier_of_eps_and_x() -> None:
    alpha, sigma = np.cos([0.2, 1.2]), np.sin([0.2, 1.2])
    assert np.allclose(ops.snr_plus_one(alpha, sigma), 1 / sigma**2)
    assert np.allclose(ops.truncated_snr(alpha, sigma), [(alpha[0] / sigma[0]) ** 2, 1.0])
    assert ops.truncated_snr(0.1, 1.0) == 1.0


def test_pseudo_huber_is_a_norm_far_away_and_smooth_at_zero() -> None:
    squared = torch.tensor([0.0, 1e4], requires_grad=True)
    value = ops.pseudo_huber(squared, ops.huber_width(256))
    value.sum().backward()
    assert value[0] == 0 and abs(float(value[1]) - 100) < 0.01
    assert squared.grad is not None and torch.isfinite(squared.grad).all()


def test_stratified_uniforms_cover_the_interval_evenly() -> None:
    u = ops.stratified(rng.uniform((16,), "strata"))
    assert (np.floor(u * 16) == np.arange(16)).all()
