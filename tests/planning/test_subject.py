"""What a plan is about: recipes, artifacts and model folders, looked at without weights; and what is none of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from optimize.architectures.artifact import save_model
from optimize.diffusion.model import Model
from optimize.errors import ArtifactError, UserError
from optimize.planning.subject import open_subject
from optimize.recipes.paths import builtin_text
from optimize.storage.commit import commit

ROOT = Path(__file__).parents[2]
DIGITS_MACS = 65_683_456  # as the runs of this model record it


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_recipe_gives_its_source_as_it_is_sampled_today() -> None:
    found = open_subject("digits")
    assert (found.nfe, found.calls(), found.variant) == (100, ((50, 2),), "baseline")
    assert found.recipe is not None and found.recipe.name == "digits" and found.notes == ()
    assert sum(x.macs for x in found.read(1)) == DIGITS_MACS
    facts = found.facts(4)
    assert (facts.guided, facts.positions, facts.blind_nfe, facts.batch) == (True, 256, 0, 4)


def test_a_models_own_folder_finds_the_recipe_that_ships_for_it() -> None:
    found = open_subject("examples/digits/model", steps=10, guidance=0)
    assert found.recipe is not None and found.recipe.name == "digits"
    assert (found.nfe, found.sampler.guidance.cfg) == (10, None)


def test_a_folder_without_weights_or_schedule_is_enough_and_assumptions_are_said(
    tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder / "unet", tmp_path / "m" / "unet", ignore=shutil.ignore_patterns("*.safetensors"))
    found = open_subject(str(tmp_path / "m"))
    assert sum(x.weights for x in found.read(1)) > 0
    assert any("ordinary 1000-step schedule is assumed" in n for n in found.notes)
    assert any("assumed to be sampled in 50 steps of ddim" in n for n in found.notes)
    assert not any("assumed to be sampled" in n for n in open_subject(str(tmp_path / "m"), steps=4).notes)
    like = open_subject(str(tmp_path / "m"), like="digits")
    assert like.recipe is not None and like.nfe == 100


def test_an_artifact_is_known_by_its_id_and_its_passes(tiny_model: Model, tmp_path: Path) -> None:
    def write(folder: Path) -> dict[str, object]:
        save_model(folder, tiny_model)
        return {"id": "f" * 64, "passes": [{"name": "prune", "config": {}, "record": {}}]}

    commit(tmp_path / "run" / "prune", write)
    found = open_subject(str(tmp_path / "run" / "prune"))
    assert (found.id, found.passes, found.variant, found.recipe) == ("f" * 64, ("prune",), "prune", None)
    assert (found.nfe, found.positions) == (tiny_model.nfe, 256)


def test_what_is_neither_folder_nor_recipe_says_what_may_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'model: "digit" is no folder and no recipe(.|\n)*Did you mean "digits"'):
        open_subject("digit")
    with pytest.raises(UserError, match="no such file"):
        open_subject("nowhere.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ArtifactError, match=r"no model in it. Give the pipeline's folder \(unet/config.json or transformer/config.json"
    ):
        open_subject(str(tmp_path / "empty"))


def test_a_recipe_whose_model_is_missing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(builtin_text("digits"))
    with pytest.raises(UserError, match=r"recipe digits: source.path: examples/digits/model does not exist"):
        open_subject("digits.yaml")


def test_an_unknown_network_is_named(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModle"}))
    with pytest.raises(UserError, match='Did you mean "UNet2DModel"'):
        open_subject(str(tmp_path))


def test_a_scheduler_config_that_is_a_folder_is_refused_and_not_taken_for_missing(
    tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder / "unet", tmp_path / "m" / "unet")
    (tmp_path / "m" / "scheduler" / "scheduler_config.json").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"scheduler_config.json: "):
        open_subject(str(tmp_path / "m"))


def test_a_folder_in_the_place_of_a_scheduler_config_is_not_taken_for_none(tiny_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder / "unet", tmp_path / "m" / "unet")
    (tmp_path / "m" / "scheduler" / "scheduler_config.json").mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"scheduler_config\.json: a folder, not readable JSON"):
        open_subject(str(tmp_path / "m"))
