"""Where the files of a recipe are: beside the recipe, in the checkout's examples, on the hub; keys know their content alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field
from safetensors.torch import save_file

from optimize.configs import Config, digest
from optimize.engines.settings import EngineSettings
from optimize.errors import EnvironmentLacks, UserError
from optimize.planning import refusals, subject
from optimize.quality import features
from optimize.quality.metrics import FeatureNetwork
from optimize.recipes import paths as places
from optimize.recipes.read import load, parse
from optimize.recipes.schema import Recipe

ROOT = Path(__file__).parents[2]
BESIDE: dict[str, Any] = {
    "name": "x",
    "source": {"path": "m", "conditions": "conditions.safetensors"},
    "data": {"training": "../t", "held_out": "h"},
    "quality": {
        "features": "f",
        "classifier": "c",
        "further": {
            "hub": {"dinov2": "owner/name"},
            "folder": {"clip": "./weights/clip"},
            "own": {"import": "my.module:net"},
            "dotted": {"dinov2": "./d"},
        },
        "lpips": "lpips/weights",
    },
    "exports": [{"onnx": None}, {"tensorrt": {"timing_cache": "timing"}}],
    "pinned": {"p": "0" * 64},
    "prices": "prices.yaml",
}


def written(folder: Path, **changes: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "x.yaml").write_text(yaml.safe_dump(BESIDE | changes))
    return str(folder / "x.yaml")


def paths(recipe: Recipe) -> dict[str, str]:
    quality = recipe.quality
    return {
        "source": str(recipe.source.path),
        "conditions": str(recipe.source.conditions),
        "training": str(recipe.data.training),
        "held_out": str(recipe.data.held_out),
        "features": quality.features.source,
        "classifier": str(quality.classifier),
        "lpips": str(quality.lpips),
        **{name: network.source for name, network in quality.further.items()},
        "timing_cache": str(recipe.exports[1].timing_cache),
        "pinned": ",".join(recipe.pinned),
        "prices": str(recipe.prices),
    }


def test_paths_in_a_recipe_file_are_relative_to_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "sub")
    (tmp_path / "sub" / "weights" / "clip").mkdir(parents=True)
    assert paths(load("sub/x.yaml")) == {
        "source": "sub/m",
        "conditions": "sub/conditions.safetensors",
        "training": "sub/../t",
        "held_out": "sub/h",
        "features": "sub/f",
        "classifier": "sub/c",
        "lpips": "lpips/weights",  # a hub id, as every owner/name
        "hub": "owner/name",
        "folder": "sub/weights/clip",
        "own": "my.module:net",
        "dotted": "./sub/d",  # would read as a hub id without the dot
        "timing_cache": "sub/timing",
        "pinned": "sub/p",
        "prices": "sub/prices.yaml",
    }
    assert paths(load(str(tmp_path / "sub" / "x.yaml")))["training"] == str(tmp_path / "sub" / ".." / "t")


def test_a_recipe_in_the_working_directory_keeps_its_paths_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    assert load("x.yaml") == parse((tmp_path / "x.yaml").read_text())
    assert paths(load("x.yaml"))["dotted"] == "./d"


def test_a_hub_id_with_a_folder_of_its_name_beside_the_recipe_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub" / "lpips" / "weights").mkdir(parents=True)
    (tmp_path / "sub" / "owner" / "name").mkdir(parents=True)
    with pytest.raises(UserError) as caught:
        load(written(tmp_path / "sub"))
    assert 'quality.further.hub: "owner/name" is a hub id, and ' in str(caught.value)
    assert 'quality.lpips: "lpips/weights" is a hub id' in str(caught.value)
    assert "Write ./lpips/weights for what is there" in str(caught.value)


def test_what_lies_in_the_working_directory_is_never_taken_for_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(UserError, match=r'quality.lpips: "owner/name" is a hub id'):
        features.located("owner/name", field="lpips")
    assert features.located("./owner/name") == Path("owner/name")
    assert not FeatureNetwork(kind="inception", source="weights/lpips.safetensors").on_hub


def test_what_is_missing_is_named_where_the_user_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "sub")
    with pytest.raises(UserError) as caught:
        refusals.check(load("sub/x.yaml"))
    said = str(caught.value)
    assert "source.path: sub/m does not exist. Paths in a recipe file are relative to its folder." in said
    assert "pinned: sub/p is no file. Paths in a recipe file are relative to its folder." in said
    assert "quality.further.dotted: sub/d does not exist" in said and "further.hub" not in said
    with pytest.raises(UserError, match=r"recipe x: source.path: sub/m does not exist\. Paths in a recipe file"):
        subject.open_subject("sub/x.yaml")


@pytest.mark.parametrize("name", places.builtin())
def test_a_recipe_that_ships_is_ready_to_run_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert load(name).source.path == Path("examples/digits/model")
    monkeypatch.chdir(tmp_path)
    recipe = load(name)
    assert recipe.source.path == ROOT / "examples/digits/model"
    refusals.check(recipe)


def test_a_model_of_the_examples_is_known_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = subject.open_subject(str(ROOT / "examples/digits/model"))
    assert found.recipe is not None and found.sampler.guidance.cfg == 0.5


@pytest.fixture
def wheel(tmp_path: Path) -> dict[str, str]:
    """An environment whose package has no examples beside it."""
    shutil.copytree(ROOT / "optimize", tmp_path / "site" / "optimize", ignore=shutil.ignore_patterns("__pycache__"))
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def test_an_installed_package_without_examples_says_where_they_are(wheel: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-m", "optimize", "run", "digits"]
    about: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 120, "env": wheel}
    done = subprocess.run(command, cwd=tmp_path / "empty", **about)
    assert done.returncode == EnvironmentLacks.exit_code
    assert done.stderr.startswith("error: recipe digits: it works on examples/digits, which comes with the source")
    assert "Traceback" not in done.stderr and not list((tmp_path / "empty").iterdir())
    code = "from optimize.recipes.read import load; print(load('digits').source.path)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, **about)  # in the folder of the source
    assert done.stdout.strip() == "examples/digits/model", done.stderr


def test_a_model_of_ones_own_is_planned_without_the_examples(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "examples_root", lambda: None)
    assert subject.open_subject(str(tiny_folder)).recipe is None


class Nested(Config):
    table: Path
    """A file or a folder."""


class Reading(Config):
    """A config of a pass that reads files."""

    name_: str = "a"
    """Text."""
    nested: tuple[Nested, ...] = ()
    """Nested."""
    named: dict[str, Path] = Field(default_factory=dict)
    """In a mapping."""


def test_content_knows_what_files_hold_and_not_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "file").write_text(text)
        (tmp_path / folder / "deep" / "file").write_text(text)
    monkeypatch.chdir(tmp_path)

    def key(folder: Path | str) -> str:
        folder = Path(folder)
        nested = (Nested(table=folder / "file"), Nested(table=folder / "deep"))
        return digest(places.content(Reading(nested=nested, named={"k": folder / "file", "gone": folder / "gone"})))

    assert key("a") == key("b") == key(tmp_path / "a") == key("c/../a") != key("c")


def test_the_timing_cache_is_no_part_of_what_an_engine_is_found_by(tmp_path: Path) -> None:
    keys = {digest(places.content(EngineSettings(timing_cache=p))) for p in (None, tmp_path, Path("elsewhere"))}
    assert len(keys) == 1
    assert digest(places.content(EngineSettings(level=5))) not in keys


def test_a_judge_is_known_by_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for folder, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        (tmp_path / folder).mkdir()
        save_file({"w": torch.full((2,), value)}, tmp_path / folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    prints = [features.fingerprint(FeatureNetwork(source=s)) for s in ("a", str(tmp_path / "a"), "b", "c")]
    assert prints[0] == prints[1] == prints[2] != prints[3]
    resized = FeatureNetwork(kind="inception", source="a", resize="antialias")
    assert features.fingerprint(resized) != features.fingerprint(FeatureNetwork(kind="inception", source="a"))


def test_a_proposed_recipe_names_files_as_its_own_folder_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written elsewhere than in the working directory it is absolute; beside the reader it stays as it was."""
    monkeypatch.chdir(tmp_path)
    assert places.as_seen_from(Path())(Path("m")) == Path("m")
    assert places.as_seen_from(tmp_path)(Path("m")) == Path("m")
    assert places.as_seen_from(Path("sub"))(Path("m")) == tmp_path / "m"


def test_a_recipe_moved_to_absolute_paths_reads_back_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load(written(tmp_path / "sub")).moved(Path.absolute)
    text = yaml.safe_dump(json.loads(json.dumps(recipe.to_json(), default=str)))
    assert all(Path(p).is_absolute() for n, p in paths(recipe).items() if n not in ("hub", "own", "lpips", "folder"))
    assert parse(text, folder=Path("another")) == recipe


def test_stages_have_the_same_ids_whatever_folder_they_are_run_from(
    tiny_folder: Path, tiny_data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way is in `tests/runs/test_execute.py`; here the keys alone: source, pass, export, judges."""
    from optimize.progress import silent
    from optimize.runs import stages
    from optimize.runs.execute import _Run
    from optimize.storage.cache import Store

    shutil.copytree(tiny_folder, tmp_path / "there" / "m")
    for name in ("t", "h", "f/model", "c/model"):
        (tmp_path / "there" / name).parent.mkdir(exist_ok=True)
        save_file({"images": tiny_data.images, "labels": tiny_data.labels}, tmp_path / "there" / name)
    prune = {"prune": {"budget": {"macs": 0.3}, "importance": "magnitude"}}
    quality = {"features": "f", "classifier": "c"}
    value = {"name": "x", "source": {"path": "m"}, "data": {"training": "t", "held_out": "h"}, "quality": quality}
    (tmp_path / "there" / "x.yaml").write_text(yaml.safe_dump(value | {"passes": [prune], "target": "cpu"}))
    (tmp_path / "other").mkdir()

    def ids(folder: Path, name: str) -> list[str]:
        monkeypatch.chdir(folder)
        recipe, store = load(name), Store(tmp_path / "store")
        source = stages.source_stage(store, recipe, silent)
        made = stages.pass_stage(store, recipe, 0, source, source, silent)
        exported = stages.export_stage(store, recipe, "prune", made, (), silent)
        return [source.id, made.id, exported.id, digest(_Run(recipe, store, silent)._judges())]

    first = ids(tmp_path / "there", "x.yaml")
    assert ids(tmp_path, "there/x.yaml") == first
    assert ids(tmp_path / "other", str(tmp_path / "there" / "x.yaml")) == first
    (tmp_path / "there" / "f" / "model").write_bytes(b"other")
    assert ids(tmp_path, "there/x.yaml")[-1] != first[-1]
