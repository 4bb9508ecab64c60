"""How much memory a new process may take here, and how bytes are written for a reader.

Standard library only (psutil where the system is not Linux): a build kit's script is made of this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN, FREE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")


def available() -> int:
    """Bytes a new process may take: free memory, or what a control group leaves where that is less."""
    return min([_free(), *left_in_groups()])


def left_in_groups(root: Path = GROUPS, own: Path = OWN) -> list[int]:
    """What each limit leaves that holds for this process: its control group's and those of the groups around it, of
    version 2 or 1. Cached files count as free, since they make way."""
    found = []
    for group in _groups(root, own):
        try:
            most, taken, cached = _limit(group)
        except (OSError, ValueError):  # no limit there, "max" among them
            continue
        found.append(max(most - max(taken - cached, 0), 0))
    return found


def _groups(root: Path, own: Path) -> Iterator[Path]:
    """Folders of the control groups that hold this process, innermost first, `root` and version 1's among them."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    for line in lines:
        _, kinds, path = line.split(":", 2)  # version 2's line names no kinds
        if not kinds or "memory" in kinds.split(","):
            top, inner = root / ("memory" if kinds else ""), path.strip("/")
            yield from (top / part for part in (Path(inner), *Path(inner).parents) if part != Path())
    yield from (root, root / "memory")


def _limit(group: Path) -> tuple[int, int, int]:
    """(limit, taken, of that cached files that nothing uses now); ValueError where there is no limit."""
    two = (group / "memory.max").is_file()
    names = ("memory.max", "memory.current") if two else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    most, taken = (int((group / name).read_text()) for name in names)
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return most, taken, int(stat.get("inactive_file" if two else "total_inactive_file", 0))


def _free() -> int:
    """Bytes that no program uses; ImportError where neither Linux nor psutil is there to say."""
    try:
        lines = FREE.read_text().splitlines()
    except OSError:  # not Linux
        import psutil

        return int(psutil.virtual_memory().available)
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def gb(size: float) -> str:
    """Bytes as "5.9 GB"."""
    return f"{size / 1e9:.1f} GB"
