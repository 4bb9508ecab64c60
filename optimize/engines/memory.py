"""Memory of a build: what it will take, what there is, and a watch that stops a process before it takes the machine down."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from optimize.errors import EnvironmentLacks

CGROUP = Path("/sys/fs/cgroup")


class Watch:
    """`with Watch(process, limit)`: the process is killed when its resident memory passes `limit` bytes; `peak` and
    `killed` say what happened."""

    def __init__(self, process: subprocess.Popen[str], limit: int, every_s: float = 0.05) -> None:
        self._process, self._limit, self._every_s = process, limit, every_s
        self.peak, self.killed = 0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._process.poll() is None:  # an error or an interrupt on our side: leave nothing running
            self._process.kill()
            self._process.wait()

    def _look(self) -> None:
        import psutil

        while not self._over.wait(self._every_s):
            try:
                size = psutil.Process(self._process.pid).memory_info().rss
            except psutil.NoSuchProcess:
                return
            self.peak = max(self.peak, size)
            if size > self._limit:
                self.killed = True
                self._process.kill()
                return


def available() -> int:
    """Bytes a new process may take: free memory, or what the control group leaves where that is less."""
    import psutil

    return min([int(psutil.virtual_memory().available), *_left_in_group()])


def _left_in_group(root: Path = CGROUP) -> list[int]:
    """What a control group's limit leaves; empty without one (version 2, then 1)."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most, taken = (root / limit).read_text().strip(), (root / used).read_text().strip()
        except OSError:
            continue
        if most.isdigit() and taken.isdigit():
            return [max(int(most) - int(taken), 0)]
    return []


def check(needed: int, limit: int, what: str) -> None:
    """EnvironmentLacks where a build is estimated to need more than it may take."""
    if needed > limit:
        raise EnvironmentLacks(
            f"{what}: building it is estimated to take {gb(needed)}, and {gb(limit)} may be taken here. Close other programs, raise --memory-gb, or build on a larger machine with a kit."
        )


def ran_out(text: str) -> bool:
    """Whether a message of TensorRT or CUDA says that memory was not enough."""
    plain = text.lower().replace("_", " ")
    return any(word in plain for word in ("out of memory", "outofmemory", "bad alloc"))


def gb(size: float) -> str:
    """Bytes as "5.9 GB"."""
    return f"{size / 1e9:.1f} GB"


def too_little(what: str, peak: int, limit: int) -> EnvironmentLacks:
    """The one error of a build that ran out of memory."""
    return EnvironmentLacks(
        f"{what}: building it took more memory than it may ({gb(peak)} of {gb(limit)}) and was stopped; nothing was written. Close other programs, raise --memory-gb, or build on a larger machine with a kit."
    )
