"""The device found here and its class; which class a measurement belongs to."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from optimize.errors import UserError, did_you_mean
from optimize.hardware import environment
from optimize.hardware.gpus import bandwidth_gb_s, gpus
from optimize.hardware.targets import NAMES, RTX_SMS, Target, class_name, classify, targets

log = logging.getLogger(__name__)


def here() -> tuple[Target, dict[str, Any]]:
    """The class of the first visible GPU, or `cpu`, and the facts it was told by (see `gpus`; of a CPU its name, cores
    and instruction sets)."""
    if not gpus():
        about = {"cores": environment.cores(), "instructions": environment.instructions()}
        return targets()["cpu"], {"name": environment.cpu_name(), **about}
    facts = gpus()[0]
    facts = facts if "sm" in facts else _asked_of_torch() | facts
    return of(facts), facts


def of(facts: dict[str, Any]) -> Target:
    """The listed class of a GPU, or a Target of what its driver tells, whose peak rates are unknown and absent."""
    known = classify(facts["name"])
    if known is not None:
        return known
    sm = tuple(facts["sm"]) if "sm" in facts else None
    gib, speed = facts.get("memory_bytes", 0) / 2**30, bandwidth_gb_s(facts)
    log.warning(
        "%s is of no listed class: its peak rates are unknown, and nothing is predicted from them", facts["name"]
    )
    return Target(
        name=class_name(facts["name"]),
        title=facts["name"],
        sm=sm,
        memory_gb=(round(gib),) if gib else (),
        bandwidth_gb_s=(speed,) if speed else (),
        peak_tflops=MappingProxyType({}),
        sparsity_2_4=sm is not None and sm >= (8, 0),
        tensorrt=None if sm is None or sm < (7, 0) else ("current" if sm >= (7, 5) else "10.4"),
        tensorrt_rtx=sm in RTX_SMS,
        int8_tensor_cores=sm is not None and sm >= (7, 5),
    )


def memory_gb(facts: dict[str, Any]) -> float | None:
    """Memory of the GPU found (GiB); None for a CPU or where the driver does not say."""
    return facts["memory_bytes"] / 2**30 if "memory_bytes" in facts else None


def resolve(names: Sequence[str]) -> list[Target]:
    """The classes of these names, `here` being the one found; UserError naming every unknown one with the nearest."""
    wrong = [n for n in names if n not in NAMES]
    if wrong or not names:
        problems = [f'"{n}" is not known.{did_you_mean(n, NAMES)}' for n in wrong] or ["none given."]
        raise UserError(f"target: {' '.join(problems)} Allowed: {', '.join(NAMES)}.")
    found = [here()[0] if n == "here" else targets()[n] for n in names]
    return list({t.name: t for t in found}.values())


def _asked_of_torch() -> dict[str, Any]:
    """SM and memory from torch, for machines with a driver but without nvidia-ml-py; empty where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    about = torch.cuda.get_device_properties(0)
    return {"sm": (about.major, about.minor), "memory_bytes": int(about.total_memory)}
