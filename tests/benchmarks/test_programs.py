"""The benchmark programs: their verdicts from made-up figures, the slowed runner, and short runs of the real thing."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

import pytest

from optimize.registry import RUNNERS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(RUNNERS, "_found", dict(RUNNERS._found))  # what a program registers ends with its test

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_shares_have_exact_binomial_intervals(program: Any) -> None:
    """Clopper and Pearson's for no hit in n is [0, 1 - 0.025^(1/n)]."""
    none = program("a_a").binomial(0, 200)
    assert (none["value"], none["low"]) == (0.0, 0.0) and none["high"] == pytest.approx(1 - 0.025 ** (1 / 200))


def comparison(again: tuple[float, float], slowed: tuple[float, float]) -> dict[str, Any]:
    pairs = {"again": again, "slowed": slowed}
    return {key: {"value": sum(ends) / 2, "low": ends[0], "high": ends[1]} for key, ends in pairs.items()}


def test_false_claims_and_missed_slowdowns_are_judged_apart(program: Any) -> None:
    right, claims, missed = (0.99, 1.01), (1.001, 1.01), (0.999, 1.05)
    judged = program("a_a").judged
    good = judged([comparison(right, (1.02, 1.04))] * 19 + [comparison(claims, missed)])
    assert good["false_claims"]["value"] == 0.05 and good["found"]["value"] == 0.95 and good["holds"]
    assert not judged([comparison(claims, (1.02, 1.04))] * 20)["holds"]
    assert not judged([comparison(right, missed)] * 3 + [comparison(right, (1.02, 1.04))] * 17)["holds"]


def test_a_slowed_runner_takes_its_share_longer(program: Any) -> None:
    class Inner:
        inputs = ()
        seconds = 0.0

        def __call__(self, **tensors: Any) -> str:
            start = perf_counter()
            while perf_counter() < start + 0.01:
                continue
            self.seconds = perf_counter() - start
            return "out"

        def describe(self) -> dict[str, Any]:
            return {"device": "cpu"}

    inner = Inner()
    slowed = program("slowed").SlowedRunner(inner, 0.5)
    start = perf_counter()
    assert slowed() == "out" and perf_counter() - start >= 1.5 * inner.seconds
    assert slowed.describe() == {"device": "cpu", "slowed_by": 0.5}


def test_processes_inside_the_block_find_the_slowed_runner_and_others_do_not(program: Any) -> None:
    code = "from optimize.registry import RUNNERS; print('slowed' in RUNNERS.names())"
    before = os.environ.get("PYTHONPATH")

    def found() -> str:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(BENCHMARKS.parent), os.environ.get("PYTHONPATH", "")])}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout.strip()

    with program("slowed").plugged_in():
        assert found() == "True"
    assert os.environ.get("PYTHONPATH") == before and found() == "False"


def test_overhead_counts_every_part(program: Any) -> None:
    overhead = program("overhead")
    good = {"wrapping": {"x": {"value": 0.004}}, "turn": {"x": {"value": 0.009}}}
    suite = {"rows": 40, "failed": {}, "seconds": 599.0}
    assert overhead._holds(good | {"suite": suite}) and overhead._holds(good)
    for worse in (
        {"wrapping": {"x": {"value": 0.02}}},
        {"turn": {"x": {"value": 0.011}}},
        {"suite": suite | {"seconds": 601.0}},
        {"suite": suite | {"rows": 39}},
        {"suite": suite | {"failed": {"a": "no"}}},
    ):
        assert not overhead._holds(good | {"suite": suite} | worse)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sys.path.insert(0, str(BENCHMARKS))
    from a_a import tiny_artifact

    sys.path.remove(str(BENCHMARKS))
    return tiny_artifact(tmp_path_factory.mktemp("tiny_network"))


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / name), *arguments]
    env = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)


@pytest.mark.slow
def test_a_a_runs_adds_to_its_record_and_finds_a_large_slowdown(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    options = ["--artifact", str(tiny), "--comparisons", "2", "--lives", "1", "--rounds", "8", "--out", str(out)]
    for _ in range(2):
        done = run("a_a.py", *options, "--more", "--slowdown", "3")
    record = json.loads(out.read_text())
    assert record["false_claims"]["n"] == 4 and record["found"]["value"] == 1.0, done.stdout + done.stderr
    assert 3 < record["median_ratio"]["slowed"] < 5


@pytest.mark.slow
def test_against_tools_compares_all_three(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    done = run("against_tools.py", str(tiny), "--lives", "2", "--rounds", "6", "--calls", "20", "--out", str(out))
    ratios = json.loads(out.read_text())["ratios"]
    assert set(ratios) == {"benchmark_app", "onnxruntime loop", "torch.utils.benchmark"}, done.stderr
    assert all(0.3 < r["value"] < 3 for r in ratios.values()) and "trtexec" in done.stdout


@pytest.mark.slow
def test_overhead_runs(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "record.json"
    done = run("overhead.py", str(tiny), "--rounds", "6", "--out", str(out))
    record = json.loads(out.read_text())
    assert set(record["wrapping"]) == set(record["turn"]) == {"onnxruntime", "openvino"}, done.stderr
    assert all(0 < r["value"] < 0.5 for r in record["wrapping"].values())


def test_a_run_of_the_engines_program_stands_once_in_its_record_however_often_it_is_written(
    program: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines, out = program("engines"), tmp_path / "deep" / "engines.json"
    failed = {"case": "unet-int8", "sm": "8.6", "status": "failed", "reason": "SM 8.6: no"}
    sizes = {"weight_bytes": 10**9, "peak_memory_bytes": 4 * 10**9, "estimated_memory_bytes": 5 * 10**9}
    layers = {"expected": {"conv int8": 9}, "found": {"conv int8": 8}}
    done = {
        "case": "unet-int8",
        "sm": "8.9",
        "status": "done",
        "seconds": 12.34,
        "plan_bytes": 10**8,
        **sizes,
        **layers,
    }
    for start in ("a", "b"):
        run: dict[str, Any] = {"start": start, "rows": []}
        engines.add(run, out, failed)
        engines.add(run, out, done)
    held = json.loads(out.read_text())
    assert [r["start"] for r in held] == ["a", "b"] and all(r["rows"] == [failed, done] for r in held)
    shown = capsys.readouterr().out
    assert "8.6 failed: SM 8.6: no" in shown and "12.3 s" in shown and "conv int8 8/9" in shown


@pytest.mark.slow
def test_the_engines_program_exports_once_and_builds(tmp_path: Path) -> None:
    from optimize.engines.libraries import found_version

    if found_version("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed")
    options = ["--case", "tiny-sd-int8", "--scratch", str(tmp_path / "s"), "--out", str(tmp_path / "o.json")]
    for _ in range(2):
        done = run("engines.py", *options)
    first, second = json.loads((tmp_path / "o.json").read_text())
    assert first["rows"][0]["status"] == second["rows"][0]["status"] == "done", done.stdout + done.stderr
    assert first["rows"][0]["found"]["conv int8"] == first["rows"][0]["expected"]["conv int8"] > 5
    assert first["exports"] == second["exports"]  # found again
