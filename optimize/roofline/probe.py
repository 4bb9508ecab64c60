"""Rates of this machine's CPU, measured: short probes for the peaks, a few small networks for what is reached of them.

They speak of torch eager, whose operators the layers mirror one to one. On one thread the clock is the thread's own CPU
time, which does not see what else the machine does; on several it is the wall clock, for an otherwise idle machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.configs import digest
from optimize.errors import EnvironmentLacks
from optimize.hardware.environment import cpu_name, key
from optimize.hardware.targets import target
from optimize.roofline.fitting import Case, Free, fit
from optimize.roofline.rates import Rates
from optimize.storage.weights import read_json

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
Config = dict[str, Any]
Call = Callable[[], Any]
FREE: Free = {
    "compute.conv": (0.02, 1.0),
    "compute.linear": (0.02, 1.0),
    "compute.default": (0.02, 1.0),
    "compute.other": (1e-3, 1.0),
    "bandwidth": (0.2, 10.0),
    "overhead_s": (1e-6, 2e-4),
    "launch.conv": (1e-6, 4e-4),  # a convolution chooses its kernel and lays out its tensors anew at every call
}
BATCHES = (1, 4)


def unet_config(
    widths: tuple[int, ...], depth: int, size: int, attention: tuple[int, ...] = (1,), groups: int = 8
) -> Config:
    """A UNet2DModel of these widths with `depth` layers a block, on (3, size, size); attention at levels `attention`."""
    down = ["AttnDownBlock2D" if i in attention else "DownBlock2D" for i in range(len(widths))]
    up = ["AttnUpBlock2D" if i in attention else "UpBlock2D" for i in reversed(range(len(widths)))]
    return {
        "_class_name": "UNet2DModel", "sample_size": size, "in_channels": 3, "out_channels": 3,
        "block_out_channels": list(widths), "layers_per_block": depth, "norm_num_groups": groups,
        "attention_head_dim": 8, "down_block_types": down, "up_block_types": up,
    }  # fmt: skip


def dit_config(width: int, depth: int, size: int) -> Config:
    """A DiTTransformer2DModel of `depth` blocks of this width (heads of 32) on (4, size, size), patches of 2."""
    return {
        "_class_name": "DiTTransformer2DModel", "num_attention_heads": width // 32, "attention_head_dim": 32,
        "in_channels": 4, "out_channels": 4, "num_layers": depth, "sample_size": size, "patch_size": 2,
        "num_embeds_ada_norm": 10, "norm_num_groups": 1,
    }  # fmt: skip


def calibration_networks() -> dict[str, Config]:
    """What the rates are fitted to: small U-Nets, narrow and wide, and transformers; milliseconds a call."""
    return {
        "unet 16": unet_config((16, 32), 1, 16),
        "unet 32": unet_config((32, 64, 64), 1, 16),
        "unet 64": unet_config((64, 128), 1, 16, attention=()),
        "unet 96": unet_config((96, 96, 192), 1, 16, attention=(1, 2)),
        "dit 96": dit_config(96, 4, 16),
        "dit 192": dit_config(192, 3, 16),
    }


def calibrate(folder: Path | None = None, threads: int = 1, rounds: int = 7) -> Rates:
    """Rates of the CPU at `threads`, for `predict(layers, target("cpu"), "fp32", rates)`.

    Takes seconds on an idle machine. Kept in `folder` under the key of the environment, where one is given, so that
    another machine, or another torch, is measured anew.
    """
    place = folder and folder / f"roofline-{digest([key(), threads, calibration_networks(), sorted(FREE)])[:16]}.json"
    if place and place.is_file():
        kept = read_json(place)
        return Rates(**{**kept, "formats": tuple(kept["formats"])})
    with limited_threads(threads):
        start, cases = probes(threads), measured(calibration_networks(), threads, rounds)
    rates = fit(cases, start, FREE, "fp32")
    if place:
        from optimize.storage.commit import write_json_atomically

        try:
            write_json_atomically(place, asdict(rates))
        except EnvironmentLacks as error:  # they are measured again the next time
            log.warning("rates of this machine are not kept: %s", error)
    return rates


def measured(networks: dict[str, Config], threads: int, rounds: int, batches: tuple[int, ...] = BATCHES) -> list[Case]:
    """Every network at every batch: the least of `rounds` times, taken in turns so that a slow minute meets them all."""
    from optimize.diffusion.network import example_inputs
    from optimize.roofline.layers import layers

    cases, calls = [], []
    for name, config in networks.items():
        module, inputs = built(config)
        for batch in batches:
            feed = example_inputs(inputs, batch, classes=2)
            cases.append((name, layers(module, feed=feed)))
            calls.append(caller(module, feed))
    return [
        Case(name, found, target("cpu"), seconds)
        for (name, found), seconds in zip(cases, least_seconds(calls, clock(threads), rounds))
    ]


def built(config: Config) -> tuple[nn.Module, Any]:
    """(a network of a config with seeded random weights, its inputs); the caller's random state stays as it was."""
    import torch

    from optimize.architectures.components import class_name, component

    entry = component(class_name(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return entry.build(config).eval().requires_grad_(False), entry.inputs(config)


def caller(module: nn.Module, feed: dict[str, Tensor]) -> Call:
    """One call under inference mode, as the eager runner makes it."""
    import torch

    from optimize.diffusion.network import nested

    arguments = nested(feed)

    def call() -> None:
        with torch.inference_mode():
            module(**arguments)

    return call


def clock(threads: int) -> Callable[[], float]:
    """Seconds: of this thread's own CPU time for one thread, of the wall for more."""
    return time.thread_time if threads == 1 else time.perf_counter


def least_seconds(calls: list[Call], now: Callable[[], float], rounds: int, repeats: int = 2) -> list[float]:
    """The least time of each call; in every round each takes its turn, twice in a row, after one round of warm-up."""
    for call in calls:
        call()
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            for _ in range(repeats):
                start = now()
                call()
                best[i] = min(best[i], now() - start)
    return best


def probes(threads: int, rounds: int = 5) -> Rates:
    """Peaks: the fastest FP32 matrix product and convolution, the bandwidth of a copy beyond the caches, and the time of
    an operator on next to nothing. The shares to start the fit from are those of the probes themselves."""
    import torch
    from torch.nn.functional import conv2d

    def made(*shape: int) -> Tensor:
        return torch.ones(shape)

    products = [(made(n, n), made(n, n)) for n in (256, 512)]
    images = [(made(1, c, s, s), made(c, c, 3, 3)) for c, s in ((32, 32), (128, 16))]
    source, sink, tiny = made(2**23), made(2**23), made(8)
    jobs: list[tuple[float, Call]] = [
        *((2.0 * len(a) ** 3, lambda a=a, b=b: a @ b) for a, b in products),
        *((2.0 * x[0].numel() * w[0].numel(), lambda x=x, w=w: conv2d(x, w, padding=1)) for x, w in images),
        (2.0 * 4 * source.numel(), lambda: sink.copy_(source)),
    ]
    with torch.inference_mode():
        seconds = least_seconds([j for _, j in jobs], clock(threads), rounds)
        overhead = least_seconds([lambda: [tiny + tiny for _ in range(100)]], clock(threads), rounds)[0] / 100
    speeds = [work / s for (work, _), s in zip(jobs, seconds)]
    peak = max(speeds[:-1])
    compute = {"linear": max(speeds[:2]) / peak, "conv": max(speeds[2:4]) / peak, "default": 0.3, "other": 0.05}
    return Rates(
        name=f"torch eager, {threads} thread{'s' * (threads > 1)}, {cpu_name()}",
        compute=compute, bandwidth=1.0, overhead_s=max(overhead, 1e-6), launch={"conv": max(overhead, 1e-6)}, spread=1.0, samples=2, fused=False,
        formats=("fp32",), peak_tflops={"fp32": peak / 1e12}, bandwidth_gb_s=speeds[-1] / 1e9,
    )  # fmt: skip


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """torch's intra-op threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
