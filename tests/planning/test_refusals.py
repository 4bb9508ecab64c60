"""The check before a run: the table of feasibility applied to a recipe, in its order, on this machine."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from optimize.errors import EnvironmentLacks, OptimizeError, UserError
from optimize.hardware.targets import target
from optimize.planning import refusals
from optimize.recipes import read
from optimize.recipes.read import load
from optimize.recipes.schema import Recipe


@pytest.fixture
def beginning(tmp_path: Path) -> str:
    """The beginning of a recipe whose paths exist."""
    for name in "mthfc":
        (tmp_path / name).mkdir()
    text = f"source: {{path: {tmp_path}/m}}\ndata: {{training: {tmp_path}/t, held_out: {tmp_path}/h}}\n"
    text += f"quality: {{features: {tmp_path}/f, classifier: {tmp_path}/c}}\nname: x\nexports: [{{onnx: {{}}}}]\n"
    return text + "sampler: {steps: 50, guidance: {cfg: 0.5}}\n"


def parse(text: str) -> Recipe:
    """The recipe of a text whose last sampler counts."""
    lines = text.splitlines()
    samplers = [i for i, line in enumerate(lines) if line.startswith("sampler:")]
    return read.parse("\n".join(line for i, line in enumerate(lines) if i not in samplers[:-1]))


def refusal(recipe: Recipe) -> str:
    with pytest.raises(UserError) as caught:
        refusals.check(recipe)
    return str(caught.value)


def test_guidance_is_folded_once(beginning: str) -> None:
    twice = parse(beginning + "passes: [{distill: {nfe: 4}}, {distill: {nfe: 1}}]")
    assert "passes[1].distill: The network already contains its guidance" in refusal(twice)
    refusals.check(parse(beginning + "passes: [{distill: {nfe: 4, guidance: 0}}]"))
    unguided = beginning.replace("guidance: {cfg: 0.5}", "guidance: {}")
    refusals.check(parse(unguided + "passes: [{distill: {nfe: 4}}, {distill: {nfe: 1}}]"))


def test_a_folded_source_is_refused(beginning: str) -> None:
    folded = parse(beginning.replace("cfg", "folded"))
    assert "sampler.guidance.folded: Only a distilled network contains its guidance" in refusal(folded)


def test_several_problems_come_at_once(beginning: str) -> None:
    text = (
        beginning.replace("cfg", "folded")
        + "passes: [{quantize: {}}, {prune: {budget: {macs: 0.2}}}, {quantize: {}}]\n"
    )
    message = refusal(parse(text + "target: a100\nprices: nowhere.yaml"))
    for part in (
        "target:",
        "prices: no such file: nowhere.yaml",
        "guidance.folded",
        "passes[1].prune",
        "passes[2].quantize",
    ):
        assert part in message


def noise(folder: Path, **config: object) -> None:
    """A schedule in the model folder of `beginning`."""
    (folder / "m" / "scheduler").mkdir()
    (folder / "m" / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(("betas", "blind"), [("linear", 64), ("squaredcos_cap_v2", 64)])
def test_a_head_that_is_blind_for_few_calls_is_re_read_and_the_plan_says_so(
    beginning: str, tmp_path: Path, betas: str, blind: int
) -> None:
    noise(tmp_path, beta_schedule=betas, prediction_type="epsilon")
    recipe = parse(beginning + f"passes: [{{distill: {{nfe: {blind}}}}}, {{quantize: {{}}}}]")
    refusals.check(recipe)
    found = dict(refusals.verdicts(recipe, target("cpu")))["passes[0].distill"]
    assert (found.verdict, found.rule) == ("works", "blind head") and "read as v first" in found.text
    assert refusals.facts_of(recipe).blind_nfe == blind


def test_keeping_a_blind_head_will_not_pay_and_is_said(beginning: str, tmp_path: Path) -> None:
    noise(tmp_path, beta_schedule="linear", prediction_type="epsilon")
    (line,) = refusals.will_not_pay(parse(beginning + "passes: [{distill: {nfe: 2, head: keep}}]"))
    assert line.startswith("passes[0].distill will not pay: The noise that") and line.endswith("Instead: head: auto.")


def test_a_head_that_cannot_mean_v_is_refused_before_the_work(beginning: str, tmp_path: Path) -> None:
    noise(tmp_path, _class_name="FlowMatchEulerDiscreteScheduler")
    message = refusal(parse(beginning + "passes: [{distill: {nfe: 2, head: v}}]"))
    assert "passes[0].distill: The head v needs a variance-preserving schedule" in message
    refusals.check(parse(beginning + "passes: [{distill: {nfe: 2}}]"))


def test_trajectories_of_a_blind_teacher_are_refused_unless_they_are_clipped(beginning: str, tmp_path: Path) -> None:
    noise(tmp_path, beta_schedule="squaredcos_cap_v2", prediction_type="epsilon", clip_sample=False)
    passes = "passes: [{distill: {nfe: 2, method: trajectory_regression}}]"
    message = refusal(parse(beginning + passes))
    assert "passes[0].distill: The noise that the teacher predicts says too little" in message
    assert "sampler.clip, or method: multistep_consistency" in message
    refusals.check(parse(beginning + "sampler: {clip: 1.0}\n" + passes))


def test_the_evaluations_of_today_are_counted_as_the_sampler_counts_them(beginning: str, tmp_path: Path) -> None:
    noise(tmp_path, beta_schedule="linear", prediction_type="epsilon")
    facts = refusals.facts_of(parse(beginning + "sampler: {solver: heun, steps: 5}"))
    assert (facts.nfe, facts.blind_nfe, facts.guided) == (9, 64, False)
    assert refusals.facts_of(parse(beginning)).nfe == 100


def test_what_will_not_pay_is_said_and_not_refused(
    beginning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    noise(tmp_path, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    with caplog.at_level(logging.WARNING, "optimize.planning.refusals"):
        refusals.check(parse(beginning + "passes: [{distill: {nfe: 64}}]\nsampler: {steps: 20}"))
    assert "passes[0].distill will not pay: The sampler takes 20 network evaluations already." in caplog.text
    (line,) = refusals.will_not_pay(parse(beginning + "passes: [{distill: {nfe: 64}}]\nsampler: {steps: 20}"))
    assert line.endswith("Instead: a smaller nfe.")


def test_the_pass_is_judged_on_the_target_it_is_for() -> None:
    recipe = load("digits")
    by_target = {
        name: {place: found.verdict for place, found in refusals.verdicts(recipe, target(name))}
        for name in ("cpu", "v100", "a10")
    }
    assert by_target["v100"]["passes[3].quantize"] == "will not pay"
    assert by_target["a10"]["passes[3].quantize"] == "works"
    assert by_target["cpu"]["passes[0].prune"] == "works"
    assert by_target["a10"]["passes[0].prune"] == "will not pay"  # INT8 tensor cores take 16 channels at once


def test_every_shipped_recipe_works_on_a_cpu() -> None:
    from optimize.recipes.paths import builtin

    for name in builtin():
        verdicts = [found.verdict for _, found in refusals.verdicts(load(name), target("cpu"))]
        assert "impossible" not in verdicts


def without_gpu(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    """A machine without a GPU, on which these TensorRT modules are installed."""
    monkeypatch.setattr("optimize.engines.libraries.found_version", installed.get)
    monkeypatch.setattr("optimize.engines.libraries.gpu_sm", lambda: None)


@pytest.mark.parametrize(
    ("export", "kind", "said"),
    [
        ("tensorrt: {targets: [a100]}", EnvironmentLacks, r"exports\[1\]\.tensorrt: TensorRT is not installed.*Or take it out: optimize export makes a build kit"),
        ("tensorrt_rtx: {targets: [rtx3091]}", UserError, r"exports\[1\]\.tensorrt_rtx: target: \"rtx3091\" is not known. Did you mean"),
        ("tensorrt_rtx: {targets: [sm90]}", UserError, r"SM 9\.0: TensorRT-RTX cannot target it"),
        ("tensorrt_rtx: {targets: [a100], flags: [strip_weights]}", UserError, "refuses strip_weights on a machine without a GPU"),
    ],
)  # fmt: skip
def test_engines_that_cannot_be_built_here_are_refused_before_the_work(
    beginning: str, monkeypatch: pytest.MonkeyPatch, export: str, kind: type[OptimizeError], said: str
) -> None:
    without_gpu(monkeypatch, tensorrt_rtx="1.7.1")
    with pytest.raises(kind, match=said):
        refusals.check(parse(beginning.replace("exports: [{onnx: {}}]", f"exports: [{{onnx: {{}}}}, {{{export}}}]")))


def test_an_engine_of_another_class_than_the_gpu_here_is_refused_before_the_work(
    beginning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch, tensorrt="11.4.0")
    monkeypatch.setattr("optimize.engines.libraries.gpu_sm", lambda: (9, 0))
    text = beginning.replace("exports: [{onnx: {}}]", "exports: [{onnx: {}}, {tensorrt: {targets: [a100]}}]")
    with pytest.raises(EnvironmentLacks, match=r"TensorRT builds on a GPU of that class, and the GPU here is SM 9\.0"):
        refusals.check(parse(text))
    refusals.check(parse(text.replace("targets: [a100]", "targets: [h200]")))


def test_what_cannot_be_built_is_said_once_and_with_all_else_that_is_wrong(
    beginning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gpu(monkeypatch, tensorrt_rtx="1.7.1")
    text = beginning.replace("exports: [{onnx: {}}]", "exports: [{onnx: {}}, {tensorrt_rtx: {targets: [v100]}}, {tensorrt: {targets: [a100]}}]")  # fmt: skip
    message = refusal(parse(text + "prices: nowhere.yaml"))
    assert message.count("cannot target SM 7.0") == 1 and "TensorRT is not installed" in message
    assert "no such file: nowhere.yaml" in message


@pytest.mark.parametrize("exports", ["[{tensorrt_rtx: {targets: [a100]}}, {onnx: {}}]", "[{triton: {}}]"])
def test_what_is_made_from_onnx_stands_after_it(beginning: str, exports: str, monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch, tensorrt_rtx="1.7.1")
    message = refusal(parse(beginning.replace("[{onnx: {}}]", exports)))
    assert "exports[0]." in message and "made from onnx, which is not before it. Add `- onnx: {}` above it" in message


def test_a_malformed_price_table_is_refused_before_the_work(beginning: str, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("currency: USD\nprices: {cpu: {per_core_hour: -1, source: x, date: 2026-01}}")
    message = refusal(parse(beginning + f"prices: {tmp_path}/prices.yaml"))
    assert "prices.cpu.per_core_hour: given -1" in message
