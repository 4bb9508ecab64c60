"""benchmarks/on_gpu.py: without a GPU everything is refused by name; on the CPU its bench is rehearsed; what breaks is said."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from optimize.engines.libraries import gpu_sm
from optimize.errors import EnvironmentLacks, OptimizeError
from optimize.hardware.targets import targets

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("on_gpu")


def record(out: Path) -> dict[str, Any]:
    """The record in a folder, the only one."""
    (path,) = out.glob("on_gpu-*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_without_a_gpu_every_row_is_refused_and_says_why(program: Any, tmp_path: Path) -> None:
    if gpu_sm() is not None:
        pytest.skip("a GPU is here")
    assert program.main(["--out", str(tmp_path), "--kit", str(tmp_path / "tiny-h200")]) == 3
    found = record(tmp_path)
    assert found["environment"]["python"] and found["date"] and found["command"] and found["schema"] == 1
    rows = found["rows"]
    assert {r["status"] for r in rows} == {"refused"}
    assert all(r["reason"].startswith("no NVIDIA GPU is visible here") for r in rows)
    by = {part: [r for r in rows if r["part"] == part] for part in program.PARTS}
    assert len(by["tests"]) == 1 and [r["name"] for r in by["kits"]] == [f"tiny-h200 {p}" for p in program.PROBES]
    assert len(by["bench"]) == 2 * 3 * len(program.WAYS)
    ways = {r["way"].removesuffix(" graphs") for r in by["bench"]}
    wanted = {"torch fp16", "torch bf16", "torch_compile fp16", "torch_compile fp16 autotune", "onnxruntime fp16",
              "onnxruntime int8", "onnxruntime fp8", "tensorrt_rtx int8", "tensorrt fp8"}  # fmt: skip
    assert wanted <= ways
    assert not (tmp_path / "scratch").exists()


def test_every_way_is_one_that_its_runner_takes(program: Any) -> None:
    from optimize.registry import RUNNERS

    for way in program.WAYS:
        fields = RUNNERS.get(way.runner).model_fields
        made = RUNNERS.get(way.runner)(**way.options, io="device", cuda_graphs=way.graphs)
        assert {*way.options, "io", "cuda_graphs"} <= set(fields) and made.device == "cuda"
    tiers = [ways[0].tier for _, _, ways in program.planned_bench(asked(program))]
    assert tiers == sorted(tiers) and len({w.name for w in program.WAYS}) == len(program.WAYS)


def asked(program: Any, **more: Any) -> SimpleNamespace:
    about = {"device": "cuda", "ways": None, "networks": ["sd15"], "batches": (1,), "minutes": 9.0, "kit": []}
    return SimpleNamespace(**{**about, **more})


def test_a_part_that_breaks_is_a_row_and_the_next_part_goes_on(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(run: Any) -> Any:
        yield {"name": "first", "status": "done", "reason": "", "said": "fine"}
        raise ValueError("no such thing")

    def lacks(run: Any) -> Any:
        raise EnvironmentLacks("pytest is not installed")

    monkeypatch.setattr(program, "PARTS", {"tests": lacks, "kits": breaks, "bench": program.bench_all})
    monkeypatch.setattr(program, "missing", lambda device: "")
    assert (
        program.main(["--out", str(tmp_path), "--minutes", "0", "--parts", "tests,kits,bench", "--networks", "sd"]) == 1
    )
    rows = record(tmp_path)["rows"]
    assert rows[0] == {"part": "tests", "name": "tests", "status": "refused", "reason": "pytest is not installed"}
    assert rows[1]["status"] == "done" and rows[2]["reason"] == "ValueError: no such thing"
    assert all(r["reason"].startswith("no time: 0 s of 0 minutes were left") for r in rows[3:]) and len(rows) > 30


XML = """<testsuites><testsuite><testcase classname="tests.test_a" name="one"/>
<testcase classname="tests.test_a" name="two"><skipped message="no tensorrt"/></testcase>{more}</testsuite></testsuites>"""
WRONG = """<testcase classname="tests.test_b" name="three"><failure message="assert 1 == 2">text</failure></testcase>"""


@pytest.mark.parametrize(("more", "status"), [("", "done"), (WRONG, "failed")])
def test_outcomes_of_the_marked_tests_are_counted(
    program: Any, monkeypatch: pytest.MonkeyPatch, more: str, status: str
) -> None:
    def ran(command: list[str], **options: Any) -> SimpleNamespace:
        report = next(part.partition("=")[2] for part in command if part.startswith("--junitxml="))
        Path(report).write_text(XML.format(more=more))
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(program.subprocess, "run", ran)
    (row,) = program.tests(SimpleNamespace(args=asked(program), left=100.0))
    assert row["status"] == status and row["passed"] == 1 and row["skipped"] == ["tests.test_a::two: no tensorrt"]
    assert row["failure"] == (["tests.test_b::three: assert 1 == 2"] if more else [])


def test_a_file_that_cannot_be_imported_does_not_keep_the_other_tests_from_running(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("import surely_not_there")
    (tmp_path / "tests" / "test_b.py").write_text(
        "import pytest\n\n\n@pytest.mark.gpu\ndef test_it():\n    pass\n\n\ndef test_other():\n    assert False\n"
    )
    monkeypatch.setattr(program, "ROOT", tmp_path)
    (row,) = program.tests(SimpleNamespace(args=asked(program), left=100.0))
    assert row["status"] == "failed" and row["said"] == "1 passed, 1 failed, 0 skipped" and len(row["error"]) == 1


def test_tests_that_take_too_long_say_how_far_they_came(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = b"a PASSED [1%]\nb PASSED [2%]\nc FAILED [3%]"

    def slow(command: list[str], **options: Any) -> None:
        assert options["timeout"] == pytest.approx(60 * 9 * 0.4)
        raise subprocess.TimeoutExpired(command, options["timeout"], output=said)

    monkeypatch.setattr(program.subprocess, "run", slow)
    with pytest.raises(OptimizeError, match=r"not done after 216 s; so far 2 passed, 1 failed, 0 skipped"):
        list(program.tests(SimpleNamespace(args=asked(program), left=500.0)))


@pytest.mark.slow
def test_the_bench_is_rehearsed_on_the_cpu(program: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    about = ["--device", "cpu", "--parts", "bench", "--networks", "sd", "--batches", "2", "--minutes", "4"]
    assert program.main(["--out", str(out), *about]) == 0
    rows = {r["way"]: r for r in record(out)["rows"]}
    assert set(rows) == {"torch fp32", "onnxruntime fp32"}
    for row in rows.values():
        assert row["status"] == "done" and row["call_s"]["n"] >= 5 and row["call_s"]["p50"] > 0, row
        assert row["roofline"] == {"reason": "the peaks of CPU are not listed"}
    (raw,) = out.glob("*.measurements.jsonl")
    assert len(raw.read_text().splitlines()) == 2


def test_the_share_of_the_roofline_is_that_of_the_listed_peaks(program: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One 1x1 convolution's time at the peak is known: the network's cannot be less than its MACs at the peak."""
    from networks import TINY

    from optimize.architectures.components import skeleton
    from optimize.diffusion.network import example_inputs
    from optimize.roofline.layers import layers, macs

    h200 = targets()["h200"]
    monkeypatch.setattr(program, "here", lambda: (h200, {"name": "NVIDIA H200", "memory_bytes": 141 * 2**30}))
    found = program._roofline("sd", 4, "fp16", 1.0)
    module, inputs = skeleton(TINY["sd"])
    least = 2 * macs(layers(module, feed=example_inputs(inputs, 4))) / (1e12 * h200.peak_tflops["fp16"])
    assert found["seconds"] >= least > 0 and found["share"] == found["seconds"] and found["target"] == "h200"


def test_a_kits_result_becomes_a_row(program: Any, tmp_path: Path) -> None:
    """Kits whose script only says what it was asked: how an answer, a lack and a failure arrive."""
    result = {"holds": True, "problems": [], "not_checked": [], "parity": [{"relative_l2": 0.01}]}
    script = """import json, pathlib, sys
here = pathlib.Path(__file__).parent
if "8.9" in sys.argv: print("error: tensorrt_rtx does not load the engine: wrong device", file=sys.stderr); sys.exit(2)
if "untold" in sys.argv: print("error: not installed", file=sys.stderr); sys.exit(3)
result = json.loads((here / "answer.json").read_text())
result["not_checked"] = ["parity: the GPU here is SM 9.0"] if "--any-gpu" not in sys.argv else []
(here / "result.json").write_text(json.dumps(result))
"""
    kit = tmp_path / "kit"
    kit.mkdir()
    (kit / "build.py").write_text(script)
    (kit / "answer.json").write_text(json.dumps(result))
    rows = {r["name"].split()[1]: r for r in program.kits(SimpleNamespace(args=asked(program, kit=[kit]), left=60.0))}
    assert rows["own"]["status"] == "refused" and "SM 9.0" in rows["own"]["reason"]
    assert rows["8.0"]["status"] == "done" and rows["8.0"]["result"]["parity"][0]["relative_l2"] == 0.01
    assert rows["8.9"]["status"] == "failed" and "does not load the engine: wrong device" in rows["8.9"]["reason"]
    assert rows["untold"]["status"] == "refused" and "not installed" in rows["untold"]["reason"]
    assert sorted(p.name for p in kit.iterdir()) == ["answer.json", "build.py"]  # a kit is tried in a copy


def test_what_cannot_be_made_is_said_and_what_is_late_as_well(program: Any, tmp_path: Path) -> None:
    prepare = importlib.import_module("gpu_networks")
    with prepare.Preparer([("nothing", "fp16"), ("sd", "weights")], tmp_path, tmp_path, (1,), 1) as made:
        with pytest.raises(OptimizeError, match=r"sd as weights was not ready after 0 s more"):
            made.folder("sd", "weights", 0)
        with pytest.raises(OptimizeError, match=r"nothing as fp16 could not be made \(code 2\): .*invalid choice"):
            made.folder("nothing", "fp16", 100)
    assert not list(tmp_path.glob("sd-weights")) or (tmp_path / "sd-weights" / "manifest.json").is_file()
