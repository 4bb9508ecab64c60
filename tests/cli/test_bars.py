"""Progress: what its lines say, and that time left is told from real work alone. The clock is made up."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.sampling import write_sampling

from optimize.cli.bars import Clock, rich_progress
from optimize.diffusion.sampling import Sampler
from optimize.measure.record import Variant
from optimize.measure.turns import about
from optimize.progress import preparation, silent


class Time:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def passes(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def time() -> Time:
    return Time()


def lines(time: Time, work: Callable[[Any], None], terminal: bool = False, width: int = 80) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    with rich_progress(console, now=time) as progress:
        work(progress)
    return out.getvalue()


def test_time_left_is_the_pace_of_the_work_so_far(time: Time) -> None:
    clock = Clock(10, time)
    clock.begin()
    time.passes(2)
    clock.advance(1)
    assert clock.left_s() == pytest.approx(18)
    time.passes(1)  # on the way to the second
    assert clock.left_s() == pytest.approx(17)


def test_without_a_word_the_clock_starts_with_the_end_of_the_first_unit(time: Time) -> None:
    clock = Clock(4, time)
    time.passes(1000)  # loading, compiling, the first unit
    clock.advance(1)
    assert clock.left_s() is None
    time.passes(5)
    clock.advance(1)
    assert clock.left_s() == pytest.approx(10)


def test_preparation_says_nothing_of_the_time_left(time: Time) -> None:
    clock = Clock(40, time)
    clock.hold()
    for _ in range(10):  # ten workers start, slowly
        time.passes(60)
        clock.advance(1)
        assert clock.left_s() is None
    clock.begin()
    assert clock.left_s() is None
    time.passes(1)
    clock.advance(1)
    assert clock.left_s() == pytest.approx(29)


def test_units_that_a_resumed_task_finds_done_are_no_pace(time: Time) -> None:
    clock = Clock(1000, time)
    clock.advance(900)
    time.passes(2)
    clock.advance(1)
    assert clock.left_s() == pytest.approx(2 * 99)


def test_nothing_is_left_of_a_finished_task_and_never_less_than_nothing(time: Time) -> None:
    clock = Clock(2, time)
    clock.begin()
    time.passes(1)
    clock.advance(1)
    time.passes(100)
    assert clock.left_s() == 0.0
    clock.advance(1)
    assert clock.left_s() is None


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(time: Time) -> None:
    def work(progress: Any) -> None:
        with progress("images: final on openvino, ddim × 2, 2 NFE", 4) as advance:
            for _ in range(4):
                time.passes(6)
                advance(1, "[note]")

    said = lines(time, work).splitlines()
    assert said == [
        "images: final on openvino, ddim × 2, 2 NFE: 2/4, 12 s left, [note]",
        "images: final on openvino, ddim × 2, 2 NFE: done in 24.0 s",
    ]


def test_a_bench_that_starts_slowly_foretells_its_turns_alone(time: Time) -> None:
    def work(progress: Any) -> None:
        with progress("benchmark", 8) as advance:
            with preparation(advance):
                for _ in range(2):
                    time.passes(300)
                    advance(1, "ready: a/torch/4, ddim × 6")
            for _ in range(6):
                time.passes(11)
                advance(1, "a/torch/4, ddim × 6")

    said = lines(time, work).splitlines()
    assert said[:2] == [f"benchmark: {i}/8, ready: a/torch/4, ddim × 6" for i in (1, 2)]
    assert said[2] == "benchmark: 3/8, 55 s left, a/torch/4, ddim × 6"
    assert said[-1] == "benchmark: done in 666.0 s"


def test_the_bars_say_the_same(time: Time) -> None:
    def work(progress: Any) -> None:
        with progress("benchmark", 700) as advance:
            with preparation(advance):
                time.passes(300)
                advance(1)
            time.passes(10)
            advance(1, "final/openvino/16, ddim × 2")

    shown = lines(time, work, terminal=True, width=160)
    assert "1:56:20 left" in shown and "final/openvino/16, ddim × 2" in shown and "2/700" in shown


def test_a_task_that_forecasts_nothing_can_prepare_as_well() -> None:
    with silent("x", 1) as advance, preparation(advance):
        advance(1)


def test_what_is_timed_names_runner_and_solver(tmp_path: Path) -> None:
    sampler = Sampler(solver="heun", steps=5)
    asked = Variant(key="fair/openvino:bf16/16", folder=str(tmp_path), runner="openvino", sampler=sampler)
    assert about(asked) == "fair/openvino:bf16/16, heun × 5"
    alone = asked.model_copy(update={"sampler": None})
    assert about(alone) == "fair/openvino:bf16/16"
    write_sampling(tmp_path)
    assert about(alone) == "fair/openvino:bf16/16, ddim × 2"
