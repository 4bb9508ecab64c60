"""Forecasts against closed forms: layers bound by arithmetic alone, at rates that reach the peak."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from optimize.diffusion.sampling import Guidance, Sampler
from optimize.diffusion.schedule import Schedule
from optimize.errors import UserError
from optimize.hardware import environment
from optimize.hardware.targets import target
from optimize.measure.record import Measurement, Variant
from optimize.planning.forecast import LEAST_SPREAD, Calibration, Candidate, Forecaster, read_measurements, thinned
from optimize.planning.subject import Subject
from optimize.roofline.layers import Layer
from optimize.roofline.rates import Rates

PEAK = Rates(name="all of the peak", compute={"default": 1.0}, bandwidth=1.0, overhead_s=0.0, spread=0.0, samples=9)
CPU = replace(PEAK, name="a CPU", formats=("fp32",), peak_tflops={"fp32": 1.0}, bandwidth_gb_s=1e6)
MACS = 156 * 10**9  # 1 ms on an A100 in FP16, 16 ms in FP32


def layers(batch: int) -> list[Layer]:
    """One convolution of 1000 weights; activations too few to matter."""
    return [Layer("conv", "conv", macs=batch * MACS, weights=1000, inputs=10, outputs=10, live=20)]


def subject(**changes: object) -> Subject:
    """50 guided steps, both branches in one call."""
    schedule = Schedule(alpha_bar=tuple((i + 1) / 1000 for i in reversed(range(1000))))
    sampler = Sampler(steps=50, guidance=Guidance(cfg=1.0))
    return replace(Subject("m", "baseline", layers, sampler, schedule), **changes)  # type: ignore[arg-type]


def ms(candidate: Candidate, batch: int = 1, about: Subject | None = None) -> float:
    return Forecaster(about or subject(), batch).forecast(target("a100"), candidate, PEAK).seconds * 1e3


def test_guided_steps_are_calls_of_twice_the_batch() -> None:
    assert ms(Candidate(format="fp16")) == pytest.approx(50 * 2, rel=1e-3)
    assert ms(Candidate(format="fp16"), batch=4) == pytest.approx(50 * 8, rel=1e-3)
    assert ms(Candidate(format="fp32")) == pytest.approx(16 * 100, rel=1e-3)


def test_branches_one_after_the_other_take_as_many_calls() -> None:
    split = subject(sampler=Sampler(steps=50, guidance=Guidance(cfg=1.0, batched=False)))
    assert split.calls() == ((100, 1),)
    assert ms(Candidate(format="fp16"), about=split) == pytest.approx(100, rel=1e-3)


def test_guidance_inside_an_interval_doubles_only_the_calls_there() -> None:
    some = subject(sampler=Sampler(steps=50, guidance=Guidance(cfg=1.0, interval=(0, 500))))
    (plain, one), (doubled, two) = some.calls()
    assert (one, two) == (1, 2) and plain + doubled == 50 and plain + 2 * doubled == some.nfe


def test_a_student_takes_its_calls_and_no_guidance() -> None:
    found = Forecaster(subject(), 1).forecast(target("a100"), Candidate(nfe=2, format="fp16"), PEAK)
    assert found.seconds * 1e3 == pytest.approx(2, rel=1e-3) and found.nfe == 2
    assert (found.low, found.high) == pytest.approx((found.seconds, found.seconds))
    assert found.predicted and found.to_json()["latency_ms"] == pytest.approx(2, rel=1e-3)


def test_pruning_shrinks_products_and_weights_by_its_share_and_activations_by_its_root() -> None:
    assert ms(Candidate(nfe=1, share=0.75, format="fp16")) == pytest.approx(0.25, rel=1e-3)
    (layer,) = thinned([Layer("x", "conv", macs=400, other_flops=40, weights=80, inputs=20, outputs=10, live=30)], 0.75)
    assert (layer.macs, layer.weights, layer.other_flops) == (100, 20, 20)
    assert (layer.inputs, layer.outputs, layer.live) == (10, 5, 15)


def test_the_file_is_its_weights_in_their_format() -> None:
    sizes = {
        f: Forecaster(subject(), 1).forecast(target("a10"), Candidate(format=f), PEAK).size_bytes
        for f in ("fp32", "fp16", "int8")
    }
    assert sizes == {"fp32": 4000, "fp16": 2000, "int8": 1000}


def test_a_format_without_rates_on_cpus_is_taken_to_be_as_fast_as_fp32_and_may_be_twice_that() -> None:
    forecaster = Forecaster(subject(), 1)
    fp32, int8 = (forecaster.forecast(target("cpu"), Candidate(format=f), CPU) for f in ("fp32", "int8"))
    assert int8.seconds == pytest.approx(fp32.seconds)
    assert int8.low == pytest.approx(fp32.low / 2) and int8.high == pytest.approx(fp32.high)
    assert (fp32.size_bytes, int8.size_bytes) == (4000, 1000)
    assert int8.memory_bytes == fp32.memory_bytes - 3000
    assert "INT8 taken to be as fast as FP32" in int8.rates


def measured(
    seconds: float, on: str = "a100", runner: str = "torch", key: str = "baseline", batch: int = 1
) -> Measurement:
    variant = Variant(key=f"{key}/{runner}/{batch}", folder="cache/abc", runner=runner, batch=batch)
    about = {"device": "cpu" if on == "cpu" else "cuda:0", "precision": "fp16"}
    here = {"device": on, "cpu": environment.cpu_name(), "cores": environment.cores()}
    return Measurement(variant, call_s=[[seconds]], image_s=[[seconds]], runner=about, environment=here)


def test_measurements_of_this_model_on_this_class_scale_the_prediction() -> None:
    forecaster = Forecaster(subject(), 1)
    found = forecaster.calibrate(target("a100"), [measured(0.002), measured(0.008, runner="slow")], PEAK)
    assert (found.ratio, found.samples, found.runner, found.spread) == (pytest.approx(2, rel=1e-3), 1, "torch", None)
    after = forecaster.forecast(target("a100"), Candidate(nfe=2, format="fp16"), PEAK, found)
    assert after.seconds * 1e3 == pytest.approx(4, rel=1e-3)
    assert after.calibrated == "1 measurement on torch" and not found.notes


def test_several_measurements_narrow_the_interval_but_never_below_what_few_can_say() -> None:
    wide = replace(PEAK, spread=1.0)
    forecaster, candidate = Forecaster(subject(), 1), Candidate(nfe=2, format="fp16")
    rows = [measured(0.002), measured(0.004, batch=2), measured(0.008, batch=4)]  # each twice the prediction
    found = forecaster.calibrate(target("a100"), rows, wide)
    assert found.ratio == pytest.approx(2, rel=1e-3) and found.spread == pytest.approx(0, abs=1e-2)
    before = forecaster.forecast(target("a100"), candidate, wide)
    after = forecaster.forecast(target("a100"), candidate, wide, found)
    factor = math.exp(2.919986 * LEAST_SPREAD * math.sqrt(4 / 3))  # t of 2 degrees of freedom, 95 %
    assert (after.high / after.seconds, after.seconds / after.low) == pytest.approx((factor, factor), rel=1e-5)
    assert before.high / before.seconds > 4 * factor
    assert Calibration(samples=2).factor(3.0) == 3.0


def test_results_of_another_class_or_machine_are_not_used_and_it_is_said() -> None:
    forecaster = Forecaster(subject(), 1)
    others = [measured(0.1, on="v100"), measured(0.1, on="cpu")]
    found = forecaster.calibrate(target("a100"), [measured(0.002), *others], PEAK)
    assert found.ratio == pytest.approx(2, rel=1e-3)
    assert found.notes == ("a100: 2 measurements were made on another class (cpu, v100) and are not used",)
    elsewhere = measured(0.1, on="cpu")
    elsewhere = replace(elsewhere, environment=elsewhere.environment | {"cpu": "some other CPU"})
    found = forecaster.calibrate(target("cpu"), [elsewhere], CPU)
    assert found.ratio == 1 and found.notes == ("cpu: 1 measurement was made on another machine and is not used",)


def test_measurements_of_another_model_are_not_used_and_it_is_said() -> None:
    forecaster = Forecaster(subject(), 1)
    found = forecaster.calibrate(target("a100"), [measured(0.1, key="prune"), measured(0.1, key="fair")], PEAK)
    assert found.ratio == 1 and found.notes == ("none of the 2 measurements is of this model: not used",)
    own = Forecaster(subject(id="abc" + "0" * 61), 1)
    named = replace(
        measured(0.002, key="x"),
        variant=measured(0.002).variant.model_copy(update={"folder": "c/" + own.subject.id[:32]}),
    )
    assert own.calibrate(target("a100"), [named], PEAK).samples == 1


def test_a_measurements_file_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "measurements.jsonl"
    path.write_text(json.dumps(measured(0.5).to_json()) + "\n\n")
    assert [m.call_s for m in read_measurements(path)] == [[[0.5]]]
    path.write_text('{"a": 1}\n')
    with pytest.raises(UserError, match=r"is no measurements\.jsonl of this version"):
        read_measurements(path)
    path.write_text("\n")
    with pytest.raises(UserError, match=r"measurements\.jsonl holds none\. Run optimize bench"):
        read_measurements(path)
    with pytest.raises(UserError, match="measurements: no such file"):
        read_measurements(tmp_path / "nowhere.jsonl")
