"""Where a recipe says nothing of how to sample, the scheduler's config decides: solver, grid and clipping.

The model is drawn as its user draws it today. What a config asks for and a solver of ours cannot do is done by the
scheduler's own loop, or refused, or said.
"""

from __future__ import annotations

from typing import Any

from optimize.diffusion.sampling import OWN, Sampler
from optimize.diffusion.schedule import Schedule
from optimize.diffusion.scheduler_config import classes
from optimize.diffusion.scheduler_config.fields import known
from optimize.errors import UserError

PLAIN = ("trailing", "leading", "linspace")
BLIND = 1e-2  # alpha below which Heun's correction is left out here, and not by diffusers


def followed(sampler: Sampler, schedule: Schedule, packed: bool = False) -> tuple[Sampler, tuple[str, ...]]:
    """(the sampler with what it leaves open taken from the schedule's diffusers config, what could not be followed).

    `packed`: the latents are a sequence, whose pipelines lay their flow's steps evenly from 1 to 1/steps.
    Raises UserError where sampler and config ask for what excludes one another.
    """
    config = schedule.diffusers
    if not config.get("_class_name"):
        return sampler, ()
    said = sampler.model_fields_set
    solver, notes = (sampler.solver, ()) if "solver" in said or sampler.timesteps else _solver(schedule)
    changes: dict[str, Any] = {"solver": solver}
    if solver == OWN:
        _check_own(sampler)
        return sampler.model_copy(update={**changes, "spacing": OWN}), notes
    if "spacing" not in said and sampler.timesteps is None:
        changes["spacing"] = "trailing" if packed else _spacing(schedule, solver)
    if "clip" not in said:
        changes |= _clipping(config, solver)
    return sampler.model_copy(update=changes), notes


def clip_of(sampler: Sampler, schedule: Schedule) -> float | None:
    """What |x^| is held within while images are drawn: the sampler's clip; of the scheduler's own loop, its config's, whose
    thresholding ends within 1."""
    config = schedule.diffusers
    if sampler.solver != OWN or not config.get("_class_name"):
        return sampler.clip
    if classes.value(config, "thresholding"):
        return 1.0
    return float(classes.value(config, "clip_sample_range") or 1.0) if classes.value(config, "clip_sample") else None


def _check_own(sampler: Sampler) -> None:
    for name in ("timesteps", "clip"):
        if getattr(sampler, name) is not None:
            raise UserError(
                f'sampler.{name}: given with solver "{OWN}", whose config decides it. Leave it out, or name a solver: '
                "ddim, heun, dpmpp_2m, ipndm, pndm."
            )
    if "spacing" in sampler.model_fields_set and sampler.spacing != OWN:
        raise UserError(
            f'sampler.spacing: "{sampler.spacing}" given with the scheduler\'s own loop, which lays its own grid. '
            "Leave it out, or name a solver as well: ddim, heun, dpmpp_2m, ipndm, pndm."
        )


def _solver(schedule: Schedule) -> tuple[str, tuple[str, ...]]:
    """The solver that takes the very steps of the scheduler's class, else its own loop; without noise where it adds some."""
    config = schedule.diffusers
    name, entry = config["_class_name"], known(config)
    algorithm = str(classes.value(config, "algorithm_type") or "")
    if entry.noisy or classes.value(config, "stochastic_sampling") or algorithm.startswith("sde"):
        kept = "dpmpp_2m" if algorithm.startswith("sde") else "ddim"
        return kept, (
            f"{name} adds noise at every step; {kept}, which adds none, is sampled with in its place "
            f"(sampler.solver: {OWN} follows it)",
        )
    return (_exact(schedule) or OWN), ()


def _exact(schedule: Schedule) -> str | None:
    """The solver whose steps are those of the class and its options; None where there is none."""
    config = schedule.diffusers
    name = config["_class_name"]
    if classes.value(config, "thresholding"):
        return None
    if name in ("DDIMScheduler", "DDIMParallelScheduler", "EulerDiscreteScheduler", "EDMEulerScheduler"):
        return "ddim"
    if name == "FlowMatchEulerDiscreteScheduler":
        return "ddim"
    if name == "HeunDiscreteScheduler":
        return "heun" if float(schedule.alpha(schedule.noisiest)) > BLIND else None
    if name == "PNDMScheduler":
        whole = classes.value(config, "timestep_spacing", "leading") == "leading"
        return "pndm" if whole and classes.value(config, "skip_prk_steps") else None
    if name in ("DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"):
        return _multistep(config)
    return None


def _multistep(config: dict[str, Any]) -> str | None:
    """DPM-Solver++ of first or second order with a last step to clean data."""
    ours = (
        (classes.value(config, "algorithm_type") or "dpmsolver++") == "dpmsolver++"
        and (classes.value(config, "solver_type") or "midpoint") == "midpoint"
        and classes.value(config, "final_sigmas_type", "zero") == "zero"
    )
    order = classes.value(config, "solver_order", 2)
    return {1: "ddim", 2: "dpmpp_2m"}.get(order) if ours else None


def _spacing(schedule: Schedule, solver: str) -> str:
    """The scheduler's own grid where it is more than a spacing or the solver is its own, else its spacing."""
    config = schedule.diffusers
    laid = schedule.kind != "vp" or any(classes.value(config, name) for name in classes.SIGMAS)
    if laid or (solver == _exact(schedule) and solver != "pndm"):
        return OWN
    spacing = classes.value(config, "timestep_spacing", "linspace")
    return spacing if spacing in PLAIN else "linspace"


def _clipping(config: dict[str, Any], solver: str) -> dict[str, Any]:
    """What the class does to x^. DDIM keeps the noise estimate as it was before."""
    if classes.value(config, "thresholding"):
        raise UserError(
            f'{classes.FILE}: thresholding is done by the scheduler\'s own loop alone, and the solver is "{solver}". '
            f"Set sampler.solver: {OWN}, or say how x^ is clipped (sampler.clip: 1.0, or null for not at all)."
        )
    if not classes.value(config, "clip_sample"):
        return {}
    kept = config["_class_name"] in ("DDIMScheduler", "DDIMParallelScheduler") and solver == "ddim"
    return {"clip": float(classes.value(config, "clip_sample_range") or 1.0), "use_clipped_model_output": not kept}
