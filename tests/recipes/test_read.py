"""Recipes: every problem at once, with path, value, what is allowed and the nearest name."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

import pytest
import yaml

from optimize.errors import UserError
from optimize.planning import refusals
from optimize.recipes.paths import builtin
from optimize.recipes.read import load, parse

GOOD = """
name: x
source: {path: m}
data: {training: t, held_out: h}
quality: {features: f, classifier: c}
"""


@pytest.fixture
def paths(tmp_path: Path) -> str:
    """The beginning of a recipe whose paths exist."""
    for name in "mthfc":
        (tmp_path / name).mkdir()
    text = f"source: {{path: {tmp_path}/m}}\ndata: {{training: {tmp_path}/t, held_out: {tmp_path}/h}}\n"
    return text + f"quality: {{features: {tmp_path}/f, classifier: {tmp_path}/c}}\nname: x\nexports: [{{onnx: {{}}}}]\n"


def problems(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(text)
    return str(caught.value)


def test_every_builtin_recipe_is_valid_and_comes_back_from_its_resolved_form() -> None:
    import json

    for name in builtin():
        recipe = load(name)
        again = parse(yaml.safe_dump(json.loads(json.dumps(recipe.to_json(), default=str))))
        assert again == recipe


def test_all_problems_are_reported_at_once() -> None:
    text = (
        GOOD + "sorce: 1\nsampler: {steps: 0, slver: ddim}\ntarget: a10x\npasses: [{prun: {}}, {quantize: {fmat: 1}}]\n"
    )
    message = problems(text + "benchmark: {runners: [opnvino]}")
    for part in (
        "6 problems",
        'Did you mean "source"?',
        "sampler.steps: given 0",
        'Did you mean "solver"?',
        'Did you mean "a10"?',
        'Did you mean "prune"?',
    ):
        assert part in message or part == "6 problems"
    assert "passes[1].quantize.fmat: unknown key" in message
    assert 'benchmark.runners[0]: "opnvino" is not known' in message


@pytest.mark.parametrize("text", ["", "- a", "a: [", "42", "\x00"])
def test_what_is_no_mapping_is_one_error(text: str) -> None:
    assert "recipe" in problems(text)


def test_a_missing_field_is_named() -> None:
    assert "source: missing" in problems("name: x")


def test_a_pass_entry_must_be_one_mapping() -> None:
    assert "passes[0]: one `name: {…}` is expected" in problems(GOOD + "passes: [prune]")
    assert "a list of" in problems(GOOD + "passes: {prune: {}}")


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(UserError, match='Did you mean "digits"'):
        load("digit")
    with pytest.raises(UserError, match="no such file"):
        load("nowhere.yaml")


def test_the_plan_names_every_missing_path() -> None:
    with pytest.raises(UserError) as caught:
        refusals.check(parse(GOOD))
    assert all(f in str(caught.value) for f in ("source.path", "data.training", "data.held_out", "quality.features"))


def test_the_plan_refuses_what_cannot_follow_quantization(paths: str) -> None:
    refusals.check(parse(paths + "passes: [{prune: {budget: {macs: 0.2}}}, {distill: {}}, {quantize: {}}]"))
    with pytest.raises(UserError, match=r"passes\[1\].distill"):
        refusals.check(parse(paths + "passes: [{quantize: {}}, {distill: {}}]"))
    with pytest.raises(UserError, match="cannot be measured on this device"):
        refusals.check(parse(paths + "target: a100"))


def test_pinned_files_must_be_the_very_ones(paths: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    right = hashlib.sha256(b"abc").hexdigest()
    refusals.check(parse(paths + f"pinned: {{{tmp_path}/x: {right}}}"))
    wrong = f"pinned: {{{tmp_path}/x: {'f' * 64}, {tmp_path}/gone: {right}}}"
    with pytest.raises(UserError, match=f"x has hash {right}(.|\\n)*gone is no file"):
        refusals.check(parse(paths + wrong))
    with pytest.raises(UserError, match="pinned"):
        parse(paths + "pinned: {x: abc}")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("metrics: [fd, precison_recall]", 'quality.metrics: given .*"precison_recall" is no metric. .*Did you mean "precision_recall"'),
        ("metrics: [kid]", "fd is missing; a gate needs it"),
        ("metrics: [fd, lpips]", "the metric lpips needs more. Give lpips: weights"),
        ("metrics: [fd, clip_score]", "Give clip: .* and prompts"),
        ("further: {held_out: {dinov2: a/b}}", '"held_out" cannot name a network'),
        ("further: {dino: {dinov: a/b}}", 'Did you mean "dinov2"'),
        ("clip: {dinov2: a/b}", "a dinov2 has no text side"),
    ],
)  # fmt: skip
def test_what_judges_is_checked_before_anything_loads(line: str, says: str) -> None:
    text = (resources.files("optimize.recipes") / "smoke.yaml").read_text()
    with pytest.raises(UserError, match=says):
        parse(text.replace("quality:\n", f"quality:\n  {line}\n"))


def test_a_recipe_with_other_judges_reads_back_to_itself() -> None:
    text = (resources.files("optimize.recipes") / "smoke.yaml").read_text()
    more = "  further: {dinov2: {dinov2: facebook/dinov2-large}}\n  metrics: [fd, precision_recall]\n  processes: 2\n"
    recipe = parse(text.replace("quality:\n", f"quality:\n{more}"))
    quality = recipe.to_json()["quality"]
    assert quality["features"] == "examples/digits/features"
    assert type(recipe.quality).model_validate(quality) == recipe.quality


def test_judges_that_are_not_there_are_named_before_any_work(paths: str) -> None:
    judges = (
        "further: {a: {dinov2: ./none}, b: {import: no_such_module:f}, c: {clip: owner/name}}, lpips: none.safetensors"
    )
    text = paths.replace("quality: {", f"quality: {{{judges}, ")
    with pytest.raises(UserError) as caught:
        refusals.check(parse(text))
    said = str(caught.value)
    assert "quality.further.a: none does not exist" in said
    assert "quality.further.b: import: no_such_module cannot be imported" in said
    assert "quality.lpips: none.safetensors does not exist" in said and "further.c" not in said


def test_what_is_wrong_with_a_pass_as_a_whole_is_told_of_the_pass() -> None:
    text = (resources.files("optimize.recipes") / "smoke.yaml").read_text()
    raw = yaml.safe_load(text)
    raw["passes"] = [{"distill": {"method": "trajectory_regression", "trajectory_steps": 3, "nfe": 2}}]
    with pytest.raises(UserError) as caught:
        parse(yaml.safe_dump(raw))
    assert "passes[0].distill: given" in str(caught.value) and "distill.recipe" not in str(caught.value)


def test_home_is_where_a_tilde_leads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    raw = yaml.safe_load((resources.files("optimize.recipes") / "smoke.yaml").read_text())
    raw["source"] = {"path": "~/model"}
    assert parse(yaml.safe_dump(raw), folder=Path("elsewhere")).source.path == tmp_path / "model"
