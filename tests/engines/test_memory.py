"""A build's memory: what is refused, and the watch that stops a process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from optimize.engines import memory
from optimize.errors import EnvironmentLacks

GREEDY = "import time\nheld = bytearray(b'x') * 400_000_000\nprint(len(held), flush=True)\ntime.sleep(60)"


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, text=True)


def test_a_process_over_its_limit_is_stopped() -> None:
    with start(GREEDY) as process, memory.Watch(process, 150_000_000, every_s=0.01) as watch:
        code = process.wait(timeout=50)
    assert code == -9 and watch.killed and watch.peak > 150_000_000


def test_a_process_within_its_limit_is_left_alone_and_measured() -> None:
    with (
        start("import time; x = bytearray(b'x') * 50_000_000; time.sleep(0.5)") as process,
        memory.Watch(process, 10**10, 0.01) as watch,
    ):
        assert process.wait(timeout=50) == 0
    assert not watch.killed and watch.peak > 50_000_000


def test_an_error_on_our_side_leaves_no_process_behind() -> None:
    process = start("import time; time.sleep(60)")
    with pytest.raises(KeyError), memory.Watch(process, 10**10):
        raise KeyError
    assert process.poll() == -9


def test_a_build_that_is_too_large_is_refused_with_both_figures() -> None:
    with pytest.raises(
        EnvironmentLacks, match=r"x: building it is estimated to take 5\.9 GB, and 4\.0 GB may be taken"
    ):
        memory.check(5_900_000_000, 4_000_000_000, "x")
    memory.check(1, 1, "x")


def test_messages_about_memory_are_known() -> None:
    for said in ("Error Code 2: OutOfMemory", "std::bad_alloc", "CUDA_ERROR_OUT_OF_MEMORY (2)", "out of memory"):
        assert memory.ran_out(said)
    assert not memory.ran_out("no kernel for node 3")
