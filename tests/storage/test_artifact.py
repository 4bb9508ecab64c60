"""Artifacts: whole or not at all, verified, never unpickled."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from support.restored import saved

from optimize.architectures import artifact
from optimize.architectures.artifact import load_model, verify_network
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Sampler
from optimize.errors import ArtifactError, EnvironmentLacks, UserError
from optimize.sources.diffusers import DiffusersSource
from optimize.storage.cache import Store
from optimize.storage.commit import commit
from optimize.storage.trust import verify


def test_a_model_comes_back_bit_identical(tiny_model: Model, tmp_path: Path) -> None:
    back = load_model(saved(tiny_model, tmp_path / "a"))
    assert back.sampler == tiny_model.sampler
    assert back.denoiser.schedule == tiny_model.denoiser.schedule
    assert torch.equal(back.sample(range(2)), tiny_model.sample(range(2)))


def test_saving_twice_gives_the_same_bytes(tiny_model: Model, tmp_path: Path) -> None:
    one, two = (verify(saved(tiny_model, tmp_path / n))["files"] for n in "ab")
    assert one == two


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add"])
def test_any_changed_byte_is_found(tiny_model: Model, tmp_path: Path, damage: str) -> None:
    folder = saved(tiny_model, tmp_path / "a")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        weights.write_bytes(content)
    elif damage == "truncate":
        weights.write_bytes(content[:-100])
    elif damage == "remove":
        weights.unlink()
    else:
        (folder / "extra").write_text("x")
    with pytest.raises(ArtifactError, match="Delete the folder"):
        load_model(folder)


def test_a_full_disk_is_one_clear_error_and_leaves_earlier_results_intact(
    tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved(tiny_model, tmp_path / "a")
    before = verify(folder)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(artifact, "save_model", full)
    with pytest.raises(EnvironmentLacks, match="disk is full"):
        commit(folder, lambda t: full())  # type: ignore[func-returns-value, return-value]
    assert verify(folder) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_really_full_file_system_is_one_clear_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")

    def write(temporary: Path) -> dict[str, str]:
        with Path("/dev/full").open("w") as f:
            f.write("x" * 10_000_000)
        return {}

    with pytest.raises(EnvironmentLacks, match="disk is full"):
        commit(tmp_path / "a", write)
    assert not list(tmp_path.iterdir())


def test_a_stage_killed_while_writing_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from optimize.storage.cache import Store

        def compute(folder, work):
            (work / "checkpoint").write_text("half way")
            (folder / "part").write_text("half")
            print("writing", flush=True)
            time.sleep(60)

        Store(Path(sys.argv[1])).stage("slow", {"n": 1}, compute)
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    seen: list[str] = []

    def compute(folder: Path, work: Path) -> dict[str, str]:
        seen.append((work / "checkpoint").read_text())
        (folder / "whole").write_text("x")
        return {}

    stage = Store(tmp_path).stage("slow", {"n": 1}, compute)
    assert seen == ["half way"]
    assert list(stage.manifest["files"]) == ["whole"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".tmp")]


def test_a_damaged_stage_is_made_again_and_a_whole_one_is_found(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute(folder: Path, work: Path) -> dict[str, str]:
        calls.append(1)
        (folder / "f").write_text("x")
        return {}

    store = Store(tmp_path)
    first = store.stage("s", {}, compute)
    assert store.stage("s", {}, compute).cached
    (first.folder / "f").write_text("y")
    assert not store.stage("s", {}, compute).cached
    assert store.stage("s", {"other": 1}, compute).id != first.id
    assert len(calls) == 3


def source(folder: Path) -> Model:
    return DiffusersSource(folder).load(Sampler(steps=2))


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(tiny_folder, tmp_path / "copy"))


def test_a_missing_checkpoint_is_one_clear_error(copy: Path) -> None:
    with pytest.raises(ArtifactError, match="no such file or folder"):
        source(copy / "nowhere")
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="no such file"):
        source(copy)


def test_a_truncated_checkpoint_is_one_clear_error(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError, match="not a whole safetensors file"):
        source(copy)


def test_a_pickled_checkpoint_is_never_loaded(copy: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch " + str(copy / "exploded"),)

    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({"x": Bomb()}, copy / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ArtifactError, match="pickled"):
        source(copy)
    assert not (copy / "exploded").exists()


def test_a_wrong_hash_is_refused(copy: Path) -> None:
    with pytest.raises(ArtifactError, match="the recipe expects"):
        DiffusersSource(copy, "0" * 64).load(Sampler(steps=2))


def test_weights_that_do_not_fit_are_one_error(copy: Path) -> None:
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps(config | {"block_out_channels": [16, 32, 64]}))
    with pytest.raises(ArtifactError, match="do not fit"):
        source(copy)


def test_an_unknown_architecture_names_the_nearest(copy: Path) -> None:
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModl"}))
    with pytest.raises(UserError, match='Did you mean "UNet2DModel"'):
        source(copy)


@pytest.mark.parametrize(
    ("kind", "said"), [("pipeline", "an exported pipeline, which optimum's pipelines load"), ("", "no network")]
)
def test_what_holds_no_network_is_not_taken_for_one(tmp_path: Path, kind: str, said: str) -> None:
    commit(tmp_path / "a", lambda folder: {"kind": kind})
    with pytest.raises(
        ArtifactError, match=rf"{said} \(structure.json is not in it\). Give an artifact of one network"
    ):
        verify_network(tmp_path / "a")
