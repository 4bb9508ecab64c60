"""What exports replace: killed anywhere the artifact is whole, two at once lose nothing of each other."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.kills import kill_everywhere

from optimize.delivery import as_engines
from optimize.delivery.as_engines import Request, export
from optimize.engines.settings import EngineSettings
from optimize.errors import ArtifactError, UserError
from optimize.onnx.vetted import ONNX_FILE
from optimize.storage.cache import Store
from optimize.storage.commit import commit
from optimize.storage.trust import verify


class Fake:
    """An exporter that writes one file named as it is, after `wait`."""

    def __init__(self, name: str, wait: Callable[[], object] = lambda: None) -> None:
        self.name, self.wait = name, wait

    def __call__(self) -> Fake:
        return self

    def export(self, model: Any, folder: Path, context: Any) -> dict[str, Any]:
        self.wait()
        (folder / self.name).write_text(self.name)
        return {"made": self.name}


def artifact(folder: Path) -> Path:
    def write(made: Path) -> dict[str, Any]:
        (made / "onnx").mkdir()
        (made / ONNX_FILE).write_text("graph")
        return {"id": "x", "exports": {"onnx": {}}}

    commit(folder, write)
    return folder


def asked(folder: Path, *formats: str) -> Request:
    return Request(artifact=folder, targets=("a100",), settings=EngineSettings(), formats=formats)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Fake]:
    known = {name: Fake(name) for name in ("one", "two")}
    monkeypatch.setattr(as_engines, "EXPORTERS", known)
    monkeypatch.setattr(as_engines, "load_model", lambda folder: None)
    return known


def test_an_export_killed_anywhere_leaves_a_whole_artifact_and_nothing_else_after_the_next(
    fakes: dict[str, Fake], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "final"

    def before() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        artifact(folder)

    def act() -> None:
        with Store(tmp_path / "store") as store:
            export(asked(folder, "one"), store)

    def after() -> None:
        assert verify(folder)["exports"].keys() <= {"onnx", "one"}
        act()
        assert verify(folder)["exports"] == {"onnx": {}, "one": {"made": "one"}}
        assert [p.name for p in folder.parent.iterdir()] == ["final"]

    assert kill_everywhere(before, act, after) >= 15


def test_two_exports_of_one_artifact_at_once_keep_each_others_files(fakes: dict[str, Fake], tmp_path: Path) -> None:
    folder, begun = artifact(tmp_path / "final"), threading.Event()
    go = threading.Event()
    fakes["one"].wait = lambda: (begun.set(), go.wait(20))
    with Store(tmp_path / "store") as store:
        first = threading.Thread(target=lambda: export(asked(folder, "one"), store))
        second = threading.Thread(target=lambda: export(asked(folder, "two"), store))
        first.start()
        assert begun.wait(20)
        second.start()
        second.join(0.2)
        assert second.is_alive()  # it waits
        go.set()
        first.join(20), second.join(20)
    assert verify(folder)["exports"].keys() == {"onnx", "one", "two"}
    assert (folder / "one").exists() and (folder / "two").exists()


def test_an_artifact_that_a_kill_moved_aside_is_exported_from_where_it_was(
    fakes: dict[str, Fake], tmp_path: Path
) -> None:
    artifact(tmp_path / "final").rename(tmp_path / ".tmp-final~old")
    with Store(tmp_path / "store") as store:
        export(asked(tmp_path / "final", "one"), store)
    assert verify(tmp_path / "final")["exports"].keys() == {"onnx", "one"}


def test_an_artifact_with_a_file_of_the_users_is_left_alone(fakes: dict[str, Fake], tmp_path: Path) -> None:
    (artifact(tmp_path / "final") / "notes.txt").write_text("mine")
    with Store(tmp_path / "store") as store, pytest.raises(ArtifactError, match=r"notes\.txt is added"):
        export(asked(tmp_path / "final", "one"), store)
    assert (tmp_path / "final" / "notes.txt").exists()


def test_an_earlier_export_that_somebody_changed_is_left_alone(tmp_path: Path) -> None:
    from optimize.delivery.as_onnx import check_out
    from optimize.serving.triton import _check_out

    artifact(tmp_path / "out")
    check_out(tmp_path / "out", "artifact")
    (tmp_path / "out" / ONNX_FILE).write_text("changed")
    with pytest.raises(ArtifactError, match=r"onnx/model\.onnx: changed since"):
        check_out(tmp_path / "out", "artifact")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link exists and is no artifact; it is left alone"):
        check_out(tmp_path / "link", "artifact")

    commit(tmp_path / "repository", lambda folder: {"triton": {}, "x": (folder / "config.pbtxt").write_text("x")})
    _check_out(tmp_path / "repository")
    with pytest.raises(UserError, match="repository exists and is no artifact"):
        check_out(tmp_path / "repository", "artifact")
    (tmp_path / "repository" / "config.pbtxt").write_text("tuned by hand")
    with pytest.raises(ArtifactError, match=r"config\.pbtxt: changed since"):
        _check_out(tmp_path / "repository")
    with pytest.raises(UserError):
        _check_out(tmp_path / "link")
