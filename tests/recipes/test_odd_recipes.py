"""Recipes that say what none may say: refused at parse, with the field, the value and what is allowed, in few words."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import pytest
import yaml

from optimize.errors import LONGEST, UserError
from optimize.measure.cost import load_prices
from optimize.recipes.read import load, parse

SMOKE = (resources.files("optimize.recipes") / "smoke.yaml").read_text()


def changed(**sections: object) -> str:
    return yaml.safe_dump(yaml.safe_load(SMOKE) | sections)


def refusal(text: str) -> str:
    with pytest.raises(UserError) as caught:
        parse(text)
    assert len(str(caught.value).encode()) <= LONGEST
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (SMOKE + "seed: 1\n", '"seed" stands there twice'),
        (SMOKE.replace("rounds: 2", "rounds: 2\n  rounds: 3"), '"rounds" stands there twice'),
        (SMOKE.replace("max_ratio: 1000", "max_ratio: .inf"), "gates.fd.max_ratio: given inf"),
        (SMOKE.replace("cfg: 0.5", "cfg: .nan"), "sampler.guidance.cfg: given nan"),
        (SMOKE.replace("seed: 0", "seed: -1"), "seed: given -1"),
        (SMOKE.replace("seed: 0", "seed: " + "9" * 400), "seed: given 9"),
        (SMOKE.replace("steps: 10,", "steps: -10,"), "passes[1].recover.steps: given -10"),
        (SMOKE.replace("steps: 10,", "steps: true,"), "true and false are no numbers"),
        (SMOKE.replace("steps: 10,", "steps: 2020-01-01,"), "passes[1].recover.steps: given '2020-01-01'"),
        (SMOKE.replace("batch: [4]", "batch: [0]"), "benchmark.batch.0: given 0"),
        (SMOKE.replace("batch: [4]", "batch: [5000]"), "benchmark.batch.0: given 5000"),
        (SMOKE.replace("batch: [4]", "batch: [4, 4]"), "4 stands there twice"),
        (SMOKE.replace("images: 32", "images: -1"), "quality.images: given -1"),
        (SMOKE.replace("endpoint_images: 4", "endpoint_images: 33"), "endpoint_images is 33, and 32 images are drawn"),
        (changed(passes=[{"recover": 0}]), "passes[0].recover: given 0. Its settings are a mapping"),
        (changed(passes=[{"recover": False}]), "passes[0].recover: given False. Its settings are a mapping"),
        (changed(passes=[{"recover": ""}]), "passes[0].recover: given ''. Its settings are a mapping"),
        (changed(exports=[{"onnx": []}]), "exports[0].onnx: given []. Its settings are a mapping"),
        (changed(target=["cpu"]), "target:"),
        (changed(name="x" * 101), "100 at most"),
        (changed(name="a/b"), "letters, digits"),
        (changed(pinned={"x" * 10**5: "y" * 10**5}), "pinned"),
        (changed(passes="x" * 10**5), "passes: a list of"),
        (changed(passes=[["x" * 10**5] * 5] * 50), "and 40 more"),
        (changed(**{"k" * 10**5: 1}), "unknown key"),
        (changed(source={"path": "a\0b"}), "source.path: given 'a\\x00b'. A text holds no NUL"),
        (changed(source={"path": "m", "null_class": -1}), "source.null_class: given -1"),
    ],
    ids=lambda value: value[-40:],
)  # fmt: skip
def test_what_no_recipe_may_say_is_refused_at_parse(text: str, says: str) -> None:
    assert says in refusal(text)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("torch:int4", "precision: Input should be 'fp32', 'tf32', 'fp16' or 'bf16', given 'int4'"),
        ("onnxruntime:fp16", "precision: Extra inputs are not permitted"),
        ("openvino@cuda", "device: Extra inputs are not permitted"),
        ("tensorrt@cpu", "device: Input should be 'cuda', given 'cpu'"),
        ("torch@tpu", "device: Input should be 'cpu' or 'cuda'"),
        ("torch:", "is no runner. Write name, name:precision"),
        ("torch@", "is no runner"),
        ("torch@cuda:fp16", "device: Input should be"),
        ("torch::fp16", "precision: Input should be"),
        ("x" * 10**4, "is not known"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_a_runner_that_no_machine_can_open_is_refused_at_parse(spec: str, says: str) -> None:
    for field in ("runners", "source_runners"):
        raw = yaml.safe_load(SMOKE)
        raw["benchmark"][field] = ["torch", spec]
        said = refusal(yaml.safe_dump(raw))
        assert f"benchmark.{field}[1]" in said and says in said


def test_a_runner_is_named_once() -> None:
    assert 'benchmark.runners: "torch" stands there twice' in refusal(
        SMOKE.replace("runners: [torch, onnxruntime", "runners: [torch, torch")
    )


def test_a_recipe_that_is_no_ordinary_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match=r"x.yaml: not a recipe"):
        load(str(tmp_path / "x.yaml"))
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, says in (
        ("pipe.yaml", "not an ordinary file"),
        ("f.yaml", "a folder"),
        ("9" * 300, "neither a file nor"),
    ):
        if name == "f.yaml":
            (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=says):
            load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a100: {per_hour: .inf, source: x, date: 2026-01}", "prices.a100.per_hour: given inf"),
        ("a100: {per_hour: -1, source: x, date: 2026-01}", "prices.a100.per_hour: given -1"),
        ("a100: {per_hour: 1, source: x, date: 2026-01}\n  a100: {}", '"a100" stands there twice'),
        ("a100: {per_hour: true, source: x, date: 2026-01}", "true and false are no numbers"),
        ("a100: {per_hour: 1, source: x, date: 20260101}", "prices.a100.date"),
    ],
)
def test_prices_are_finite_and_named_once(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "p.yaml").write_text(f"currency: USD\nprices:\n  {line}\n")
    with pytest.raises(UserError) as caught:
        load_prices(tmp_path / "p.yaml")
    assert says in str(caught.value)
    (tmp_path / "p.yaml").write_text("currency: USD\nprices: {a100: {per_hour: 1, source: x, date: 2026-01-31}}\n")
    assert load_prices(tmp_path / "p.yaml").prices["a100"].date == "2026-01-31"
