"""benchmarks/known_networks.py, roofline_error.py and memory_error.py: what they compare, and that a miss is an exit code."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optimize.roofline import probe


def program(name: str) -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_a_published_figure_that_is_missed_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = program("known_networks")
    ddpm = known.KNOWN[0]
    monkeypatch.setattr(known, "KNOWN", (ddpm,))
    assert known.main() == 0 and "DIFFERS" not in capsys.readouterr().out
    monkeypatch.setattr(known, "KNOWN", (replace(ddpm, params=36.2e6),))
    assert known.main() == 1 and capsys.readouterr().out.count("DIFFERS") == 1


@pytest.mark.slow
def test_all_published_figures_are_met() -> None:
    assert program("known_networks").main() == 0


def test_networks_that_are_measured_against_are_not_calibrated_on() -> None:
    others = program("roofline_error").held_out()
    assert len(others) >= 8 and not set(others) & set(probe.calibration_networks())
    assert all(config not in probe.calibration_networks().values() for config in others.values())


def test_error_and_coverage_are_those_of_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"network": "n", "batch": 1, "predicted_s": 1.2, "low_s": 0.8, "high_s": 1.8, "measured_s": 1.0}
    rows = [row, {**row, "predicted_s": 1.1}, {**row, "measured_s": 2.0}, row]
    error, coverage = program("roofline_error").show_cpu(rows)
    assert (error, coverage) == (pytest.approx(0.2), 0.75)
    assert capsys.readouterr().out.count("outside") == 1


@pytest.mark.slow
def test_the_roofline_program_ends_by_its_targets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    roofline = program("roofline_error")
    monkeypatch.setattr(roofline, "held_out", lambda: {"unet 24": probe.unet_config((24, 24), 1, 16)})
    monkeypatch.setattr(roofline, "ERROR", 100.0)
    monkeypatch.setattr(roofline, "COVERAGE", 0.0)
    assert roofline.main(["--rounds", "2", "--json", str(tmp_path / "record.json")]) == 0
    monkeypatch.setattr(roofline, "ERROR", 0.0)
    assert (tmp_path / "record.json").is_file() and roofline.main(["--rounds", "1"]) == 1


def test_memory_is_compared_as_a_whole_and_a_miss_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = program("memory_error")
    config = probe.unet_config((16, 32), 1, 16)
    known = {"weights": 100, "activations": 50}
    row = {"network": "n", "batch": 1, "predicted": {"weights": 110, "activations": 55}, "measured": known}
    assert memory.show([row, row]) == pytest.approx(0.1)
    assert "+10%" in capsys.readouterr().out
    monkeypatch.setattr(memory, "networks", lambda: {"unet 16": config})
    monkeypatch.setattr(memory, "row", lambda *_: {**row, "measured": {"weights": 300, "activations": 50}})
    assert memory.main(["--json", str(tmp_path / "record.json")]) == 1
    assert (tmp_path / "record.json").is_file()


def test_what_a_call_holds_is_measured_in_a_process_of_its_own() -> None:
    memory = program("memory_error")
    found = memory.row("unet", probe.unet_config((64, 128), 1, 64, attention=()), 4)
    assert found["measured"]["weights"] == pytest.approx(found["predicted"]["weights"], rel=0.3)
    assert found["measured"]["activations"] == pytest.approx(found["predicted"]["activations"], rel=0.5)
