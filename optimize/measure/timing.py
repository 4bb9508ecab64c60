"""Timing one callable: warm-up until stable, then raw samples by `perf_counter`, after a device synchronize on CUDA."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

Call = Callable[[], Any]


def samples(call: Call, wait: Call, count: int, limit_s: float) -> list[float]:
    """Seconds of up to `count` calls, at least one, none begun once `limit_s` is over. Garbage collection is off."""
    taken: list[float] = []
    with no_garbage_collection():
        end = perf_counter() + limit_s
        while not taken or (len(taken) < count and perf_counter() < end):
            taken.append(timed(call, wait))
    return taken


def timed(call: Call, wait: Call) -> float:
    """Seconds of one call, the device's queue empty before and after."""
    wait()
    start = perf_counter()
    call()
    wait()
    return perf_counter() - start


def warm_up(call: Call, wait: Call, limit_s: float = 3.0, window: int = 5, tolerance: float = 0.05) -> dict[str, Any]:
    """Call until the medians of two neighbouring windows differ by less than `tolerance`, or `limit_s` is over.

    Returns `{calls, seconds, stable}`; without a limit above zero no call is made.
    """
    taken: list[float] = []
    end = perf_counter() + limit_s
    while perf_counter() < end and not _stable(taken, window, tolerance):
        taken.append(timed(call, wait))
    return {"calls": len(taken), "seconds": sum(taken), "stable": _stable(taken, window, tolerance)}


def _stable(taken: list[float], window: int, tolerance: float) -> bool:
    if len(taken) < 2 * window:
        return False
    before, after = np.median(taken[-2 * window : -window]), np.median(taken[-window:])
    return bool(abs(after - before) <= tolerance * before)


def synchronizer(device: str) -> tuple[Call, str]:
    """What waits for a device's queue (nothing to wait for where calls return when they are done), and what to call
    the clock. ONNX Runtime's calls end with the device's work, so without CUDA in torch there is nothing to wait for."""
    if device.startswith("cuda"):
        import torch

        if torch.cuda.is_available():
            return lambda: torch.cuda.synchronize(device), "perf_counter, device synchronized before and after"
    return lambda: None, "perf_counter around calls that return when they are done"


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, then keep the collector off inside the block."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
