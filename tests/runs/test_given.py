"""The data of a recipe: checked whole before any work, by themselves and against the network."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from support.sampling import write_sampling
from support.summaries import whole_summary

from optimize.errors import UserError
from optimize.quality.evaluate import Evaluator
from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig
from optimize.recipes.read import load
from optimize.recipes.schema import Gates, Recipe
from optimize.report.markdown import render_markdown
from optimize.report.terminal.summary import print_table
from optimize.report.verdicts import notes
from optimize.runs import execute, given
from optimize.runs.gates import slack_notes
from optimize.storage.cache import Stage

DIGITS = Path(__file__).parents[2] / "examples/digits"
CLASSES = {"kind": "class", "classes": 10, "null": 10}


def recipe(folder: Path, quality: dict[str, Any] | None = None, **tensors: torch.Tensor) -> Recipe:
    """The smoke recipe with a training file of these tensors."""
    base = load("smoke")
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "t.safetensors")
    data = base.data.model_copy(update={"training": folder / "t.safetensors"})
    judged = base.quality.model_copy(update=quality or {})
    return base.model_copy(update={"data": data, "quality": judged})


def source(folder: Path, conditioning: dict[str, Any], shape: tuple[int, ...] = (1, 16, 16), limit: Any = 1.0) -> Stage:
    write_sampling(folder, conditioning=conditioning, shape=list(shape), limit=limit)
    return Stage("source", "id", folder, {}, 0.0, True)


def images(n: int = 8) -> torch.Tensor:
    return torch.linspace(-1, 1, n * 256).view(n, 1, 16, 16)


def test_the_data_that_ship_fit_the_model_that_ships(tmp_path: Path) -> None:
    found = given.samples_of(load("digits"))
    assert {field: samples.count for field, samples in found.items()} == {"data.training": 1617, "data.held_out": 180}
    given.check_fit(load("digits"), found, source(tmp_path, CLASSES))


def test_everything_that_is_wrong_with_the_files_is_said_at_once(tmp_path: Path) -> None:
    wrong = recipe(tmp_path, images=(images() + 1) * 127.5)
    wrong = wrong.model_copy(update={"data": wrong.data.model_copy(update={"held_out": tmp_path / "none"})})
    with pytest.raises(UserError) as caught:
        given.samples_of(wrong)
    said = str(caught.value)
    assert (
        "data.training" in said
        and "as 8-bit pictures do" in said
        and "data.held_out" in said
        and "no such file" in said
    )


@pytest.mark.parametrize(
    ("tensors", "about", "says"),
    [
        ({"images": images()}, {}, r"data.training: .* no labels, and this network is told a class"),
        (
            {"images": images(), "labels": torch.full((8,), 10)},
            {},
            "a label is 10. The classes of this network are 0 to 9",
        ),
        ({"images": images(), "labels": torch.zeros(8).long()}, {"shape": (1, 8, 8)}, "works on images of shape"),
        (
            {"images": images()},
            {"conditioning": {"kind": "none"}, "shape": (4, 8, 8), "limit": None},
            "works on latents",
        ),
        ({"latents": images() * 9}, {"limit": None}, "latents, which a run cannot judge. Use its passes from Python"),
        ({"latents": images()}, {}, r"this network works on images in \[-1, 1\]. Give `images`"),
        (
            {"images": images(), "labels": torch.zeros(8).long()},
            {"conditioning": {"kind": "class", "classes": 11, "null": None}},
            "quality.classifier: it knows 10 classes, and the network draws 0 to 10",
        ),
    ],
)
def test_data_that_do_not_fit_the_network_are_refused_before_any_pass(
    tmp_path: Path, tensors: dict[str, Any], about: dict[str, Any], says: str
) -> None:
    asked = recipe(tmp_path, **tensors)
    with pytest.raises(UserError, match=says):
        given.check_fit(asked, given.samples_of(asked), source(tmp_path, **{"conditioning": CLASSES} | about))


def test_conditions_beside_the_samples_are_checked_as_well(tmp_path: Path) -> None:
    told = {"kind": "tensors", "tensors": [{"name": "text", "dims": ["B", 3]}], "nulled": []}
    asked = recipe(tmp_path, images=images(), text=torch.zeros(5, 3))
    with pytest.raises(UserError, match="text has 5 rows; 8 are needed"):
        given.check_fit(asked, given.samples_of(asked), source(tmp_path, told))
    unknown = recipe(tmp_path, images=images(), txt=torch.zeros(8, 3))
    with pytest.raises(UserError, match=r'not told txt. Allowed: text. Did you mean "text"'):
        given.check_fit(unknown, given.samples_of(unknown), source(tmp_path, told))


def test_figures_that_need_more_than_there_is_are_refused(tmp_path: Path) -> None:
    few = recipe(tmp_path, images=images(1))
    with pytest.raises(UserError, match="1 images; a distribution needs at least 2"):
        given.samples_of(few)
    unlabelled = recipe(tmp_path, {"metrics": ("fd", "fd_per_class")}, images=images())
    with pytest.raises(UserError, match=r"no labels, and quality.metrics asks for fd_per_class"):
        given.samples_of(unlabelled)
    small = recipe(tmp_path, {"metrics": ("fd", "density_coverage")}, images=images(2))
    small = small.model_copy(update={"data": small.data.model_copy(update={"held_out": small.data.training})})
    with pytest.raises(UserError, match="density_coverage needs 6 real images at least, data has 4"):
        given.samples_of(small)


def test_prompts_are_one_for_every_class(tmp_path: Path) -> None:
    asked = recipe(tmp_path, {"metrics": ("fd", "clip_score"), "prompts": ("a", "b")}, images=images(), labels=torch.zeros(8).long())  # fmt: skip
    with pytest.raises(UserError, match=r"quality.prompts: 2 given, and classes go up to 9"):
        given.check_fit(asked, given.samples_of(asked), source(tmp_path, CLASSES))


def test_a_run_with_poisoned_data_ends_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="as 8-bit pictures do"):
        execute.run(recipe(tmp_path, images=(images() + 1) * 127.5), tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("poison", ["0 to 255", "uint8", "NaN", "0 to 1"])
def test_an_evaluator_takes_no_poisoned_scans(tmp_path: Path, poison: str) -> None:
    held = load_file(DIGITS / "held_out.safetensors")
    right = held["images"].float()
    spoiled = right.clone()
    spoiled[0] = float("nan")
    changed = {
        "0 to 255": (right + 1) * 127.5,
        "uint8": ((right + 1) * 127.5).to(torch.uint8),
        "NaN": spoiled,
        "0 to 1": (right + 1) / 2,
    }
    save_file({"images": changed[poison].contiguous(), "labels": held["labels"]}, tmp_path / "h.safetensors")
    paths = (DIGITS / "features", DIGITS / "classifier", tmp_path / "h.safetensors", DIGITS / "training.safetensors")
    with pytest.raises(UserError, match=r"quality: held_out: .*(8-bit|uint8|NaN|black would be grey)"):
        Evaluator(*paths, replicates=20).half_split(0, splits=1)


def test_judges_that_cannot_take_the_images_or_the_classes_are_named(tmp_path: Path) -> None:
    for name, config in {"features": {"in_channels": 3}, "classifier": {"classes": 4}}.items():
        small = ImageClassifierConfig(widths=(4, 4), feature_dim=4, **config)  # type: ignore[arg-type]
        ImageClassifier(small).save(tmp_path / name)
    scans = (DIGITS / "held_out.safetensors", DIGITS / "training.safetensors")
    with pytest.raises(UserError, match=r"quality.features: the network cannot take images of shape \(.*, 1, 16, 16\)"):
        Evaluator(tmp_path / "features", None, *scans).half_split(0, splits=1)
    judges = Evaluator(DIGITS / "features", tmp_path / "classifier", *scans, replicates=20)
    with pytest.raises(UserError, match=r"quality.classifier: it knows the classes 0 to 3, and 9 was drawn"):
        judges.judge(images(), torch.arange(8) + 2)
    with pytest.raises(UserError, match=r"labels are float32 from 0.5 on; whole numbers from 0 on are needed"):
        judges.judge(images(), torch.full((8,), 0.5))


@pytest.mark.parametrize(
    ("own", "halves", "slack", "said"),
    [(1.0, 0.7, "half_split", False), (0.5, 0.7, "half_split", True), (0.5, 0.7, "none", False), (0.0, 0.7, "half_split", True)],
)  # fmt: skip
def test_a_slack_above_the_baselines_own_fd_is_said_aloud(own: float, halves: float, slack: str, said: bool) -> None:
    gates = Gates.model_validate({"fd": {"slack": slack}})
    found = slack_notes(gates, {"fd": {"value": own}}, {"value": halves})
    assert bool(found) == said
    if found and own:
        assert "is more than the baseline's own FD 0.5, so up to 1.35 passes, 2.7 times that" in found[0]
        summary, seen = whole_summary() | {"notes": found}, StringIO()
        assert notes(summary) == found and "2.7 times that" in render_markdown(summary)
        print_table(summary, Console(file=seen, width=400))
        assert f"! {found[0]}" in seen.getvalue()
