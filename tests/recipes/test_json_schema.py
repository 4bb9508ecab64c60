"""JSON schemas: every field says what it means, and an editor finds in a recipe what the program would refuse."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field
from support.schema_check import problems, undescribed

from optimize.configs import Config
from optimize.errors import UserError
from optimize.recipes import json_schema
from optimize.recipes.paths import builtin, builtin_text
from optimize.recipes.read import load, parse
from optimize.registry import PASSES


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    return json_schema.recipe_schema()


def smoke(**changes: Any) -> dict[str, Any]:
    return yaml.safe_load(builtin_text("smoke")) | changes


@pytest.mark.parametrize("name", json_schema.names())
def test_every_field_of_all_that_is_registered_and_of_the_recipe_says_what_it_means(name: str) -> None:
    shown = json_schema.schema(name)
    assert shown["properties"] and shown["description"]
    assert undescribed(shown) == []


@pytest.fixture
def silent() -> Iterator[type[Config]]:
    """A pass of a third party whose fields say nothing, registered for the time of a test."""

    class Budget(Config):
        share: Annotated[float, Field(gt=0)] = 0.5

    class Silent(Config):
        told: int = 1
        """Said."""
        untold: int = 1
        budget: Budget = Budget()
        """A nested one."""

    PASSES.register("silent")(Silent)
    yield Silent
    PASSES._found.pop("silent")


def test_a_plugin_that_leaves_fields_undescribed_is_found_at_any_depth(silent: type[Config]) -> None:
    assert undescribed(json_schema.schema("silent")) == ["Silent.untold", "Budget.share"]
    assert "Silent.untold" in undescribed(json_schema.recipe_schema())


def test_nested_configs_of_one_name_are_kept_apart(silent: type[Config]) -> None:
    shown = json_schema.recipe_schema()
    budgets = {shown["$defs"][plugin]["properties"]["budget"]["$ref"] for plugin in ("Prune", "Silent")}
    assert len(budgets) == 2
    fields = [set(shown["$defs"][ref.rsplit("/", 1)[1]]["properties"]) for ref in sorted(budgets)]
    assert {"macs"} in fields and {"share"} in fields


@pytest.mark.parametrize("name", builtin())
def test_every_shipped_recipe_is_valid_by_the_schema_as_written_and_as_resolved(
    name: str, recipe: dict[str, Any]
) -> None:
    assert problems(yaml.safe_load(builtin_text(name)), recipe, recipe) == []
    resolved = json.loads(json.dumps(load(name).to_json(), default=str))
    assert problems(resolved, recipe, recipe) == []


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"passes": [{"quantize": {"fmat": "int8"}}]}, "recipe.passes[0].quantize.fmat: not allowed"),
        ({"passes": [{"quantize": {"format": "int3"}}]}, "recipe.passes[0].quantize.format: enum"),
        ({"passes": [{"prune": {"budget": {"mac": 0.4}}}]}, "recipe.passes[0].prune.budget.mac: not allowed"),
        ({"passes": [{"prune": None}]}, "recipe.passes[0].prune: type"),
        ({"passes": [{"prun": {}}]}, "recipe.passes[0].prun: not allowed"),
        ({"passes": [{"recover": {}, "quantize": {}}]}, "recipe.passes[0]: maxProperties"),
        ({"passes": [{}]}, "recipe.passes[0]: minProperties"),
        ({"passes": ["quantize"]}, "recipe.passes[0]: type"),
        ({"passes": {"quantize": {}}}, "recipe.passes: type"),
        ({"exports": [{"onnx": {"opset": "x"}}]}, "recipe.exports[0].onnx.opset: type"),
        ({"exports": [{"onx": {}}]}, "recipe.exports[0].onx: not allowed"),
        ({"target": "a10x"}, "recipe.target: enum"),
        ({"source": {"path": "m", "kind": "difusers"}}, "recipe.source.kind: enum"),
        ({"benchmark": {"runners": ["opnvino"]}}, "recipe.benchmark.runners[0]: pattern"),
        ({"benchmark": {"runners": ["torch:fp17"]}}, "recipe.benchmark.runners[0]: pattern"),
        ({"benchmark": {"source_runners": ["torch@tpu"]}}, "recipe.benchmark.source_runners[0]: pattern"),
        ({"sorce": {}}, "recipe.sorce: not allowed"),
        ({"name": "a b"}, "recipe.name: pattern"),
        ({"exports": [{"onnx": {"opset": 17}}]}, "recipe.exports[0].onnx.opset: minimum"),
        ({"quality": {"features": {}}}, "recipe.quality.features: type"),
        ({"quality": {"features": {"dinov2": "a/b", "clip": "a/b"}}}, "recipe.quality.features: type"),
        ({"quality": {"features": {"dinov2": "a/b", "resize": "antialias"}}}, "recipe.quality.features: type"),
        ({"quality": {"features": {"import": "no path"}}}, "recipe.quality.features: type"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_recipe_is_seen_by_an_editor(
    changes: dict[str, Any], place: str, recipe: dict[str, Any]
) -> None:
    assert place in problems(smoke(**changes), recipe, recipe)


@pytest.mark.parametrize(
    "changes",
    [
        {"passes": [{"quantize": None}, {"recover": {}}], "exports": [{"onnx": None}, {"triton": {}}]},
        {"benchmark": {"runners": ["torch:fp16@cuda", "onnxruntime@tensorrt", "openvino:bf16"], "source_runners": []}},
        {"passes": None, "exports": None},
        {"quality": {"features": {"inception": "a", "resize": "antialias", "revision": None}}},
        {"target": "rtx3090", "source": {"path": "m", "kind": "module", "network": "a:B"}},
        {"quality": {"features": {"dinov2": "a/b", "revision": "x"}, "further": {"own": {"import": "m:f"}}}},
    ],
)
def test_what_the_program_takes_the_schema_takes(changes: dict[str, Any], recipe: dict[str, Any]) -> None:
    text = yaml.safe_dump(smoke(**changes))
    parse(text)
    assert problems(yaml.safe_load(text), recipe, recipe) == []


def test_a_runner_without_choices_of_its_own_takes_any_precision_in_the_pattern(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from optimize.registry import RUNNERS

    class Free(Config):
        precision: str = ""
        """Whatever it likes."""

    monkeypatch.setitem(RUNNERS._found, "free", Free)
    pattern = json_schema.runner_pattern()
    assert re.fullmatch(pattern, "free:e4m3") and re.fullmatch(pattern, "torch_compile:bf16@cuda")
    assert not re.fullmatch(pattern, "free@cuda") and not re.fullmatch(pattern, "tensorrt:fp16")


def test_two_kinds_under_one_name_are_both_shown() -> None:
    assert (
        json_schema.schema("tensorrt")
        == json_schema.schema("exporter/tensorrt")
        != json_schema.schema("runner/tensorrt")
    )
    assert "runner/tensorrt" in json_schema.listed()["runner"] and "tensorrt" in json_schema.listed()["exporter"]
    assert json_schema.schema("diffusers")["additionalProperties"] is False


@pytest.mark.parametrize(
    ("name", "near"),
    [("prun", "prune"), ("pas/prune", "pass/prune"), ("recip", "recipe"), ("runner/tensort", "runner/tensorrt")],
)
def test_an_unknown_name_gives_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f'"{name}" is not known. Allowed: recipe, .*Did you mean "{near}"'):
        json_schema.schema(name)


def test_the_text_under_a_field_of_a_plugin_in_a_file_of_its_own_is_its_description(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on the page about extending; decorators and comments do not disturb it."""
    block = re.findall(
        r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "extending.md").read_text(), re.DOTALL
    )
    text = next(b for b in block if "PASSES.register" in b)
    (tmp_path / "scale_of_a_test.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(PASSES._found)
    try:
        module: ModuleType = __import__("scale_of_a_test")
        assert undescribed(json_schema.schema("scale")) == []
        assert module.Scale.model_fields["factor"].description
    finally:
        PASSES._found.clear()
        PASSES._found.update(before)
        sys.modules.pop("scale_of_a_test", None)
