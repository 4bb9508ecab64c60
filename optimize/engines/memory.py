"""Memory of a build: what it will take, and a watch that stops a process before it takes the machine down."""

from __future__ import annotations

import subprocess
import threading
from types import TracebackType
from typing import Self

from optimize.errors import EnvironmentLacks
from optimize.hardware.memory import gb


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


def too_little(what: str, peak: int, limit: int) -> EnvironmentLacks:
    """The one error of a build that ran out of memory."""
    return EnvironmentLacks(
        f"{what}: building it took more memory than it may ({gb(peak)} of {gb(limit)}) and was stopped; nothing was written. Close other programs, raise --memory-gb, or build on a larger machine with a kit."
    )
