"""Memory of this process: resident now, and the highest it ever was (or was since `reset_peak`). Torch-free."""

from __future__ import annotations

from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Resident set of this process."""
    return _status("VmRSS") or _psutil_resident()


def peak_bytes() -> int:
    """Highest resident set of this process, since its start or since the last successful `reset_peak`."""
    return _status("VmHWM") or _rusage_peak()


def reset_peak() -> bool:
    """Let the peak start again from the present resident set; False where the system cannot (it stays as it was)."""
    try:
        CLEAR.write_text("5")  # Linux: 5 resets VmHWM
    except OSError:
        return False
    return True


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes, 0 where there is none."""
    if not STATUS.exists():
        return 0
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _psutil_resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _rusage_peak() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
