"""Trust: any changed byte is found, hostile manifests are refused, and what does not match is never read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optimize.architectures.artifact import model_around
from optimize.errors import ArtifactError, UserError
from optimize.storage import trust
from optimize.storage.commit import commit
from optimize.storage.trust import MANIFEST, artifact_digest, checked, inspect_trust, read_manifest, require, verify

CONTENT = {"model.bin": b"weights " * 40, "onnx/model.onnx": b"graph", "structure.json": b"{}", "sampler.json": b"{}"}


def made(folder: Path, content: dict[str, bytes] = CONTENT) -> Path:
    def write(temporary: Path) -> dict[str, Any]:
        for name, value in content.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(value)
        return {"id": folder.name}

    commit(folder, write)
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return made(tmp_path / "run" / "final")


def rewritten(folder: Path, change: Any) -> Path:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", sorted(CONTENT))
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_any_flipped_bit_of_any_file_is_found(whole: Path, name: str, place: float) -> None:
    content = bytearray((whole / name).read_bytes())
    content[round(place * (len(content) - 1))] ^= 1
    (whole / name).write_bytes(content)
    found = inspect_trust(whole)
    assert [(d["file"], d["problem"]) for d in found["artifacts"][0]["differences"]] == [(name, "changed")]
    with pytest.raises(
        ArtifactError, match=f"{name} is changed: expected sha256 [0-9a-f]{{64}}.*found sha256 [0-9a-f]"
    ):
        require(found)
    with pytest.raises(ArtifactError, match="It is not read"):
        checked(whole, name)


def test_missing_added_and_resized_files_are_all_named(whole: Path) -> None:
    (whole / "model.bin").unlink()
    (whole / "onnx" / "more").mkdir()
    (whole / "onnx" / "more" / "x").write_bytes(b"xyz")
    (whole / "sampler.json").write_bytes(b"{} ")
    found = inspect_trust(whole)
    assert not found["intact"]
    assert {d["file"]: (d["problem"], d["found"]) for d in found["artifacts"][0]["differences"]} == {
        "model.bin": ("missing", "nothing"),
        "onnx/more/x": ("added", "a file of 3 bytes"),
        "sampler.json": ("changed", "3 bytes"),
    }
    with pytest.raises(ArtifactError, match=r"model.bin is missing \(and 2 more\)"):
        require(found)


def test_the_digest_is_one_value_for_every_byte_of_an_artifact_and_can_be_pinned(whole: Path) -> None:
    found = inspect_trust(whole)
    assert found["intact"] and found["digest"] == artifact_digest(verify(whole))
    require(found, found["digest"])
    copy = Path(shutil.copytree(whole, whole.parent / "copy"))
    assert inspect_trust(copy)["digest"] == found["digest"]  # where it lies does not matter
    content = {**CONTENT, "model.bin": b"other weights"}
    other = inspect_trust(made(whole.parent / "other" / "final", content))
    with pytest.raises(ArtifactError, match=f"expected digest {found['digest']}, found {other['digest']}"):
        require(other, found["digest"])
    rewritten(whole, lambda m: m.update(id="forged"))
    assert inspect_trust(whole)["intact"] and inspect_trust(whole)["digest"] != found["digest"]


def test_a_digest_that_is_none_is_refused(whole: Path) -> None:
    with pytest.raises(UserError, match=r'--expect: "abc" is no digest. Give the 64'):
        require(inspect_trust(whole), "abc")


def test_all_artifacts_of_a_run_are_looked_at_and_have_one_digest(whole: Path) -> None:
    run = whole.parent
    made(run / "baseline")
    (run / "report.md").write_text("not part of any artifact")
    before = inspect_trust(run)
    assert [a["name"] for a in before["artifacts"]] == ["baseline", "final"] and before["intact"]
    (run / "baseline" / "model.bin").write_bytes(b"x")
    after = inspect_trust(run)
    assert not after["intact"] and [bool(a["differences"]) for a in after["artifacts"]] == [True, False]
    with pytest.raises(ArtifactError, match=r"baseline: model.bin is changed"):
        require(after)


@pytest.mark.parametrize(("folder", "said"), [("nowhere", "it is no folder"), (".", f"there is no {MANIFEST}")])
def test_what_is_no_artifact_is_one_clear_error(tmp_path: Path, folder: str, said: str) -> None:
    with pytest.raises(ArtifactError, match=f"{said}.*Give an artifact such as"):
        inspect_trust(tmp_path / folder)


GOOD = {"sha256": "0" * 64, "bytes": 1}


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "a/../../b", "a//b", "./a", "", ".", "a\\b", "a\nb", "a/", "..", MANIFEST],
)
def test_a_name_that_could_leave_the_folder_or_is_odd_is_refused(whole: Path, name: str) -> None:
    rewritten(whole, lambda m: m["files"].update({name: GOOD}))
    with pytest.raises(ArtifactError, match="is no plain path inside the folder"):
        verify(whole)


@pytest.mark.parametrize(
    "entry",
    [None, [], "x", {}, {"sha256": "0" * 63, "bytes": 1}, {"sha256": "Z" * 64, "bytes": 1}, {"sha256": 1, "bytes": 1},
     {**GOOD, "bytes": -1}, {**GOOD, "bytes": "1"}, {**GOOD, "bytes": True}, {**GOOD, "bytes": 1.0}],
)  # fmt: skip
def test_an_entry_of_wrong_types_is_refused(whole: Path, entry: Any) -> None:
    rewritten(whole, lambda m: m["files"].update({"a": entry}))
    with pytest.raises(ArtifactError, match=r"files: a: expected sha256 \(64 hexadecimal digits\) and bytes"):
        verify(whole)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "an object is expected here, found a list"),
        ("{}", "schema None is not 1"),
        ('{"schema": 2, "files": {}}', "schema 2 is not 1; made by another version"),
        ('{"schema": 1}', "files: expected {path: {sha256, bytes}}, found NoneType"),
        ('{"schema": 1, "files": []}', "found list"),
        ('{"schema": 1, "files": {"a": {}, "a": {}}}', '"a" stands there twice'),
        ('{"schema": 1, "schema": 1, "files": {}}', '"schema" stands there twice'),
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
        ('{"schema": ' + "9" * 5000, "not readable JSON"),
    ],
)
def test_a_malformed_manifest_is_one_clear_error(whole: Path, text: str, said: str) -> None:
    (whole / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError) as error:
        verify(whole)
    assert said in str(error.value)


def test_a_manifest_of_other_bytes_than_text_a_link_or_a_huge_one_is_refused(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = whole / MANIFEST
    text = path.read_bytes()
    path.write_bytes(b"\xff\xfe" + text)
    with pytest.raises(ArtifactError, match="not readable JSON"):
        read_manifest(whole)
    path.write_bytes(text)
    monkeypatch.setattr(trust, "LARGEST_MANIFEST", 10)
    with pytest.raises(ArtifactError, match="a manifest has at most 10"):
        read_manifest(whole)
    path.rename(whole / "elsewhere")
    path.symlink_to(whole / "elsewhere")
    with pytest.raises(ArtifactError, match="not an ordinary file"):
        read_manifest(whole)


def test_a_link_in_the_place_of_a_file_is_found_even_where_its_bytes_agree(whole: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in ("model.bin", "onnx"):
        shutil.move(whole / name, outside / name)
        (whole / name).symlink_to(outside / name)
    found = {d["file"]: (d["problem"], d["found"]) for d in inspect_trust(whole)["artifacts"][0]["differences"]}
    assert found == {
        "model.bin": ("changed", "a symbolic link"),
        "onnx": ("added", "a symbolic link"),
        "onnx/model.onnx": ("changed", "a symbolic link"),
    }


def test_a_pipe_in_the_place_of_a_file_does_not_hang(whole: Path) -> None:
    (whole / "model.bin").unlink()
    os.mkfifo(whole / "model.bin")
    os.mkfifo(whole / "another")
    found = {d["file"]: d["found"] for d in inspect_trust(whole)["artifacts"][0]["differences"]}
    assert found == {"model.bin": "no ordinary file", "another": "no ordinary file"}


def test_a_file_that_no_manifest_names_is_not_read(whole: Path) -> None:
    (whole / "more.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"more.json is not named in manifest.json"):
        checked(whole, "more.json")


def test_a_model_around_a_runner_reads_nothing_that_was_changed(whole: Path) -> None:
    (whole / "structure.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"structure.json is changed"):
        model_around(whole, None)  # type: ignore[arg-type]


def test_a_file_is_hashed_once_a_process_and_again_when_it_changed(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real = trust.file_sha256

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return real(path)

    monkeypatch.setattr(trust, "file_sha256", counted)
    monkeypatch.setattr(trust, "RECENT_S", -1.0)  # as if the files were written long ago
    for _ in range(3):
        checked(whole, "model.bin")
    assert hashed == ["model.bin"]
    content = (whole / "model.bin").read_bytes()
    (whole / "model.bin").write_bytes(content[::-1])
    with pytest.raises(ArtifactError, match=r"model.bin is changed"):
        checked(whole, "model.bin")


def test_a_file_changed_a_moment_ago_is_hashed_every_time(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    real = trust.file_sha256
    monkeypatch.setattr(trust, "file_sha256", lambda p: hashed.append(p.name) or real(p))  # type: ignore[func-returns-value]
    monkeypatch.setattr(trust, "RECENT_S", 1e9)
    for _ in range(2):
        checked(whole, "model.bin")
    assert hashed == ["model.bin"] * 2


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimize", *arguments], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_command_prints_a_digest_that_pins_and_ends_with_2_where_a_byte_differs(whole: Path) -> None:
    done = command("verify", str(whole))
    assert done.returncode == 0, done.stderr
    digest = done.stdout.split()[-1]
    assert command("verify", str(whole), "--expect", digest).returncode == 0
    wrong = command("verify", str(whole), "--expect", "0" * 64)
    assert wrong.returncode == 2 and wrong.stderr.count("\n") == 1
    assert f"expected digest {'0' * 64}, found {digest}" in wrong.stderr
    (whole / "model.bin").write_bytes(b"x")
    changed = command("verify", str(whole.parent), "--json")
    assert changed.returncode == 2 and "model.bin is changed" in changed.stderr and "Traceback" not in changed.stderr
    assert json.loads(changed.stdout)["artifacts"][0]["differences"][0]["file"] == "model.bin"
