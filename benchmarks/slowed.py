"""A runner around another one that makes every call longer by a share of itself, spinning as work would.

It exists to be found out: `a_a.py` must see the difference. `plugged_in` lets worker processes find it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any, Self

from optimize.configs import Config
from optimize.diffusion.backend import open_runner
from optimize.registry import RUNNERS


@RUNNERS.register("slowed")
class Slowed(Config):
    """Options of the slowed runner."""

    inner: str  # the runner inside
    share: float = 0.0  # of a call's time, added to it
    threads: int | None = None  # the inner runner's

    def open(self, folder: Path) -> SlowedRunner:
        """Open the inner runner."""
        return SlowedRunner(open_runner(folder, self.inner, threads=self.threads), self.share)


class SlowedRunner:
    """Calls the inner runner, then spins."""

    def __init__(self, inner: Any, share: float) -> None:
        self._inner, self._share = inner, share
        self.inputs = inner.inputs

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inner.__exit__(kind, error, trace)

    def __call__(self, **tensors: Any) -> Any:
        start = perf_counter()
        found = self._inner(**tensors)
        end = start + (perf_counter() - start) * (1 + self._share)
        while perf_counter() < end:
            continue
        return found

    def describe(self) -> dict[str, Any]:
        """The inner runner's facts."""
        return {**self._inner.describe(), "slowed_by": self._share}


@contextmanager
def plugged_in() -> Iterator[None]:
    """Processes started inside the block find this runner by its entry point."""
    before = os.environ.get("PYTHONPATH")
    with tempfile.TemporaryDirectory() as folder:
        about = Path(folder) / "slowed_runner-1.0.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: slowed-runner\nVersion: 1.0\n")
        (about / "entry_points.txt").write_text("[optimize.plugins]\nslowed = slowed\n")
        paths = [folder, str(Path(__file__).parent), *filter(None, [before])]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)
        try:
            yield
        finally:
            os.environ.pop("PYTHONPATH")
            if before is not None:
                os.environ["PYTHONPATH"] = before
