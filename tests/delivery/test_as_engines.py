"""`optimize export`: engines ahead of time, kits for the rest, refusals by name; the artifact stays whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.command import optimize
from support.engines import installed

from optimize.architectures.artifact import save_model
from optimize.delivery.as_engines import Request, exit_code, export, parse_settings
from optimize.diffusion.context import Context
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Sampler
from optimize.engines.libraries import gpu_sm
from optimize.engines.place import classes
from optimize.engines.settings import EngineSettings
from optimize.errors import UserError
from optimize.exporters.onnx import Onnx
from optimize.hardware.devices import here
from optimize.passes.quantize import Quantize
from optimize.report.terminal.engines import cells, print_engines
from optimize.sources.diffusers import DiffusersSource
from optimize.storage.cache import Store
from optimize.storage.commit import commit
from optimize.storage.trust import verify
from optimize.storage.weights import read_json


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    plain = DiffusersSource(tiny_folder, null_class=10).load(Sampler(steps=2))
    return Quantize(samples=8, batch=8).apply(plain, Context())[0]


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with its ONNX file."""
    folder = tmp_path_factory.mktemp("artifacts") / "final"

    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        return {"id": "x", "exports": {"onnx": Onnx().export(model, temporary, Context())}, "parity": {}}

    commit(folder, write)
    return folder


@pytest.fixture
def artifact(written: Path, tmp_path: Path) -> Path:
    import shutil

    shutil.copytree(written, tmp_path / "final")
    return tmp_path / "final"


def ask(artifact: Path, *targets: str, **more: Any) -> Request:
    settings = EngineSettings(batch=(1, 2))
    return Request(artifact=artifact, targets=targets, **{"settings": settings, **more})


@installed
def test_engines_and_a_kit_stand_beside_the_onnx_file_and_the_artifact_stays_whole(artifact: Path) -> None:
    if gpu_sm() is not None:
        pytest.skip("a GPU is here")
    before = verify(artifact)
    store = Store(artifact.parent / "store")
    rows = export(ask(artifact, "a100", "rtx3090", "v100", kits=artifact.parent / "kits"), store)
    assert exit_code(rows) == 0
    made = {(r["target"], r["what"], r["module"]): r for r in rows}
    for name in ("a100", "rtx3090"):
        row = made[name, "engine", "tensorrt_rtx"]
        assert row["status"] == "done" and row["found"]["conv int8"] == row["expected"]["conv int8"] > 10
        assert Path(row["path"]).is_file() and made[name, "kit", "tensorrt"]["status"] == "done"
    refused = made["v100", "engine", "tensorrt_rtx"]
    assert refused["status"] == "refused" and "SM 7.0: TensorRT-RTX cannot target it" in refused["reason"]
    assert (artifact.parent / "kits" / "final-v100" / "build.py").is_file()
    after = verify(artifact)
    assert {k: v for k, v in after["files"].items() if k in before["files"]} == before["files"]
    assert set(after["exports"]) == {"onnx", "tensorrt_rtx"} and after["id"] == before["id"]
    assert len(after["exports"]["tensorrt_rtx"]["engines"]) == 2
    assert not list(artifact.parent.glob(".tmp*"))

    again = export(ask(artifact, "rtx3090", formats=("tensorrt_rtx",)), Store(artifact.parent / "store"))
    assert again[0]["key"] == made["rtx3090", "engine", "tensorrt_rtx"]["key"]
    assert again[0]["seconds"] == made["rtx3090", "engine", "tensorrt_rtx"]["seconds"]  # found by its content
    assert len(verify(artifact)["exports"]["tensorrt_rtx"]["engines"]) == 2


@installed
def test_an_artifact_for_which_nothing_is_made_is_not_written_again(artifact: Path) -> None:
    before = (artifact.stat().st_ino, (artifact / "manifest.json").read_bytes())
    rows = export(ask(artifact, "v100", kits=artifact.parent / "kits"), Store(artifact.parent / "store"))
    assert [(r["what"], r["status"]) for r in rows] == [("engine", "refused"), ("engine", "refused"), ("kit", "done")]
    assert (artifact.stat().st_ino, (artifact / "manifest.json").read_bytes()) == before


@installed
def test_an_engine_that_cannot_be_made_again_leaves_the_earlier_one(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from optimize.errors import EnvironmentLacks

    def fails(order: Any, folder: Path) -> dict[str, Any]:
        raise EnvironmentLacks("too little memory")

    asked = ask(artifact, "rtx3090", formats=("tensorrt_rtx",))
    (row,) = export(asked, Store(artifact.parent / "store"))
    if gpu_sm() is None:
        assert row["status"] == "done"
    before = verify(artifact)
    monkeypatch.setattr("optimize.engines.place.make", fails)
    (again,) = export(asked, Store(artifact.parent / "another store"))
    (new,) = export(ask(artifact, "a100", formats=("tensorrt_rtx",)), Store(artifact.parent / "another store"))
    assert (again["status"], again["reason"]) == ("refused", "too little memory") and new["status"] == "refused"
    after = verify(artifact)
    assert after["files"] == before["files"] and after["exports"] == before["exports"]
    assert len(list((artifact / "tensorrt").iterdir())) == 1


def test_an_artifact_without_onnx_gets_it_first(model: Model, tmp_path: Path) -> None:
    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        return {"id": "x"}

    commit(tmp_path / "a", write)
    rows = export(ask(tmp_path / "a", "here", formats=("onnx",)), Store(tmp_path / "store"))
    assert [r["what"] for r in rows] == ["onnx"] and (tmp_path / "a" / "onnx" / "model.onnx").is_file()
    assert verify(tmp_path / "a")["exports"]["onnx"]["int8_layers"] > 10


def test_an_artifact_with_its_weights_in_a_file_beside_the_graph_is_exported_further(
    model: Model, tmp_path: Path
) -> None:
    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        return {"id": "x", "exports": {"onnx": Onnx(embedded_bytes=0).export(model, temporary, Context())}}

    before = commit(tmp_path / "a", write)
    rows = export(ask(tmp_path / "a", "v100", formats=("tensorrt",), kits=tmp_path / "kits"), Store(tmp_path / "store"))
    assert rows[-1]["what"] == "kit" and rows[-1]["status"] == "done", rows
    assert (Path(rows[-1]["path"]) / "model.onnx.data").stat().st_size > 0
    assert verify(tmp_path / "a")["files"] == before["files"] and "onnx/model.onnx.data" in before["files"]


def test_a_target_with_neither_engine_nor_kit_is_the_exit_code(artifact: Path) -> None:
    rows = export(ask(artifact, "cpu"), Store(artifact.parent / "store"))
    assert exit_code(rows) == 2 and all("engines are for NVIDIA GPUs" in r["reason"] for r in rows)


def test_a_changed_artifact_is_not_exported(artifact: Path) -> None:
    (artifact / "onnx" / "model.onnx").write_bytes(b"else")
    with pytest.raises(UserError, match=r"onnx/model\.onnx is changed"):
        export(ask(artifact, "a100"), Store(artifact.parent / "store"))


def test_a_kit_holds_the_torch_networks_outputs(artifact: Path, model: Model) -> None:
    import numpy as np
    import torch

    asked = ask(artifact, "v100", formats=("tensorrt",), kits=artifact.parent / "kits")
    rows = export(asked, Store(artifact.parent / "store"))
    folder = Path(rows[-1]["path"])
    about = read_json(folder / "kit.json")
    assert about["limit"] == 5e-2 and about["expected"] == rows[-1]["expected"]
    assert [c["case"].partition(",")[0] for c in about["parity"]] == ["batch 1"] * 3 + ["batch 2"] * 3
    for case in about["parity"]:
        feed = {n: torch.from_numpy(np.load(folder / p)) for n, p in case["inputs"].items()}
        with torch.inference_mode():
            want = model.denoiser.network(**feed)
        assert np.allclose(np.load(folder / case["output"]), want.numpy(), atol=1e-5)


def test_a_gpu_of_no_listed_class_is_named_by_its_compute_capability() -> None:
    found = classes(("sm120", "a100", "sm_8.6", "sm12.0", "sm70", "sm61"))
    assert [(t.name, t.sm, t.tensorrt, t.tensorrt_rtx) for t in found] == [
        ("sm120", (12, 0), "current", True),
        ("a100", (8, 0), "current", True),
        ("sm86", (8, 6), "current", True),
        ("sm70", (7, 0), "10.4", False),
        ("sm61", (6, 1), None, False),
    ]
    assert [t.name for t in classes(("here", "a100", "here"))] == list(dict.fromkeys([here()[0].name, "a100"]))
    with pytest.raises(UserError, match='"smx" is not known'):
        classes(("smx", "sm120"))
    with pytest.raises(UserError, match="target: none given"):
        classes(())


@installed
def test_an_engine_for_sm_12_0_is_built_by_that_name(artifact: Path) -> None:
    (row,) = export(ask(artifact, "sm120", formats=("tensorrt_rtx",)), Store(artifact.parent / "store"))
    assert row["status"] == "done" and row["sm"] == "12.0" and "tensorrt/12.0-tensorrt_rtx-" in row["path"]
    verify(artifact)


@pytest.mark.parametrize(
    ("target", "wanted"), [("v100", "pip install 'tensorrt==10.4.*'"), ("a100", "pip install tensorrt,")]
)
def test_what_to_install_is_what_still_runs_on_the_card(
    target: str, wanted: str, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimize.engines.libraries.found_version", lambda module: None)
    (row,) = export(ask(artifact, target, formats=("tensorrt",)), Store(artifact.parent / "store"))
    assert row["status"] == "refused" and wanted in row["reason"] and "or make a build kit" in row["reason"]


def test_options_of_the_command_line_become_settings() -> None:
    settings = parse_settings("1,8", ["H=64,96", "W=64"], flags=["stream_weights"], level=2)
    assert settings.batch == (1, 8) and settings.sizes == {"H": (64, 96), "W": (64,)} and settings.level == 2
    for text, said in ((["H64"], 'given "H64"'), (["H=x"], '--size: "x" is no whole number')):
        with pytest.raises(UserError, match=said):
            parse_settings("1", text)
    with pytest.raises(UserError, match=r"flags.0.*faster"):
        parse_settings("1", [], flags=["faster"])


def test_the_command_says_what_is_wrong_in_one_message(artifact: Path) -> None:
    for arguments, said in (
        (("--target", "a1000"), 'Did you mean "a100"'),
        (("--format", "tensort"), 'Did you mean "tensorrt"'),
        (("--batch", "0"), "--batch"),
        (("--target", "a100", "--size", "K=1", "--no-kit"), "K is no symbolic dimension"),
    ):
        done = optimize("export", str(artifact), *arguments, cwd=artifact.parent)
        assert done.returncode in (2, 3) and "Traceback" not in done.stderr + done.stdout
        assert said in (done.stderr + done.stdout).replace("\n", " "), done.stderr + done.stdout


def test_the_table_shows_found_beside_expected(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    row = {"target": "a100", "sm": "8.0", "what": "engine", "module": "tensorrt_rtx", "version": "1.7.1"}
    done = row | {"status": "done", "seconds": 12.3, "peak_memory_bytes": 2 * 10**9, "plan_bytes": 10**6, "path": "p"}
    done |= {"expected": {"int8": 3, "fp32": 1}, "found": {"int8": 2, "fp32": 2}, "problems": ["2 of 3"]}
    lost = row | {"status": "refused", "reason": "because"}
    kit = row | {"what": "kit", "status": "done", "path": "k", "expected": {"int8": 3}}
    file = {"target": "", "what": "onnx", "status": "done", "path": "f"}
    print_engines([done, lost, kit, file], Console(width=80))
    shown = capsys.readouterr().out
    assert "a100 TensorRT-RTX 1.7.1: p (layers found/expected: int8 2/3, fp32 2/1)" in shown
    assert "a100 build kit: k (layers: int8 3)" in shown and "onnx: f\n" in shown
    for text in cells(done).values():  # nothing is cut off in 80 columns
        assert text in shown
    assert "TensorRT-RTX 1.7.1" in shown and "refused: a100 TensorRT-RTX 1.7.1: because" in shown and "! a100" in shown


def test_rows_are_json(artifact: Path) -> None:
    done = optimize("export", str(artifact), "--target", "v100", "--json", "--no-kit", cwd=artifact.parent)
    rows = json.loads(done.stdout)
    assert done.returncode in (2, 3) and {r["status"] for r in rows} == {"refused"}
