"""Which TensorRT builds for which GPU here: modules found, what each refuses, and why. Nothing is built to find out."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from optimize.errors import EnvironmentLacks, UserError
from optimize.hardware import environment
from optimize.hardware.gpus import gpus
from optimize.hardware.targets import RTX_SMS

ModuleName = Literal["tensorrt", "tensorrt_rtx"]
SM = tuple[int, int]
PACKAGES: dict[str, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}  # module -> what pip installs
DISTRIBUTIONS = {  # under which names pip may know a module: the CUDA version may be part of it
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12"),
}
TITLES: dict[str, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
LAST_FOR_VOLTA = (10, 4)  # 10.5 dropped SM 7.0
FIRST = (10, 4)  # of TensorRT that this library is written for
WITHOUT_GPU = {  # flags that TensorRT-RTX refuses on a machine without a GPU, and what works instead
    "refit": "refit_individual",
    "refit_identical": "refit_individual",
    "strip_weights": "no flag",
    "version_compatible": "no flag",
}


@dataclass(frozen=True)
class Wish:
    """What an engine is asked to be."""

    sm: SM
    formats: frozenset[str]  # that the graph's layers compute in: fp32, fp16, bf16, int8, fp8
    flags: tuple[str, ...] = ()
    hardware_compatible: bool = False


def found_version(module: str) -> str | None:
    """The installed version, read from metadata; None where it is not installed."""
    return next(iter(environment.versions(DISTRIBUTIONS[module]).values()), None)


def load_module(module: str) -> Any:
    """The TensorRT module; EnvironmentLacks where it is not installed or does not load."""
    try:
        found = importlib.import_module(module)
        if not hasattr(found, "Builder"):  # an artifact's folder `tensorrt`, taken for a package
            raise ImportError(f"there is a folder {module} alone")
    except ImportError as error:
        raise EnvironmentLacks(
            f"{TITLES[module]} is not installed or does not load here ({error}). pip install {PACKAGES[module]}"
        ) from error
    return found


def gpu_sm() -> SM | None:
    """Compute capability of the first visible GPU; None without one."""
    return next((tuple(g["sm"]) for g in gpus()[:1] if "sm" in g), None)


def gpu_name() -> str:
    """Name of the first visible GPU; empty without one."""
    return next((str(g["name"]) for g in gpus()), "")


def release(text: str) -> tuple[int, int]:
    """(major, minor) of a version."""
    parts = (*text.split("."), "0", "0")
    return int(parts[0]), int("".join(c for c in parts[1] if c.isdigit()) or 0)


def refuse_format(wish: Wish) -> None:
    """UserError for formats that no TensorRT computes in on this SM."""
    sm = sm_text(wish.sm)
    if "fp8" in wish.formats and wish.sm < (8, 9):
        raise UserError(f"engine for SM {sm}: it has no FP8 arithmetic, only 8.9 and newer have. Quantize to int8.")
    if "bf16" in wish.formats and wish.sm < (8, 0):
        raise UserError(f"engine for SM {sm}: it has no BF16 arithmetic, only 8.0 and newer have. Export in fp16.")
    if "sparse_weights" in wish.flags and wish.sm < (8, 0):
        raise UserError(f"engine for SM {sm}: 2:4 sparse weights need SM 8.0 or newer. Leave sparse_weights out.")
    if wish.hardware_compatible and wish.sm < (8, 0):
        raise UserError(f"engine for SM {sm}: hardware compatibility begins with SM 8.0. Leave it out.")
    both = {"refit", "refit_identical", "refit_individual"} & set(wish.flags)
    if len(both) > 1:
        raise UserError(f"engine: {', '.join(sorted(both))} exclude each other. Choose one.")


def refuse_rtx(wish: Wish, gpu: SM | None) -> None:
    """UserError for what TensorRT-RTX cannot build for this SM, or not without a GPU."""
    sm = sm_text(wish.sm)
    if wish.sm not in RTX_SMS:
        known = ", ".join(sm_text(s) for s in sorted(RTX_SMS))
        raise UserError(f"engine for SM {sm}: TensorRT-RTX cannot target it, only {known}. Use TensorRT (a build kit).")
    if wish.sm == (7, 5) and "int8" in wish.formats:
        raise UserError("engine for SM 7.5: TensorRT-RTX falls back or fails on INT8 graphs there. Export in fp16.")
    if wish.hardware_compatible:
        raise UserError(
            "engine: TensorRT-RTX has no hardware-compatible plans; it is told its SMs. Leave hardware_compatible out."
        )
    refused = [f for f in wish.flags if f in WITHOUT_GPU] if gpu is None else []
    if refused:
        advice = "; ".join(f"{f}: use {WITHOUT_GPU[f]}" for f in refused)
        raise UserError(f"engine: TensorRT-RTX refuses {', '.join(refused)} on a machine without a GPU ({advice}).")


def refuse_enterprise(wish: Wish, installed: str, gpu: SM | None) -> None:
    """UserError or EnvironmentLacks for what this TensorRT cannot build on this machine."""
    sm = sm_text(wish.sm)
    if release(installed) < FIRST:
        raise EnvironmentLacks(f"TensorRT {installed} is too old. pip install 'tensorrt>=10.4'")
    if wish.sm < (7, 5) and release(installed) > LAST_FOR_VOLTA:
        raise EnvironmentLacks(
            f"engine for SM {sm}: TensorRT {installed} dropped it; 10.4 is the last. pip install 'tensorrt==10.4.*' in an environment with CUDA 12."
        )
    if gpu is None or (gpu != wish.sm and not wish.hardware_compatible):
        here = f"the GPU here is SM {sm_text(gpu)}" if gpu else "there is no GPU here"
        raise EnvironmentLacks(
            f"engine for SM {sm}: TensorRT builds on a GPU of that class, and {here}. Use a build kit."
        )
    if "refit" in wish.flags and release(installed) == (11, 3):
        raise UserError(
            "engine: TensorRT 11.3 can drop a GEMM bias under `refit`. Use refit_identical, or another version."
        )


def refuse(module: str, installed: str, wish: Wish, gpu: SM | None) -> None:
    """Raise where this module cannot make the engine here, with the reason and what works instead."""
    refuse_format(wish)
    if module == "tensorrt_rtx":
        refuse_rtx(wish, gpu)
    else:
        refuse_enterprise(wish, installed, gpu)


def sm_text(sm: Iterable[int]) -> str:
    """(8, 6) as "8.6"."""
    return ".".join(str(n) for n in sm)
