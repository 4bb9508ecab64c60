"""Adopting a build kit's engine: placed as one built here, or refused before anything is written."""

from __future__ import annotations

import inspect
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.command import optimize
from support.engines import fake, half_file, installed, order, run
from support.fake_trt import FakeCuda
from support.kits import artifact_of, built, kit_of

from optimize.cli import hand_over
from optimize.delivery.as_engines import Request, adopt, export
from optimize.diffusion.backend import open_runner
from optimize.engines.graph import GraphFacts, read_graph
from optimize.engines.kits import adopt as adoption
from optimize.engines.kits import compose, read
from optimize.engines.kits.kept import refuse_brought_back, zip_of
from optimize.engines.settings import EngineSettings
from optimize.errors import ArtifactError, OptimizeError, UserError
from optimize.serving._repository import engines, records_of
from optimize.storage.cache import Store
from optimize.storage.commit import commit
from optimize.storage.trust import inspect_trust, require, verify
from optimize.storage.weights import file_sha256, read_json

FAKE_ENGINE = "tensorrt/8.0-tensorrt-11.4.0/model.engine"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GraphFacts]:
    """A folder of an artifact and its finished kit, and what its graph says."""
    place = tmp_path_factory.mktemp("made")
    artifact = artifact_of(place / "final")
    with pytest.MonkeyPatch.context() as patch:
        built(kit_of(artifact, place / "kits" / "final-a100"), patch)
    return place, read_graph(artifact / "onnx" / "model.onnx")


@pytest.fixture
def artifact(made: tuple[Path, GraphFacts], tmp_path: Path) -> Path:
    shutil.copytree(made[0] / "final", tmp_path / "final")
    return tmp_path / "final"


@pytest.fixture
def done(made: tuple[Path, GraphFacts], tmp_path: Path) -> Path:
    """A finished kit of the artifact."""
    shutil.copytree(made[0] / "kits", tmp_path / "kits")
    return tmp_path / "kits" / "final-a100"


@pytest.fixture
def refuses(made: tuple[Path, GraphFacts]) -> Callable[..., None]:
    """What `adopt` asks before it writes, of the graph's facts alone."""

    def ask(path: Path, said: str, kind: type[OptimizeError] = UserError) -> None:
        with pytest.raises(kind, match=said):
            adoption.examine(path, made[0] / "final" / "onnx" / "model.onnx", made[1], 5e-2)

    return ask


def edit(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change a JSON file of a kit; result.json goes on telling the SHA-256 of kit.json."""
    value = read_json(folder / name)
    change(value)
    (folder / name).write_text(json.dumps(value))
    if name == "kit.json":
        edit(folder, "result.json", lambda r: r["kit"].update(sha256=file_sha256(folder / "kit.json")))


def packed(folder: Path, top: str = "kit/") -> Path:
    """A zip of a folder's files."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            made.write(file, top + file.relative_to(folder).as_posix())
    return path


def refused(artifact: Path, path: Path, said: str, kind: type[OptimizeError] = UserError) -> None:
    """Adopting it raises, and the artifact is as it was."""
    before = (artifact / "manifest.json").read_bytes()
    with pytest.raises(kind, match=said):
        adopt(artifact, [path])
    assert (artifact / "manifest.json").read_bytes() == before and not (artifact / "tensorrt").exists()
    verify(artifact)
    assert not list(artifact.parent.glob(".tmp*"))


@pytest.mark.parametrize("form", ["folder", "zip", "flat zip"])
def test_an_adopted_engine_stands_as_one_built_here_and_says_where_it_comes_from(
    artifact: Path, done: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    before = verify(artifact)
    (row,) = adopt(artifact, [done if form == "folder" else packed(done, "" if "flat" in form else "kit/")])
    after = verify(artifact)
    assert {k: v for k, v in after["files"].items() if k in before["files"]} == before["files"]
    record = read_json((artifact / FAKE_ENGINE).with_name("engine.json"))
    assert after["exports"] == before["exports"] | {"tensorrt": {"engines": {"8.0-tensorrt-11.4.0": record}}}
    assert (artifact / FAKE_ENGINE).read_bytes() == (done / FAKE_ENGINE).read_bytes()
    monkeypatch.setattr("optimize.engines.libraries.gpu_name", lambda: "Some GPU")
    here = replace(order(artifact / "onnx" / "model.onnx", (8, 0)), module="tensorrt", version="11.4.0")
    assert record["key"] == here.key == row["key"] and record["gpu"] == "Some GPU"
    assert record["profiles"] == [{"sample": {"min": [1, 4, 8, 8], "opt": [4, 4, 8, 8], "max": [4, 4, 8, 8]}}]
    assert record["sm"] == "8.0" and record["targets"] == ["8.0"] and record["problems"] == []
    origin = record["origin"]
    assert origin["by"] == "build kit" and origin["kit"] == "final" and origin["gpu"]["cuda"] == "13.0"
    assert origin["parity"][0]["relative_l2"] == 0.0 and len(origin["latency_ms"]) == 2
    assert origin["kit_sha256"] == file_sha256(done / "kit.json") and record["built_on_gpu"] is True
    assert row["status"] == "done" and row["path"] == str(artifact / FAKE_ENGINE)


def test_runner_verify_and_triton_find_an_adopted_engine(
    artifact: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(artifact, [done])
    trt = fake(monkeypatch)
    monkeypatch.undo()
    monkeypatch.setattr("optimize.engines.libraries.found_version", lambda module: "11.4.0")
    monkeypatch.setattr("optimize.engines.libraries.load_module", lambda module: trt)
    monkeypatch.setattr("optimize.engines.cuda.Cuda", lambda: FakeCuda((8, 0)))
    with open_runner(artifact, "tensorrt") as network:
        x = torch.randn(2, 4, 8, 8)
        assert torch.equal(network(sample=x), x + 1)
    report = inspect_trust(artifact)
    require(report)
    assert report["intact"] and engines(artifact) == {"8.0": artifact / FAKE_ENGINE}
    assert records_of(artifact, engines(artifact))["8.0"]["profiles"][0]["sample"]["max"] == [4, 4, 8, 8]


def test_an_engine_takes_the_place_of_an_earlier_one_and_stands_beside_others(
    artifact: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(artifact, [done])
    adopt(artifact, [done])
    assert list(verify(artifact)["exports"]["tensorrt"]["engines"]) == ["8.0-tensorrt-11.4.0"]
    with pytest.raises(UserError, match=r"2 kits hold an engine 8\.0-tensorrt-11\.4\.0"):
        adopt(artifact, [done, done])


@installed
def test_an_engine_of_tensorrt_rtx_that_ran_on_no_card_is_adopted_by_its_text_and_says_so(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kit_of(artifact, tmp_path / "kit", "rtx3090")
    told = run(folder, "--module", "tensorrt_rtx")
    assert told.returncode == 0, told.stderr
    if "parity" in read_json(folder / "result.json"):
        pytest.skip("a GPU is here")
    (row,) = adopt(artifact, [packed(folder)])
    record = read_json(Path(row["path"]).with_name("engine.json"))
    asked = order(artifact / "onnx" / "model.onnx")
    assert record["key"] == asked.key and record["found"] == {"conv fp32": 1, "conv int8": 2}
    assert record["origin"]["parity"].startswith("not run: parity: there is no GPU here")
    assert record["origin"]["gpu"] is None and record["built_on_gpu"] is False

    shutil.rmtree(artifact / "tensorrt")
    artifact = artifact_of(tmp_path / "again" / "final")
    edit(folder, "result.json", lambda r: r["engine"].update(found={"conv int8": 3}))
    refused(artifact, folder, "its text tells .* result.json ", ArtifactError)
    plan = next((folder / "tensorrt").glob("*/model.engine"))
    plan.write_bytes(b"no text at all")
    about = {"sha256": file_sha256(plan), "plan_bytes": plan.stat().st_size, "found": {}, "targets": []}
    edit(folder, "result.json", lambda r: r["engine"].update(about))
    refused(artifact, folder, "neither layers nor SM, and it was never run", ArtifactError)


def test_a_kit_of_another_graph_is_refused(done: Path, tmp_path: Path) -> None:
    other = artifact_of(tmp_path / "other" / "final", half_file)
    refused(other, done, r"made of another ONNX file: model\.onnx differs.*make a kit of this one")


def test_a_kit_that_was_not_built_yet_says_how(artifact: Path, tmp_path: Path) -> None:
    folder = kit_of(artifact, tmp_path / "kit")
    refused(artifact, folder, r"not built yet.*A100.*pip install 'tensorrt>=10\.4' .*python build\.py")


def test_an_engine_whose_parity_failed_is_refused_with_what_was_found(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = built(kit_of(artifact, tmp_path / "kit", off=0.5), monkeypatch, code=1)
    refused(artifact, folder, r"parity: batch 1 differs by .*e-01.*another version of TensorRT")
    edit(folder, "result.json", lambda r: r.update(holds=True, problems=[]) or r["parity"][0].update(holds=True))
    refused(artifact, folder, r"parity: batch 1 differs by .*limit 0\.05")


def test_parity_that_was_not_run_is_refused_for_an_engine_of_tensorrt(artifact: Path, done: Path) -> None:
    edit(done, "result.json", lambda r: r.pop("parity") and r.update(not_checked=["parity: no GPU"]))
    refused(artifact, done, r"parity was not run \(parity: no GPU\)")
    edit(done, "result.json", lambda r: r.update(parity=[], not_checked=[]))
    refused(artifact, done, r"parity was not run \(no reason is told\)")


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("result.json", lambda r: r.update(holds=False), "holds is false"),
        ("result.json", lambda r: r["engine"].update(problems=["lost"]), "not found good .*: lost"),
        ("result.json", lambda r: r["engine"].update(sm="8.6"), "SM: '8.6', and the order is '8.0'"),
        ("result.json", lambda r: r["engine"].update(flags=["refit"]), "flags:"),
        ("result.json", lambda r: r["engine"].update(profiles=[]), "profiles:"),
        ("result.json", lambda r: r["engine"].update(expected={}), "layers expected:"),
        ("result.json", lambda r: r["engine"].update(targets=["9.0"]), "for SM 9.0, and the order is 8.0"),
        ("result.json", lambda r: r["kit"].update(sm=[8, 6]), "SM asked for"),
        ("result.json", lambda r: r["kit"].update(sha256="0" * 64), "SHA-256 of kit.json"),
        ("result.json", lambda r: r["gpu"].update(sm="9.0"), "the engine is for SM 8.0 and was run on SM 9.0"),
        ("result.json", lambda r: r.update(gpu=None), "was run on no GPU"),
        ("result.json", lambda r: r["parity"][0].update(case="another"), "cases of parity"),
        ("result.json", lambda r: r["parity"][0].update(relative_l2=float("nan")), "relative_l2: given nan"),
        ("result.json", lambda r: r["engine"].update(version="11.4/../.."), "engine.version: given"),
        ("result.json", lambda r: r["engine"].update(module="tensorflow"), "engine.module: given 'tensorflow'"),
        ("result.json", lambda r: r["engine"].update(module="tensorrt_rtx"), r"no tensorrt/8\.0-tensorrt_rtx-11"),
        ("result.json", lambda r: r["engine"].update(plan_bytes=2**50), "engine.plan_bytes: given"),
        ("result.json", lambda r: r.update(extra=1), 'extra: unknown key. Allowed: .*engine'),
        ("result.json", lambda r: r["engine"].pop("sha256"), "engine.sha256: missing"),
        ("kit.json", lambda k: k["job"].update(flag=1), 'job.flag: unknown key.*Did you mean "flags"'),
        ("kit.json", lambda k: k.update(expected={"conv fp32": 3}), "layers of the graph:"),
        ("kit.json", lambda k: k.update(modules=["tensorrt_rtx"]), "module: tensorrt, and the order is tensorrt_rtx"),
        ("kit.json", lambda k: k.update(schema=2), "schema: given 2"),
        ("kit.json", lambda k: k.update(onnx="other.onnx"), "other.onnx differs"),
    ],
)  # fmt: skip
def test_a_result_that_does_not_fit_its_kit_is_refused(
    refuses: Callable[..., None], done: Path, name: str, change: Callable[[Any], object], said: str
) -> None:
    edit(done, name, change)
    refuses(done, said)


@pytest.mark.parametrize(
    "profile",
    [
        {"other": [[1, 4, 8, 8]] * 3},
        {"sample": [[1, 4, 8, 8]] * 2},
        {"sample": [[1, 4, 8]] * 3},
        {"sample": [[1, 4, 8, 9]] * 3},
        {"sample": [[2, 4, 8, 8], [1, 4, 8, 8], [4, 4, 8, 8]]},
    ],
)
def test_profiles_that_do_not_fit_the_graph_are_refused(
    refuses: Callable[..., None], done: Path, profile: dict[str, Any]
) -> None:
    edit(done, "kit.json", lambda k: k["job"].update(profiles=[profile]))
    edit(done, "result.json", lambda r: r["engine"].update(profiles=[profile]))
    refuses(done, "profile 0 does not fit the graph's inputs", ArtifactError)


def test_what_no_tensorrt_builds_is_refused_as_export_does(refuses: Callable[..., None], done: Path) -> None:
    edit(done, "kit.json", lambda k: k.update(sm=[7, 0]))
    edit(done, "result.json", lambda r: r["kit"].update(sm=[7, 0]))
    edit(done, "result.json", lambda r: r["engine"].update(sm="7.0", targets=["7.0"]) or r["gpu"].update(sm="7.0"))
    refuses(done, r"TensorRT 11\.4\.0 dropped it", OptimizeError)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_tampered_engine_is_refused(refuses: Callable[..., None], done: Path, zipped: bool) -> None:
    plan = (done / FAKE_ENGINE).read_bytes()
    for other in (plan[:-1] + b"!", plan + b"!", b""):
        (done / FAKE_ENGINE).write_bytes(other)
        refuses(packed(done) if zipped else done, "not the engine that result.json tells of", ArtifactError)
    (done / FAKE_ENGINE).unlink()
    refuses(packed(done) if zipped else done, f"no {FAKE_ENGINE} in it", ArtifactError)


def test_an_engine_that_changes_after_it_was_examined_is_not_placed(
    artifact: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    examine = adoption.examine

    def then_change(*given: Any) -> Any:
        found = examine(*given)
        (done / FAKE_ENGINE).write_bytes(b"another one")
        return found

    monkeypatch.setattr(adoption, "examine", then_change)
    refused(artifact, done, "changed while it was read", ArtifactError)


def test_a_link_in_the_folder_is_not_followed(refuses: Callable[..., None], done: Path, tmp_path: Path) -> None:
    (done / "tensorrt").rename(tmp_path / "elsewhere")
    (done / "tensorrt").symlink_to(tmp_path / "elsewhere")
    refuses(done, "tensorrt: a symbolic link", ArtifactError)


def test_folders_and_files_that_are_no_kit_are_refused(
    refuses: Callable[..., None], done: Path, tmp_path: Path
) -> None:
    refuses(tmp_path / "nothing.zip", "no such folder or zip file")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", r"no kit\.json in it, so it is no build kit", ArtifactError)
    (tmp_path / "text.zip").write_text("no zip")
    refuses(tmp_path / "text.zip", "no whole zip file", ArtifactError)
    for text, said in (("{", "not readable JSON"), ("[" * 100_000, "not readable JSON"), ("[]", "kit.json: ")):
        (tmp_path / "empty" / "kit.json").write_text(text)
        refuses(tmp_path / "empty", said, ArtifactError)


def test_a_json_file_that_is_too_large_is_not_read(
    refuses: Callable[..., None], done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "LARGEST_JSON", 100)
    refuses(packed(done), "kit.json has .* bytes, and 100 at most", ArtifactError)


def test_a_truncated_zip_is_refused(refuses: Callable[..., None], done: Path) -> None:
    path = packed(done)
    whole = path.read_bytes()
    for size in (len(whole) // 2, len(whole) - 30, 0):
        path.write_bytes(whole[:size])
        refuses(path, "no whole zip file", ArtifactError)
    with zipfile.ZipFile(packed(done)) as held:
        start = held.getinfo("kit/kit.json").header_offset
    path.write_bytes(whole[start + 10 :])  # its directory is there, kit.json is not whole
    refuses(path, "(is not readable|no whole zip).*Copy", ArtifactError)


def test_damaged_bytes_in_a_zip_are_refused(refuses: Callable[..., None], done: Path) -> None:
    path = packed(done)
    with zipfile.ZipFile(path) as held:
        start = held.getinfo("kit/kit.json").header_offset + 60
    data = bytearray(path.read_bytes())
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)
    refuses(path, r"kit\.json is not readable .*Copy the kit again", ArtifactError)


@pytest.mark.parametrize(
    "name", ["../evil", "kit/../../evil", "/etc/evil", "kit/a\\..\\evil", "kit//evil", "kit/ev\x07il"]
)
def test_a_path_that_leaves_the_zip_is_refused(refuses: Callable[..., None], done: Path, name: str) -> None:
    path = packed(done)
    with zipfile.ZipFile(path, "a") as made:
        made.writestr(name, "evil")
    refuses(path, "is no plain path inside the zip", ArtifactError)
    assert not list(done.parents[1].rglob("evil"))


def test_links_passwords_copies_and_crowds_in_a_zip_are_refused(
    refuses: Callable[..., None], done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(done)
    link = zipfile.ZipInfo("kit/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as made:
        made.writestr(link, "/etc/passwd")
    refuses(path, "kit/link is a symbolic link", ArtifactError)
    with zipfile.ZipFile(packed(done), "a") as made, pytest.warns(UserWarning, match="Duplicate"):
        made.writestr("kit/kit.json", "{}")
    refuses(path, "some of one name", ArtifactError)
    with zipfile.ZipFile(packed(done), "a") as made:
        made.writestr("other/kit.json", "{}")
    refuses(path, r"2 files kit\.json in it", ArtifactError)
    monkeypatch.setattr(read, "MOST_FILES", 3)
    refuses(packed(done), "more than 3", ArtifactError)
    monkeypatch.undo()
    data = bytearray(packed(done).read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1  # the last file says that it is encrypted
    path.write_bytes(data)
    refuses(path, "is encrypted. Pack the kit without a password", ArtifactError)


def test_one_bad_kit_of_two_leaves_the_artifact_alone(artifact: Path, done: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not built yet"):
        adopt(artifact, [done, kit_of(artifact, tmp_path / "unbuilt", "h200")])
    assert not (artifact / "tensorrt").exists()


def test_the_command_adopts_and_refuses(artifact: Path, done: Path, tmp_path: Path) -> None:
    made = optimize("export", str(artifact), "--adopt", str(done), "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)[0]["origin"]["gpu"]["name"] == "Some GPU"
    shown = optimize("export", str(artifact), "--adopt", str(packed(done)))
    assert shown.returncode == 0 and "TensorRT 11.4.0" in shown.stdout
    again = optimize("export", str(artifact), "--adopt", str(kit_of(artifact, tmp_path / "unbuilt", "h200")))
    assert again.returncode == 2 and "not built yet" in again.stderr and "Traceback" not in again.stderr
    both = optimize("export", str(artifact), "--adopt", str(done), "--target", "a100", "--tf32", "--out", "x")
    assert (
        both.returncode == 2
        and "--target, --tf32, --out: of what is made here, and --adopt makes nothing" in both.stderr
    )


def test_every_option_of_the_command_is_refused_where_it_would_do_nothing() -> None:
    known = {*hand_over.OF_ENGINES, *hand_over.OF_PIPELINES}
    assert set(inspect.signature(hand_over.export).parameters) == known | {
        "context",
        "artifact",
        "adopt",
        "as_json",
        "quiet",
    }


def test_a_kit_that_was_brought_back_is_not_written_over(done: Path) -> None:
    with pytest.raises(ArtifactError, match=r"result\.json.*added since.*left alone.*--adopt"):
        refuse_brought_back(done, zipped=False)
    with pytest.raises(ArtifactError, match=r"result\.json"):
        commit(done, lambda folder: pytest.fail("begun"))
    assert (done / "result.json").is_file()
    commit(done.with_name("other"), lambda folder: {"id": "x"})
    with pytest.raises(ArtifactError, match="an artifact, not a build kit"):
        refuse_brought_back(done.with_name("other"), zipped=False)


def test_a_zip_that_was_brought_back_is_not_written_over(artifact: Path, done: Path, tmp_path: Path) -> None:
    folder = tmp_path / "zips" / "final-a100"
    compose.zip_folder(kit_of(artifact, folder))
    refuse_brought_back(folder, zipped=True)  # as it was made
    compose.zip_folder(kit_of(artifact, folder))
    with zipfile.ZipFile(zip_of(folder), "w") as held:
        for file in sorted(p for p in done.rglob("*") if p.is_file()):
            held.write(file, f"final-a100/{file.relative_to(done).as_posix()}")
    before = zip_of(folder).read_bytes()
    with pytest.raises(ArtifactError, match=r"result\.json.* was added or changed since it was made; it is left alone"):
        refuse_brought_back(folder, zipped=True)
    with pytest.raises(ArtifactError, match="left alone"):
        compose.zip_folder(kit_of(artifact, folder))
    assert zip_of(folder).read_bytes() == before


@pytest.mark.parametrize("data", [b"", b"PK", b"thesis" * 100])
def test_what_is_no_kits_zip_is_left_alone(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "kit.zip").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"kit\.zip: it is no kit that optimize wrote"):
        refuse_brought_back(tmp_path / "kit", zipped=True)
    refuse_brought_back(tmp_path / "kit", zipped=False)


def test_an_export_names_a_kit_in_its_way_before_it_begins(artifact: Path, done: Path, tmp_path: Path) -> None:
    asked = Request(artifact=artifact, targets=("a100",), settings=EngineSettings(), kits=done.parent)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ArtifactError, match=r"final-a100: .*result\.json.*added since"):
        export(asked, Store(tmp_path / "store"))
    with pytest.raises(UserError, match=r"--kits: .* is in the artifact"):
        export(replace(asked, kits=artifact / "kits"), Store(tmp_path / "store"))
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
