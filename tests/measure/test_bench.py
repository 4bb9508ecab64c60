"""`optimize bench`: what is refused before anything runs, policies as rows, and a results file that never holds a part."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from optimize.architectures.artifact import save_model
from optimize.cli.app import app
from optimize.diffusion.model import Model
from optimize.errors import ArtifactError, UserError
from optimize.measure import bench
from optimize.measure.record import Measurement, Variant
from optimize.report.terminal.bench import cells, print_bench
from optimize.storage.commit import commit


@pytest.fixture
def artifact(tiny_model: Model, tmp_path: Path) -> Path:
    def write(folder: Path) -> dict[str, str]:
        save_model(folder, tiny_model)
        return {"id": "tiny-id"}

    commit(tmp_path / "artifact", write)
    return tmp_path / "artifact"


def measured(key: str, seconds: float = 1.0, batch: int = 1, **more: Any) -> Measurement:
    rounds = [[seconds, seconds * 1.01], [seconds * 0.99, seconds]] * 4
    variant = Variant(key=key, folder="x", runner="torch", batch=batch)
    return Measurement(variant, bench="b", call_s=rounds, image_s=rounds, nfe=2, **more)


def test_every_artifact_runner_batch_and_policy_is_a_row(artifact: Path):
    rows = bench.variants(
        [artifact], ["torch:bf16@cuda", "torch"], [1, 16], io=("host", "device"), cuda_graphs=(False, True), threads=2
    )
    keys = [v.key for v in rows]
    assert len(rows) == len(set(keys)) == 16
    assert {"artifact/torch/1", "artifact/torch:bf16@cuda/16+device+graphs"} <= set(keys)
    row = rows[keys.index("artifact/torch:bf16@cuda/16+device")]
    assert (row.runner, row.options) == ("torch", {"precision": "bf16", "device": "cuda"})
    assert (row.io, row.cuda_graphs, row.batch, row.threads, row.sampler) == ("device", False, 16, 2, None)


def test_a_changed_artifact_is_refused_before_anything_runs(artifact: Path):
    (artifact / "sampler.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"sampler.json is changed: expected sha256"):
        bench.variants([artifact], ["torch"])


def test_sampler_and_steps_replace_those_of_the_artifact(artifact: Path):
    (row,) = bench.variants([artifact], ["torch"], solver="heun", steps=7)
    assert row.sampler is not None and (row.sampler.solver, row.sampler.steps) == ("heun", 7)
    assert row.sampler.guidance.cfg == 0.5  # its own


def test_artifacts_of_one_name_are_told_apart_by_their_paths(artifact: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    other = Path(shutil.copytree(artifact, tmp_path / "other" / "artifact"))
    keys = [v.key for v in bench.variants([other, tmp_path / "artifact", other], ["torch"])]
    assert keys == [f"{other}/torch/1", f"{tmp_path / 'artifact'}/torch/1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/nowhere"], "nowhere is no folder"),
        (["{tmp}"], "is no artifact: it has no manifest.json"),
        (["{a}", "--runner", "openvin"], 'Did you mean "openvino"?'),
        (["{a}", "--runner", "torch:fp8"], "Input should be 'fp32', 'tf32', 'fp16' or 'bf16'"),
        (["{a}", "--runner", "openvino@cuda"], "device: Extra inputs are not permitted"),
        (["{a}", "--batch", "1,x"], '--batch: "x" is no whole number above zero. Give e.g. --batch 1,16.'),
        (["{a}", "--batch", "0"], '--batch: "0" is no whole number'),
        (["{a}", "--io", "devic"], 'Did you mean "device"?'),
        (["{a}", "--cuda-graphs", "maybe"], '--cuda-graphs: "maybe" is not known. Allowed: both, off, on.'),
        (["{a}", "--sampler", "huen"], 'Did you mean "heun"?'),
        (["{a}", "--out", "{tmp}"], "is a folder. Give a file"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_measured(
    artifact: Path, tmp_path: Path, arguments: list[str], said: str
):
    filled = [x.replace("{a}", str(artifact)).replace("{tmp}", str(tmp_path)) for x in arguments]
    start = time.monotonic()
    result = CliRunner().invoke(app, ["bench", *filled])
    assert isinstance(result.exception, UserError) and result.exception.exit_code == 2
    assert said in str(result.exception)
    assert time.monotonic() - start < 20


def test_results_are_appended_a_line_a_row(tmp_path: Path):
    path = tmp_path / "new" / "results.jsonl"
    bench.append(path, [measured("a"), measured("b")])
    bench.append(path, [measured("a", 2.0)])
    assert [m.key for m in bench.read(path)] == ["a", "b", "a"]
    assert bench.read(path)[2] == measured("a", 2.0)


APPEND = """
import sys
from pathlib import Path
from optimize.measure import bench
from optimize.measure.record import Measurement, Variant
rows = [Measurement(Variant(key=f"{sys.argv[2]}{i}", folder="x", runner="torch"), call_s=[[0.5] * 300], image_s=[[1.0]]) for i in range(5)]
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    bench.append(Path(sys.argv[1]), rows)
"""


def appending(path: Path, name: str, times: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", APPEND, str(path), name, str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_killed_at_any_moment_the_file_holds_whole_benches(tmp_path: Path):
    path, seen = tmp_path / "results.jsonl", 0
    for wait in (0.0, 0.013, 0.031, 0.05):
        process = appending(path, "row", 10**6)
        before, end = path.stat().st_size if path.exists() else 0, time.monotonic() + 60
        while not path.exists() or path.stat().st_size == before:
            assert time.monotonic() < end
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert text.endswith("\n")
        keys = [json.loads(line)["variant"]["key"] for line in text.splitlines()]
        assert keys == [f"row{i}" for i in range(5)] * (len(keys) // 5)
        assert len(keys) > seen
        seen = len(keys)


def test_two_benches_that_append_at_once_lose_nothing(tmp_path: Path):
    path = tmp_path / "results.jsonl"
    processes = [appending(path, name, 4) for name in ("left", "right")]
    assert [p.wait(60) for p in processes] == [0, 0]
    keys = [m.key for m in bench.read(path)]
    assert sorted(keys) == sorted(f"{n}{i}" for n in ("left", "right") for i in range(5) for _ in range(4))


def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path):
    for text, line in (('{"rows": []}\n', 1), ("not json\n", 1)):
        path = tmp_path / "other.jsonl"
        path.write_text(text)
        with pytest.raises(ArtifactError, match=f"line {line} is no whole measurement"):
            bench.check_out(path)
        assert path.read_text() == text
    whole = json.dumps(measured("a").to_json())
    path.write_text(f"{whole}\n{whole[:100]}")
    with pytest.raises(ArtifactError, match="line 2 is no whole measurement"):
        bench.read(path)
    with pytest.raises(ArtifactError, match="line 2 is no whole measurement"):
        bench.append(path, [measured("b")])


def printed(rows: list[Measurement], width: int = 220) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_bench(rows, console)
    return console.export_text()


def test_the_table_has_intervals_marks_and_reasons():
    fast = measured("fast", 0.5, memory={"peak_bytes": 3_000_000, "device_process_peak_bytes": 5_000_000})
    fast = replace(
        fast, conditions=[{"throttled": ["processor hot"]}], energy={"joules": 30.0, "images": 10, "by": "x"}
    )
    noisy = measured("noisy", 0.5)
    noisy = replace(noisy, image_s=[[0.4, 0.6, 0.9]] * 8, energy={"reason": "energy: no RAPL counter"})
    lost = replace(measured("lost"), status="refused", reason="runner x: this machine has no y")
    text = printed([measured("first"), fast, lost, noisy])
    assert "2.00×  [1.98, 2.02]" in text and "1.00×  [1.00, 1.00]" in text
    assert "fast !" in text and "! throttled" in text and "noisy ~" in text and "~ noisy" in text
    assert "refused: lost: runner x: this machine has no y" in text
    assert "no figure: energy: no RAPL counter" in text
    row = cells(fast, measured("first"))
    assert (row["J/image"], row["device peak"]) == (("3.00",), ("5.00 MB",))
    assert row["images/s, peak"] == ("2.00", "3.00 MB")
    assert row["call ms"] == ("500", "[498, 502]", "505, 505")


def test_a_narrow_terminal_gets_lines_and_empty_columns_are_left_out():
    lines = printed([measured("baseline/openvino:bf16/16"), measured("final/openvino:bf16/16", 0.1)], 80).splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert not any("J/image" in line or "device peak" in line for line in lines)
    assert any("final" in line and "10.0×" in line for line in lines)
    assert any("openvino:bf16 · 16" in line for line in lines)


def test_a_bench_without_a_single_figure_still_says_why():
    text = printed([replace(measured("lost"), status="failed", reason="it fell over")])
    assert text.strip() == "failed: lost: it fell over"


@pytest.mark.parametrize(
    ("statuses", "code"),
    [(("done", "failed"), 0), (("refused", "done"), 0), (("refused", "refused"), 3), (("refused", "failed"), 2)],
)
def test_a_bench_that_measured_nothing_does_not_end_well(statuses: tuple[str, ...], code: int):
    assert bench.exit_code([replace(measured(s), status=s) for s in statuses]) == code


def test_the_command_ends_with_that_code(artifact: Path):
    about = ["--runner", "onnxruntime", "--rounds", "1", "--warm-up", "0.05", "--threads", "1"]
    result = CliRunner().invoke(app, ["bench", str(artifact), *about])  # it has no ONNX file
    assert result.exit_code == 2 and "Export the artifact first" in " ".join(result.output.split())


def test_one_failed_row_does_not_stop_the_others(artifact: Path, tmp_path: Path):
    """The artifact has no ONNX file and this machine no CUDA graphs: only eager torch has figures."""
    out = tmp_path / "out.jsonl"
    options = ["--rounds", "2", "--seconds", "0.01", "--warm-up", "0.05", "--threads", "1", "--steps", "1"]
    options += ["--cuda-graphs", "both", "--out", str(out), "--json"]
    result = CliRunner().invoke(app, ["bench", str(artifact), "--runner", "torch", "--runner", "onnxruntime", *options])
    assert result.exit_code == 0, result.output
    rows = {m.key: m for m in bench.read(out)}
    assert [m["variant"]["key"] for m in json.loads(result.stdout)] == list(rows)
    done = rows["artifact/torch/1"]
    assert done.done and len(done.image_s) == 2 and done.nfe == 2 and done.artifact_id == "tiny-id"
    assert done.memory["file_bytes"] > 100_000 and len(done.conditions) == 2
    assert "clock" in done.runner and (done.energy_j is None) == ("reason" in done.energy)
    refused = rows["artifact/torch/1+graphs"]
    assert refused.status == "refused" and "CUDA graphs: on the CPU only io host" in refused.reason
    failed = rows["artifact/onnxruntime/1"]
    assert failed.status == "failed" and "Export the artifact first" in failed.reason


def test_appending_waits_for_the_lock(tmp_path: Path):
    path, order = tmp_path / "r.jsonl", []
    with bench._locked(tmp_path):
        thread = threading.Thread(target=lambda: (bench.append(path, [measured("a")]), order.append("appended")))
        thread.start()
        time.sleep(0.2)
        order.append("let go")
    thread.join(10)
    assert order == ["let go", "appended"]
