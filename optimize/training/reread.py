"""Re-reading a blind head: what a network said of the noise, it learns in a short regression to say of v.

An epsilon head gives x^ = (z - sigma e^) / alpha: what e^ is off comes in times sigma / alpha, 157 at the end of diffusers'
default betas. Many small steps never go far along that x^, the jumps of a few-step student do. So the student's output is
read as v (Salimans & Ho 2022, arXiv 2202.00512, section 4), x^ = alpha z - sigma v, which no noise level amplifies, and
fitted to the guided teacher first (stage one of Meng et al. 2022, arXiv 2210.03142).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.training import objectives
from optimize.training.loop import TrainingConfig, draw, train

if TYPE_CHECKING:
    from torch import Tensor, nn

    from optimize.diffusion.context import Context, Data
    from optimize.diffusion.denoiser import Denoiser
    from optimize.diffusion.model import Model
    from optimize.diffusion.schedule import Schedule
    from optimize.training.loop import Batch, Loss, Share
    from optimize.training.teacher import Clock, Guide

GAIN_MAX = 10.0  # times an error of 0.05, which short trainings leave in e^, is as much as images vary
ALPHA_MIN = 0.05  # of the signal; Stable Diffusion's schedule ends at 0.068, the default betas at 0.006
NFE_MAX = 64  # calls of a student, at most
NAME = "re-read as v"


def reread(
    student: Model, guide: Guide, data: Data, config: TrainingConfig, context: Context, identity: Any = None
) -> tuple[Model, dict[str, Any]]:
    """`student`, whose module is trained in place, with its output read as v, and the record of the regression. `identity`
    (JSON) is what the guide is."""
    denoiser = read_as_v(student.denoiser)
    record = train(
        student.module,
        regression(denoiser, guide, data, config.batch, context.seed),
        config,
        seed=context.seed,
        name=NAME,
        identity=identity,
        checkpoints=context.checkpoints / "reread" if context.checkpoints else None,
        progress=context.progress,
        device=context.device,
    )
    heads = {"from": student.denoiser.parameterization.prediction, "to": "v"}
    return replace(student, denoiser=denoiser), {**heads, "steps": record["steps"], "losses": record["loss"]}


def read_as_v(denoiser: Denoiser) -> Denoiser:
    """The same network, its output taken for v; a learned variance stays apart behind it."""
    return replace(denoiser, parameterization=replace(denoiser.parameterization, prediction="v"))


def regression(student: Denoiser, guide: Guide, data: Data, size: int, seed: int) -> Loss:
    """The loss of one step: the mean of |v - v^|² evenly over all noise levels, which is (SNR + 1) |x - x^|²."""
    from optimize.diffusion.denoiser import coefficients
    from optimize.diffusion.network import TorchNetwork

    def loss(module: nn.Module, step: int, share: Share) -> Tensor:
        import torch

        batch = draw(data, size, share, "reread", seed, step)
        x, eps = batch.x.double(), batch.eps.double()
        times = np.rint(even(student.schedule)(1 - batch.uniform)).clip(min=0)  # whole ones, as networks are trained
        t = torch.from_numpy(times).to(share.device)
        alpha, sigma = coefficients(student.schedule, t, x)
        z = alpha * x + sigma * eps
        target = taught(guide, student, z, t, batch, (alpha, sigma))
        learner = student.with_network(TorchNetwork(module, student.network.inputs))
        squared = (learner(z, t, batch.condition)[0] - target).square()
        return (objectives.snr_plus_one(alpha, sigma) * squared).mean()

    return loss


def taught(guide: Guide, student: Denoiser, z: Tensor, t_B: Tensor, batch: Batch, at_t: objectives.Level) -> Tensor:
    """The x (B,...) that a guide teaches at z_t: its x^. Where its head is epsilon and the student's is not, the x that was
    noised takes over as the guide goes blind, an unbiased target (consistency training: Song et al. 2023, arXiv
    2303.01469): at the end of the default betas x^ was 0.93 off even clipped, and the digits vary by 0.32 around their mean."""
    x_teacher = guide(z, t_B, batch.condition)
    if guide.denoiser.parameterization.prediction != "epsilon" or not changed(student, guide.denoiser):
        return x_teacher
    share = objectives.sight(*at_t, GAIN_MAX)
    return share * x_teacher + (1 - share) * batch.x.to(z)


def changed(student: Denoiser, teacher: Denoiser) -> bool:
    """Whether the student's output means something else than its teacher's."""
    return student.parameterization.prediction != teacher.parameterization.prediction


def clock(student: Denoiser, teacher: Denoiser) -> Clock:
    """When a consistency student is taught and called: evenly in time, and evenly in noise level where it was re-read.

    Evenly in time, half of a segment of the default betas holds next to no signal. A student learns each step from what it
    says at the next, and over so many that say nothing it drifts: within a hundred steps a v network's loss rose from 0.7 to
    1.15 on these betas, and fell from 0.8 to 0.26 on squared cosines, whose times are even in both ways.
    """
    return even(student.schedule) if changed(student, teacher) else student.schedule.time


def even(schedule: Schedule) -> Clock:
    """Times of a variance-preserving schedule by fractions of its largest angle atan2(sigma, alpha)."""
    times = np.append(schedule.clean, np.arange(len(schedule.alpha_bar)))
    angles = np.arctan2(schedule.sigma(times), schedule.alpha(times))
    return lambda u: np.interp(np.asarray(u, dtype=np.float64) * angles[-1], angles, times)


def gain(schedule: Schedule, nfe: int) -> float:
    """The largest factor by which an error of e^ goes into the state, over the DDIM steps of a student of `nfe` calls."""
    times = schedule.time(np.append(objectives.segment_grid(nfe), 0.0))
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    with np.errstate(divide="ignore"):
        return float(np.max(objectives.jump_gain((alpha[:-1], sigma[:-1]), (alpha[1:], sigma[1:]))))


def wide_up_to(prediction: str, schedule: Schedule) -> int:
    """The most steps that are too wide for the head: `gain` above GAIN_MAX. 0 for heads other than epsilon, which give x^
    without dividing by alpha."""
    if prediction != "epsilon":
        return 0
    return max((nfe for nfe in range(1, NFE_MAX + 1) if gain(schedule, nfe) > GAIN_MAX), default=0)


def blind_up_to(prediction: str, schedule: Schedule) -> int:
    """Calls of the largest student for which the head is blind: all, where less than ALPHA_MIN of the signal is left at the
    noisiest time, else those whose steps are too wide.

    FD of students of a small DDPM on the digits after a hundred steps of distillation, head kept and re-read (baseline
    0.82): default betas, 2 calls 14.0 and 1.2, 4 calls 4.0 and 1.0, 8 calls 1.3 and 0.9; cut off where 0.065 of the signal
    is left, 2 calls 1.2 and 1.1.
    """
    dark = prediction == "epsilon" and signal(schedule) < ALPHA_MIN
    return NFE_MAX if dark else wide_up_to(prediction, schedule)


def signal(schedule: Schedule) -> float:
    """alpha at the noisiest time, of a state scaled to alpha² + sigma² = 1."""
    alpha, sigma = float(schedule.alpha(schedule.noisiest)), float(schedule.sigma(schedule.noisiest))
    return alpha / float(np.hypot(alpha, sigma))


def jumps(schedule: Schedule, nfe: int) -> str:
    """Half a sentence: what makes a head blind for a student, or a teacher, of `nfe` calls."""
    if (found := gain(schedule, nfe)) <= GAIN_MAX:
        return f"only {signal(schedule):.2g} of the signal is left at the noisiest time (allowed {ALPHA_MIN:g})."
    steps = "1 step" if nfe == 1 else f"{nfe} steps"
    return f"in {steps} an error of the predicted noise comes in {found:.3g} times (allowed {GAIN_MAX:g})."
