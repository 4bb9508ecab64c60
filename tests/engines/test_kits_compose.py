"""The build kit: whole, runnable with numpy and TensorRT alone, and honest about what it could not check."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.engines import CONV, fake, half_file, installed, int8_file, order, run
from support.fake_trt import FakeCuda, FakeTrt

from optimize.engines import script
from optimize.engines.builder import EngineError
from optimize.engines.kits import compose
from optimize.hardware.targets import target
from optimize.storage.commit import commit


def write(folder: Path, name: str, onnx: Path) -> Path:
    """A kit of a file for a device class, with one parity case."""
    asked = order(onnx)
    job = {k: v for k, v in asked.job().items() if k not in ("onnx", "sm", "timing_cache")}
    about = compose.about_kit("tiny", target(name), job, asked.facts.expected, 5e-2, "int8")
    x = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, 4, 8, 8)
    case = {"case": "batch 1", "inputs": {"x": x}, "output": x + 1}
    files = list(asked.facts.files)

    def fill(temporary: Path) -> dict[str, Any]:
        compose.write_kit(temporary, onnx, files, about, [case])
        return {}

    commit(folder, fill)
    return folder


def test_the_script_is_one_file_of_distinct_names_that_imports_numpy_and_the_standard_library_alone() -> None:
    text = compose.script()
    tree = ast.parse(text)
    names = [n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    names += [t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)]
    assert len(names) == len(set(names))
    roots = {
        (a.name if isinstance(n, ast.Import) else n.module or "").partition(".")[0]
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
        for a in n.names
    }
    assert roots - set(sys.stdlib_module_names) == {"numpy", "psutil"}  # psutil beyond Linux, and there not needed
    assert text.startswith('"""Build, check and time this kit') and text.count("from __future__") == 1


@installed
def test_the_script_builds_ahead_of_time_and_says_what_it_could_not_check(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "rtx3090", int8_file(tmp_path / "model.onnx"))
    done = run(folder, "--module", "tensorrt_rtx")
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["engine"]["found"] == {"conv int8": 2, "conv fp32": 1} and result["holds"]
    assert len(result["not_checked"]) == 2 and "not checked: parity: there is no GPU here" in done.stdout
    assert (folder / "tensorrt" / f"8.6-tensorrt_rtx-{result['engine']['version']}" / "model.engine").is_file()


@installed
@pytest.mark.slow
def test_the_script_runs_where_only_numpy_and_tensorrt_rtx_are(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "a100", int8_file(tmp_path / "model.onnx"))
    place = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True, timeout=120)
    python = str(place / "bin" / "python")
    from importlib.metadata import version

    wanted = [f"{p}=={version(p)}" for p in ("numpy", "tensorrt-rtx")]
    subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True, timeout=500)
    done = run(folder, python=python)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "result.json").read_text())["engine"]["sm"] == "8.0"


def test_a_kit_for_volta_carries_its_pins_and_their_reasons(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "v100", half_file(tmp_path / "model.onnx"))
    about, text = json.loads((folder / "kit.json").read_text()), (folder / "README.md").read_text()
    assert about["modules"] == ["tensorrt"] and about["sm"] == [7, 0]
    for part in ("tensorrt-cu12==10.4.*", "10.5 dropped it", "CUDA 13"):
        assert part in text
    assert set(about["files"]) == {"README.md", "build.py", "model.onnx", "parity/0.x.npy", "parity/0.output.npy"}


def test_a_kit_for_hopper_is_for_tensorrt_alone_and_probes_plans_of_other_sms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = fake(monkeypatch, (9, 0))
    folder = fake_kit(tmp_path, name="h200")
    about = json.loads((folder / "kit.json").read_text())
    assert about["sm"] == [9, 0] and about["modules"] == ["tensorrt"] and "SM 9.0" in (folder / "README.md").read_text()
    assert script.main(["--kit", str(folder), "--calls", "10"]) == 0  # TensorRT on the card
    assert (folder / "tensorrt" / "9.0-tensorrt-11.4.0" / "model.engine").is_file()
    trt.__name__, trt.targets = "tensorrt_rtx", {"SM80"}
    monkeypatch.setattr(script, "read_plan", lambda plan: ({"conv int8": 2, "conv fp32": 1}, ["8.0"]))
    for asked, folder_name in (("8.0", "8.0-tensorrt_rtx-11.4.0"), ("untold", "untold-tensorrt_rtx-11.4.0")):
        assert script.main(["--kit", str(folder), "--calls", "10", "--sm", asked, "--any-gpu"]) == 0
        result = json.loads((folder / "result.json").read_text())
        assert result["parity"][0]["holds"] and result["not_checked"] == [] and result["gpu"]["sm"] == "9.0"
        assert (folder / "tensorrt" / folder_name / "model.engine").is_file()
        assert trt.config.num_compute_capabilities == (0 if asked == "untold" else 1)
        assert result["engine"]["targets"] == ["8.0"] and result["engine"]["timing_cache"] == "none"
    assert script.main(["--kit", str(folder), "--sm", "8.0"]) == 0
    assert len(json.loads((folder / "result.json").read_text())["not_checked"]) == 2


def test_probes_that_cannot_be_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "kit", "h200", half_file(tmp_path / "model.onnx"))
    assert script.main(["--kit", str(folder), "--sm", "eight"]) == 2
    assert 'given "eight". Write a compute capability such as 8.0, or untold' in capsys.readouterr().err
    assert script.main(["--kit", str(folder), "--sm", "8.0", "--module", "tensorrt"]) == 2
    assert "can be built with tensorrt_rtx only" in capsys.readouterr().err


def test_a_kit_on_a_system_that_does_not_say_what_is_free_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> int:
        raise ImportError("psutil")

    fake(monkeypatch)
    monkeypatch.setattr(script, "available", unknown)
    assert script.check_memory(10**15) is None  # type: ignore[func-returns-value]


def test_a_kit_that_needs_more_memory_than_there_is_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch)
    folder = fake_kit(tmp_path)
    about = json.loads((folder / "kit.json").read_text())
    (folder / "kit.json").write_text(json.dumps(about | {"estimate": 10**15}))
    monkeypatch.setattr(script, "available", lambda: 3 * 10**9)
    assert script.main(["--kit", str(folder)]) == 3
    assert "estimated to take 1000000.0 GB, and 3.0 GB are free" in capsys.readouterr().err
    assert not (folder / "tensorrt").exists() and not (folder / "result.json").exists()


def test_a_changed_file_of_the_kit_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "a100", half_file(tmp_path / "model.onnx"))
    (folder / "model.onnx").write_bytes(b"else")
    done = run(folder)
    assert done.returncode == 2 and "not the file the kit was made with" in done.stderr
    (folder / "kit.json").unlink()
    assert "kit.json: not readable" in run(folder).stderr
    assert not (folder / "result.json").exists()


def test_missing_modules_and_lanes_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "v100", half_file(tmp_path / "model.onnx"))
    done = run(folder, "--module", "tensorrt_rtx")
    assert done.returncode == 2 and "can be built with tensorrt only" in done.stderr
    about = {"sm": [7, 0]}
    for version, device, said in (
        ("11.4.0", FakeCuda((7, 0)), "10.4 is the last"),
        ("10.4.0", FakeCuda((8, 0)), "the GPU here is SM 8.0"),
        ("10.4.0", None, "there is no GPU here"),
    ):
        with pytest.raises(script.Missing, match=said):
            script.check_lane(FakeTrt(version=version), about, device)  # type: ignore[arg-type]
    with pytest.raises(script.Missing, match="not installed: surely_not_there"):
        script.import_module(None, ["surely_not_there"])


def test_a_kits_own_folder_of_engines_is_not_taken_for_tensorrt(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "v100", half_file(tmp_path / "model.onnx"))
    (folder / "surely_no_module").mkdir()
    code = "import sys; sys.path.insert(0, sys.argv[1]); import build; build.import_module(None, ['surely_no_module'])"
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60)
    assert "Missing: not installed: surely_no_module (there is a folder of that name alone)" in done.stderr


def fake_kit(tmp_path: Path, off: float = 0.0, name: str = "a100") -> Path:
    """A kit whose network is the fake engine's: x + 1."""
    onnx = int8_file(tmp_path / "model.onnx")
    folder = write(tmp_path / "kit", name, onnx)
    about = json.loads((folder / "kit.json").read_text())
    (folder / "parity" / "0.x.npy").rename(folder / "parity" / "0.sample.npy")
    x = np.load(folder / "parity" / "0.sample.npy")
    np.save(folder / "parity" / "0.output.npy", x + 1 + off)
    about["parity"][0]["inputs"] = {"sample": "parity/0.sample.npy"}
    about["job"]["profiles"] = [{"sample": [[1, *CONV.shape[:1], 8, 8]] * 3}]
    about["files"] = {}
    (folder / "kit.json").write_text(json.dumps(about))
    return folder


def test_on_the_card_parity_and_percentiles_are_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch)
    folder = fake_kit(tmp_path)
    assert script.main(["--kit", str(folder), "--calls", "20"]) == 0
    result = json.loads((folder / "result.json").read_text())
    assert result["parity"][0]["relative_l2"] == 0.0 and result["not_checked"] == []
    assert [row["policy"] for row in result["latency_ms"]] == ["calls", "cuda graphs"]
    assert all(row["n"] == 20 and row["p50"] <= row["p90"] <= row["p99"] for row in result["latency_ms"])
    assert result["gpu"]["sm"] == "8.0" and result["engine"]["module"] == "tensorrt"


def test_an_engine_without_weights_gets_those_of_the_kits_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = fake(monkeypatch)
    folder = fake_kit(tmp_path)
    about = json.loads((folder / "kit.json").read_text())
    about["job"]["flags"] = ["strip_weights"]
    (folder / "kit.json").write_text(json.dumps(about))
    assert script.main(["--kit", str(folder), "--calls", "10"]) == 0
    assert {engine.weights for engine in trt.engines} == {str(folder / "model.onnx")} and len(trt.engines) == 3


def test_parity_that_does_not_hold_fails_the_kit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch)
    folder = fake_kit(tmp_path, off=0.5)
    assert script.main(["--kit", str(folder), "--calls", "10"]) == 1
    assert "FAILED: parity: batch 1 differs by" in capsys.readouterr().out


def test_a_difference_that_is_not_finite_never_holds() -> None:
    one = np.ones((2, 2))
    for other in (np.full((2, 2), np.nan), np.ones((3, 2)), np.full((2, 2), np.inf)):
        found = script.difference(one, other, 10.0)
        assert not found["holds"] and np.isfinite(found["relative_l2"])
    assert script.difference(one, one * 1.01, 0.02)["holds"]


def test_what_tensorrt_refuses_ends_the_kit_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trt = fake(monkeypatch)
    trt.parser_errors = [SimpleNamespace(node=lambda: 3, node_name=lambda: "conv0", desc=lambda: "no kernel")]
    folder = fake_kit(tmp_path)
    assert script.main(["--kit", str(folder)]) == 2
    assert "node conv0: no kernel" in capsys.readouterr().err
    assert not (folder / "tensorrt").exists() and not (folder / "result.json").exists()
    with pytest.raises(EngineError):
        script.run(folder, None, 10)


def test_a_kit_as_a_zip_holds_one_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "kit", "a100", half_file(tmp_path / "model.onnx"))
    path = compose.zip_folder(folder)
    assert path == tmp_path / "kit.zip" and not folder.exists()
    assert "kit/build.py" in zipfile.ZipFile(path).namelist()
