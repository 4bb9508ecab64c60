"""The whole plan: what works, forecasts, the proposed recipe, and everything wrong with the input at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from optimize.diffusion.sampling import Sampler
from optimize.diffusion.schedule import Schedule
from optimize.errors import UserError
from optimize.hardware import devices
from optimize.hardware.feasibility import FORMATS, WAYS
from optimize.planning import outlook
from optimize.planning import refusals as run_plan
from optimize.planning.outlook import budget_of, plan_for, write_recipes
from optimize.planning.propose import Budget
from optimize.planning.subject import Subject
from optimize.recipes.read import load, parse
from optimize.report.terminal.outlook import print_plan
from optimize.roofline.layers import Layer
from optimize.roofline.rates import Rates

ROOT = Path(__file__).parents[2]
PEAK = Rates(name="all of the peak", compute={"default": 1.0}, bandwidth=1.0, overhead_s=0.0, spread=0.1, samples=9)
CPU = replace(PEAK, name="a CPU", formats=("fp32",), peak_tflops={"fp32": 1.0}, bandwidth_gb_s=1e3)


def layers(batch: int) -> list[Layer]:
    """A tenth of a second on the CPU above."""
    return [Layer("conv", "conv", macs=batch * 50 * 10**9, weights=10**6, inputs=10, outputs=10, live=20)]


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits recipe around a network of one layer, rates given, no GPU here."""
    monkeypatch.chdir(ROOT)
    recipe = load("digits")
    schedule = Schedule(alpha_bar=tuple((i + 1) / 1000 for i in reversed(range(1000))))

    def opened(model: str, steps: int | None = None, *_: Any) -> Subject:
        if model == "unknown":
            raise UserError('model: "unknown" is no folder and no recipe.')
        bare = Subject(
            model,
            "baseline",
            layers,
            recipe.sampler,
            schedule,
            "UNet2DModel",
            "v",
            256,
            folder=Path("examples/digits/model"),
        )
        return bare if model == "bare" else replace(bare, recipe=recipe)

    monkeypatch.setattr(outlook, "open_subject", opened)
    monkeypatch.setattr(outlook._Planner, "_rates", lambda self, target: PEAK if target.cuda else CPU)
    monkeypatch.setattr(devices, "gpus", lambda: ())


def planned(
    targets: str = "cpu", budget: Budget | None = None, model: str = "digits", **options: Any
) -> dict[str, Any]:
    asked = (budget or Budget()).model_dump() | options
    return plan_for(model, targets.split(","), exported=Path("nowhere"), **asked)


def test_a_plan_is_json_with_every_cell_of_every_target() -> None:
    found = planned("a100,v100,cpu")
    assert json.loads(json.dumps(found)) == found
    assert found["predicted"] and found["nfe"] == 100 and found["macs"] == 50 * 10**9
    assert [t["name"] for t in found["targets"]] == ["a100", "v100", "cpu"]
    for target in found["targets"]:
        assert set(target["ways"]) == set(WAYS)
        assert all(set(row) == set(FORMATS) for row in target["ways"].values())
        assert all(f["predicted"] for f in target["today"].values())


def test_the_table_is_the_one_that_a_run_obeys() -> None:
    a100, v100 = planned("a100,v100")["targets"]
    assert a100["ways"]["tensorrt"]["fp8"]["verdict"] == "impossible"
    assert v100["ways"]["tensorrt"]["int8"]["verdict"] == "will not pay"
    assert v100["ways"]["tensorrt-rtx"]["fp16"]["verdict"] == "impossible"
    assert [p["place"] for p in v100["passes"]] == [
        p for p, _ in run_plan.verdicts(load("digits"), devices.resolve(["v100"])[0]) if p.startswith("passes")
    ]
    assert [(p["place"], p["verdict"]) for p in v100["passes"]][-1] == ("passes[3].quantize", "will not pay")
    assert v100["ways"]["torch"]["bf16"]["about"] == "format"
    assert v100["ways"]["tensorrt-rtx"]["fp16"]["about"] == "way"
    assert a100["ways"]["torch"]["int8"]["about"] == "both"


def test_only_formats_that_pay_are_forecast() -> None:
    a100, v100, cpu = planned("a100,v100,cpu")["targets"]
    assert set(a100["today"]) == {"fp32", "tf32", "bf16", "fp16"}
    assert set(v100["today"]) == {"fp32", "fp16"}
    assert {"fp32", "int8"} <= set(cpu["today"])
    assert set(planned("a100", batch=16)["targets"][0]["today"]) == {"fp32", "tf32", "bf16", "fp16", "int8"}


def test_a_forecast_names_its_cost_and_the_memories_it_fits() -> None:
    (a100,) = planned("a100")["targets"]
    fp16 = a100["today"]["fp16"]
    assert fp16["fits_gb"] == [40, 80]
    cost = fp16["cost_per_1000"]
    assert cost["value"] == pytest.approx(2.745 / 3600 * 1000 * fp16["seconds"], rel=1e-6)
    assert cost["low"] == pytest.approx(2.745 / 3600 * 1000 * fp16["low"], rel=1e-6)


def test_what_does_not_fit_is_said_and_not_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    big = Subject(
        "big", "baseline", lambda batch: [replace(layers(batch)[0], weights=15 * 2**30)], Sampler(steps=4), Schedule()
    )
    monkeypatch.setattr(outlook, "open_subject", lambda *_: big)
    v100, t4 = planned("v100,t4")["targets"]
    assert v100["today"]["fp32"]["fits_gb"] == [] and v100["today"]["fp16"]["fits_gb"] == [32]
    assert v100["notes"] == [
        "FP32 needs 60 GiB at least: no part of this class holds it",
        "FP16 needs 30 GiB at least: only the 32 GB part holds it",
    ]
    assert v100["proposal"]["forecast"]["candidate"]["format"] == "fp16"
    assert t4["proposal"]["forecast"]["memory_bytes"] <= 16 * 2**30


def test_a_hole_in_the_price_table_is_said_and_leaves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("currency: USD\nprices: {a100: {per_hour: 1, source: x, date: 2026-01}}\n")
    a100, v100 = planned("a100,v100", prices=tmp_path / "p.yaml")["targets"]
    assert "cost_per_1000" in a100["today"]["fp16"] and "cost_per_1000" not in v100["today"]["fp16"]
    assert any("no price for v100" in n for n in v100["notes"]) and not a100["notes"]


@pytest.mark.parametrize(
    ("budget", "calls"),
    [
        (Budget(latency_ms=11_000), None),
        (Budget(latency_ms=900), 8),
        (Budget(latency_ms=250), 2),
        (Budget(latency_ms=110), 4),
        (Budget(latency_ms=25), 1),
    ],
)
def test_target_and_budget_in_runnable_recipe_out(budget: Budget, calls: int | None) -> None:
    (cpu,) = planned("here", budget)["targets"]
    proposal = cpu["proposal"]
    assert proposal["meets"] and not proposal["to_fill_in"]
    assert proposal["forecast"]["latency_ms"] <= budget.latency_ms
    assert proposal["forecast"]["candidate"]["nfe"] == calls
    recipe = parse(proposal["recipe"])
    run_plan.check(recipe)  # everything it needs is there, and nothing is refused
    assert recipe.target == "here" and recipe.name == "digits-cpu"
    assert [p.nfe for p in recipe.passes if p.name == "distill"] == ([calls] if calls else [])
    assert proposal["recipe"].startswith(
        "# Proposed by `optimize plan` for CPU. Predicted, not measured: a batch of 1 in"
    )


def test_a_proposal_for_another_device_is_refused_here_only_for_being_another_device() -> None:
    (v100,) = planned("v100", Budget(size_mb=1.2))["targets"]
    recipe = parse(v100["proposal"]["recipe"])
    assert recipe.target == "v100"
    with pytest.raises(UserError) as caught:
        run_plan.check(recipe)
    assert str(caught.value).count("\n") == 1 and 'target: "v100" cannot be measured' in str(caught.value)


def test_small_files_need_pruning_or_int8_and_an_int8_recipe_spares_the_linears_of_small_images() -> None:
    (cpu,) = planned("cpu", Budget(size_mb=1.1))["targets"]
    recipe = parse(cpu["proposal"]["recipe"])
    (quantize,) = recipe.passes
    assert (quantize.name, quantize.linear) == ("quantize", "weight_only")
    (cpu,) = planned("cpu", Budget(size_mb=0.3))["targets"]
    assert [p.name for p in parse(cpu["proposal"]["recipe"]).passes] == ["prune", "recover", "quantize"]


def test_without_a_budget_fewer_steps_come_first_and_no_word_is_of_a_budget() -> None:
    found = planned("cpu,a100,v100")
    out = StringIO()
    print_plan(found, Console(file=out, width=80))
    assert "budget" not in out.getvalue().lower()
    for target in found["targets"]:
        free = [a["what"] for a in target["advice"]["proposed"] if a["kind"] == "free"]
        assert any(a.startswith("20 steps of dpmpp_2m instead of 50") for a in free)
        assert target["advice"]["proposed"][0]["kind"] == "free"
        assert all(a["high_ms"] < a["before_ms"] for a in target["advice"]["proposed"])


def test_a_budget_that_fewer_steps_meet_trains_nothing() -> None:
    (cpu,) = planned("here", Budget(latency_ms=4500))["targets"]
    proposal = cpu["proposal"]
    assert proposal["meets"] and proposal["forecast"]["candidate"]["steps"] == 20
    recipe = parse(proposal["recipe"])
    assert recipe.passes == () and "It trains nothing: its fair search finds out" in proposal["recipe"]
    run_plan.check(recipe)


def test_an_artifact_that_went_through_passes_gets_the_free_things(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replace(outlook.open_subject("digits"), passes=("prune", "recover"))
    monkeypatch.setattr(outlook, "open_subject", lambda *_: made)
    (cpu,) = planned("cpu")["targets"]
    assert [a["kind"] for a in cpu["advice"]["proposed"]] == ["free"]
    assert cpu["proposal"]["needed"][0].startswith("passes start from an untouched model")


def test_a_budget_out_of_reach_says_how_near_it_gets() -> None:
    (cpu,) = planned("cpu", Budget(latency_ms=1))["targets"]
    proposal = cpu["proposal"]
    assert not proposal["meets"] and proposal["recipe"]
    assert proposal["needed"][0].startswith("latency 20 ms is 20 times the budget")


def test_the_allowed_loss_becomes_the_gate_of_the_recipe() -> None:
    (cpu,) = planned("cpu", Budget(latency_ms=900, max_quality_loss=0.2))["targets"]
    assert parse(cpu["proposal"]["recipe"]).gates.fd.max_ratio == 1.2


def test_without_a_recipe_the_proposal_names_what_to_fill_in() -> None:
    (cpu,) = planned("cpu", Budget(latency_ms=900), model="bare")["targets"]
    proposal = cpu["proposal"]
    assert proposal["to_fill_in"] == ["data.training", "data.held_out", "quality.features", "quality.classifier"]
    assert (
        "FILL-IN/training.safetensors" in proposal["recipe"]
        and "Fill in before it runs: data.training" in proposal["recipe"]
    )
    assert [p["place"] for p in cpu["passes"]] == ["prune", "recover", "distill", "quantize"]


def test_a_network_that_no_pass_works_on_gets_forecasts_and_no_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(outlook.open_subject("bare"), architecture="AutoencoderKL")
    monkeypatch.setattr(outlook, "open_subject", lambda *_: other)
    (cpu,) = planned("cpu")["targets"]
    assert cpu["today"]["fp32"]["latency_ms"] > 0 and cpu["proposal"]["recipe"] is None
    assert cpu["proposal"]["needed"][0].startswith("no pass of this version works on AutoencoderKL (on UNet2DModel")


def test_a_gpu_of_no_listed_class_is_judged_and_not_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {
        "name": "NVIDIA GeForce RTX 5090",
        "sm": (12, 0),
        "memory_bytes": 2**35,
        "memory_clock_mhz": 14001,
        "bus_bits": 512,
    }
    monkeypatch.setattr(devices, "gpus", lambda: (facts,))
    (found,) = planned("here")["targets"]
    assert found["ways"]["tensorrt"]["fp8"]["verdict"] == "works"
    assert found["today"] == {} and found["proposal"] is None and "nothing is predicted" in found["reason"]


def test_every_problem_of_the_input_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        files = {"prices": tmp_path / "none.yaml", "measurements": tmp_path / "none.jsonl"}
        planned("a1000,cpu", model="unknown", latency_ms=-1, **files)
    for part in (
        '"a1000" is not known. Did you mean "a100"',
        "prices: no such file",
        'model: "unknown"',
        "--latency-ms: given -1",
        "measurements: no such file",
    ):
        assert part in str(caught.value)


def test_a_budget_below_zero_is_refused_with_every_figure() -> None:
    assert budget_of(1, None, 0) == Budget(latency_ms=1, max_quality_loss=0)
    with pytest.raises(UserError) as caught:
        budget_of(-5, 0, -0.1)
    for part in ("--latency-ms: given -5", "--size-mb: given 0", "--max-quality-loss: given -0.1", "greater than"):
        assert part in str(caught.value)


def test_recipes_are_written_one_a_target(tmp_path: Path) -> None:
    one = write_recipes(planned("cpu"), tmp_path / "r.yaml")
    assert one == [tmp_path / "r.yaml"]
    assert load(str(one[0])).name == "digits-cpu"
    both = write_recipes(planned("a100,cpu"), tmp_path / "r.yaml")
    assert [p.name for p in both] == ["r-a100.yaml", "r-cpu.yaml"] and all(p.is_file() for p in both)


def test_a_file_of_the_users_own_is_overwritten_only_where_that_is_asked(tmp_path: Path) -> None:
    plan = planned("a100,cpu")
    (tmp_path / "r-cpu.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"r-cpu\.yaml is there already and holds something else; it is left alone"):
        write_recipes(plan, tmp_path / "r.yaml")
    assert [p.name for p in tmp_path.iterdir()] == ["r-cpu.yaml"]
    first = write_recipes(plan, tmp_path / "r.yaml", overwrite=True)
    assert write_recipes(plan, tmp_path / "r.yaml") == first  # the same text
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match=r"folder\.yaml is there already .* Give another file\.$"):
        write_recipes(planned("cpu"), tmp_path / "folder.yaml", overwrite=True)


def test_a_recipe_for_another_folder_finds_its_files_from_there(tmp_path: Path) -> None:
    (path,) = write_recipes(planned("cpu", beside=tmp_path), tmp_path / "r.yaml")
    there, here = load(str(path)), parse(planned("cpu")["targets"][0]["proposal"]["recipe"])
    assert there.source.path.is_absolute() and there.data.training == here.data.training.absolute()
    assert here.data.training == Path("examples/digits/training.safetensors")


def test_measurements_are_found_next_to_the_run(tmp_path: Path) -> None:
    run = tmp_path / "digits"
    run.mkdir()
    (run / "measurements.jsonl").write_text("")
    assert outlook._measured(outlook.open_subject("digits"), None, tmp_path) == []
    (run / "measurements.jsonl").write_text("nonsense\n")
    with pytest.raises(UserError, match="is no measurements"):
        outlook._measured(outlook.open_subject("digits"), None, tmp_path)


def test_threads_are_those_that_a_network_will_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert outlook._threads() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert outlook._threads() == len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_a_proposed_recipe_runs_from_end_to_end(tmp_path: Path) -> None:
    """Planned from the smoke recipe, so that its trainings are short; the gates of that recipe hold anything."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "optimize"]
    recipe = tmp_path / "proposed.yaml"
    asked = ["plan", "smoke", "--target", "here", "--size-mb", "1", "--batch", "4", "--out", str(recipe), "--json"]
    done = subprocess.run([*command, *asked], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    proposal = json.loads(done.stdout)["targets"][0]["proposal"]
    assert proposal["meets"]
    run = [*command, "run", str(recipe), "--exported", str(tmp_path / "exported"), "--quiet"]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "exported" / "smoke-cpu" / "summary.json").read_text())
    final = next(r for r in summary["rows"] if r["variant"] == "final")
    assert final["size_bytes"] < 1.2e6 and final["cost_per_1000"]["value"] > 0
