"""The conditions under which something was timed: processor clocks, temperature, throttling, load. Torch-free.

Whatever the system does not tell (virtual machines tell little) is absent. The GPU's share comes from `nvml`.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

SYS = Path("/sys")
STAT = Path("/proc/stat")


def now(sys: Path = SYS, stat: Path = STAT) -> dict[str, Any]:
    """`{load_1m, cpu_mhz: [low, high], temperature_c, throttle_count, busy_s, stolen_s}`, each where it is told, of up to
    sixteen cores.

    temperature_c is the hottest zone's; throttle_count and the seconds (of all cores, work and time stolen by the
    hypervisor) are counters: take `between`.
    """
    mhz = [v / 1e3 for v in _numbers(sys, "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    heat = [
        v / 1e3
        for pattern in ("class/thermal/thermal_zone*/temp", "class/hwmon/hwmon*/temp*_input")
        for v in _numbers(sys, pattern)
    ]
    throttles = list(_numbers(sys, "devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"))
    found: dict[str, Any] = {"load_1m": os.getloadavg()[0]} if hasattr(os, "getloadavg") else {}
    found |= {"cpu_mhz": [min(mhz), max(mhz)]} if mhz else {}
    found |= {"temperature_c": max(heat)} if heat else {}
    found |= {"throttle_count": int(sum(throttles))} if throttles else {}
    return found | _cpu_seconds(stat)


def between(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The state after a stretch of work, its counters as differences, and `throttled: [reason]`."""
    found = {k: v for k, v in after.items() if k not in ("throttle_count", "busy_s", "stolen_s")}
    for key in ("throttle_count", "busy_s", "stolen_s"):
        if key in before and key in after:
            found[key] = after[key] - before[key]
    return found | {"throttled": ["processor hot"] if found.get("throttle_count") else []}


def throttled(turns: list[dict[str, Any]]) -> list[str]:
    """Every reason for throttling seen in these turns, of processor and GPU."""
    reasons = {r for turn in turns for r in (*turn.get("throttled", ()), *turn.get("gpu", {}).get("throttled", ()))}
    return sorted(reasons)


def _cpu_seconds(stat: Path) -> dict[str, float]:
    """Seconds all cores have worked, and been kept from work by the hypervisor, since the start of the system."""
    if not stat.is_file():
        return {}
    user, nice, system, _, _, irq, softirq, steal, *_ = (int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:])
    tick = os.sysconf("SC_CLK_TCK")
    return {"busy_s": (user + nice + system + irq + softirq) / tick, "stolen_s": steal / tick}


def _numbers(root: Path, pattern: str) -> list[float]:
    """The numbers in all readable files of a pattern; a sensor that cannot be read tells nothing."""
    found = []
    for path in _files(root, pattern):
        try:
            found.append(float(path.read_text()))
        except (OSError, ValueError):
            continue
    return found


@lru_cache
def _files(root: Path, pattern: str) -> tuple[Path, ...]:
    """Files of a pattern, at most sixteen, spread evenly: a machine with many cores is not asked for each of them."""
    found = sorted(root.glob(pattern))
    return tuple(found[:: -(-len(found) // 16)] if found else ())
