"""The roofline against sums by hand, its refusals, the fit of rates, and the published figures."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from optimize.errors import UserError
from optimize.hardware.targets import target
from optimize.roofline import fitting, published
from optimize.roofline import probe as c
from optimize.roofline.fitting import Case, fit, left_out
from optimize.roofline.layers import Layer
from optimize.roofline.predict import predict
from optimize.roofline.rates import Device, Rates, Table

PERFECT = Rates(
    name="perfect", compute={"default": 1.0}, bandwidth=1.0, overhead_s=0.0, spread=0.0, samples=4, formats=("fp16",)
)
# A100, 40 GB: 312 TFLOP/s in FP16, 624 TOP/s in INT8, 1555 GB/s
CONV = Layer("conv", "conv", macs=156 * 10**9, weights=1000, inputs=10**6, outputs=10**6)
COPY = Layer("cat", "copy", inputs=10**9, outputs=555 * 10**6)


def seconds(layers: list[Layer], rates: Rates = PERFECT, format: str = "fp16", name: str = "a100") -> float:
    return predict(layers, target(name), format, rates).seconds


def test_arithmetic_and_memory_take_what_the_datasheet_says() -> None:
    assert seconds([CONV]) == pytest.approx(1e-3)
    assert seconds([COPY]) == pytest.approx(2e-3)  # 1.555e9 elements of two bytes at 1555 GB/s
    assert [s.bound for s in predict([CONV, COPY], target("a100"), rates=PERFECT).by_layer] == ["compute", "memory"]


def test_shares_of_the_peak_and_overhead_are_applied_by_kind() -> None:
    half = replace(PERFECT, compute={"conv": 0.5, "default": 1.0}, bandwidth=0.25, overhead_s=1e-5)
    assert seconds([CONV], half) == pytest.approx(2e-3 + 1e-5)
    assert seconds([COPY], half) == pytest.approx(8e-3 + 1e-5)
    tiny = Layer("x", "copy", inputs=1, outputs=1)
    assert predict([tiny], target("a100"), rates=half).by_layer[0].bound == "overhead"


def test_a_kind_may_have_a_launch_time_of_its_own() -> None:
    rates = replace(PERFECT, overhead_s=1e-3, launch={"conv": 5e-3})
    assert seconds([CONV], rates) == pytest.approx(1e-3 + 5e-3)
    assert seconds([COPY], rates) == pytest.approx(2e-3 + 1e-3)


def test_a_fused_operator_costs_the_reading_of_its_other_operands_alone() -> None:
    add = Layer("add", "elementwise", inputs=2 * 10**9, outputs=10**9)
    rates = replace(PERFECT, overhead_s=1.0)
    assert seconds([add], rates) == pytest.approx(2e9 / 1555e9)
    assert seconds([add], replace(rates, fused=False)) == pytest.approx(6e9 / 1555e9 + 1.0)
    assert seconds([replace(add, inputs=10**9)], rates) == 0


def test_what_is_no_multiplication_is_priced_where_the_rates_know_it() -> None:
    norm = Layer("norm", "norm", other_flops=312 * 10**9)
    assert seconds([norm]) == 0
    assert seconds([norm], replace(PERFECT, compute={"other": 0.1})) == pytest.approx(1e-2)


def test_a_cache_speeds_up_small_tensors_and_not_large_ones() -> None:
    rates = replace(PERFECT, cache=10.0)
    small, large = (Layer("x", "copy", inputs=n, outputs=n) for n in (10**4, 10**10))
    assert seconds([small]) / seconds([small], rates) == pytest.approx(10, rel=0.02)
    assert seconds([large]) / seconds([large], rates) == pytest.approx(1, rel=0.02)
    fits = Layer("x", "copy", inputs=10**7, outputs=10**7)  # 40 MB, as large as the cache: half of it is kept
    assert seconds([fits], rates) / seconds([fits]) == pytest.approx(0.55)


def test_narrow_formats_are_for_convolutions_and_linear_layers_alone() -> None:
    attention = replace(CONV, kind="attention")
    assert seconds([CONV], format="int8") == pytest.approx(seconds([CONV]) / 2)
    assert seconds([attention], format="int8") == seconds([attention])
    assert seconds([replace(CONV, format="int8")]) == pytest.approx(seconds([CONV]) / 2)  # quantized already
    assert seconds([CONV], format="int4") == seconds([CONV])  # weights alone


def test_sizes_and_memory_follow_the_format() -> None:
    layers = [Layer("a", "conv", weights=1000, live=5000), Layer("b", "norm", weights=10, live=7000)]
    found = {f: predict(layers, target("a100"), f, PERFECT) for f in ("fp32", "fp16", "int8", "int4")}
    assert {f: p.size_bytes for f, p in found.items()} == {"fp32": 4040, "fp16": 2020, "int8": 1020, "int4": 520}
    assert found["fp16"].memory_bytes == 2020 + 14000 and found["int8"].memory_bytes == 1020 + 14000


def test_a_table_is_stored_whole_and_read_by_the_row() -> None:
    table = Layer("table", "embedding", weights=10**12, outputs=1000)
    found = predict([table], target("a100"), rates=PERFECT)
    assert found.size_bytes == 2 * 10**12 and found.seconds == pytest.approx(2000 / 1555e9)


def test_the_memory_asked_for_picks_the_part_and_its_bandwidth() -> None:
    forty, eighty = (predict([COPY], target("a100"), rates=PERFECT, memory_gb=m).seconds for m in (40, 80))
    assert forty / eighty == pytest.approx(2039 / 1555)


def test_the_interval_widens_with_the_spread_and_narrows_with_samples() -> None:
    few, many = (replace(PERFECT, spread=0.2, samples=n) for n in (3, 1000))
    p = predict([CONV], target("a100"), rates=few)
    assert p.low * p.high == pytest.approx(p.seconds**2) and p.predicted
    assert math.log(many.factor()) == pytest.approx(1.645 * 0.2, rel=0.01)  # the normal quantile
    assert math.log(few.factor()) == pytest.approx(2.92 * 0.2 * math.sqrt(4 / 3), rel=0.001)  # Student, 2 degrees


def test_a_format_that_nobody_measured_may_bring_nothing() -> None:
    rates = replace(PERFECT, spread=0.1)
    fp16, int8 = (predict([CONV], target("a100"), f, rates) for f in ("fp16", "int8"))
    assert int8.high == pytest.approx(fp16.high) and int8.low == pytest.approx(fp16.low / 2)


@pytest.mark.parametrize(
    ("name", "format", "said"),
    [
        ("a100", "fp8", "a100: it does not compute in fp8. It computes in fp32, tf32, fp16"),
        ("v100", "bf16", "v100: it does not compute in bf16"),
        ("a100", "fp61", 'Did you mean "fp16"'),
    ],
)
def test_a_format_that_cannot_be_computed_in_is_refused_by_name(name: str, format: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        predict([CONV], target(name), format)


def test_a_cpu_without_rates_is_refused() -> None:
    with pytest.raises(UserError, match="not known before they were measured"):
        predict([CONV], target("cpu"), "fp32")


def invented(rates: Rates, networks: int = 6) -> list[Case]:
    """Calls that take exactly what `rates` say."""
    cases = []
    for n in range(networks):
        layers = [replace(CONV, macs=CONV.macs * (n + 1)), COPY, replace(COPY, inputs=10**6 * n, outputs=1)]
        layers += (n * n + 1) * [Layer("x", "copy", inputs=1, outputs=1)]
        cases.append(Case(str(n), layers, target("a100"), seconds(layers, rates)))
    return cases


FREE = {"compute.conv": (0.1, 1.0), "bandwidth": (0.1, 1.0), "overhead_s": (1e-6, 1e-2)}


def test_a_fit_finds_the_rates_that_made_the_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "PRIOR", 1e-3)  # let the measurements alone decide
    truth = replace(PERFECT, compute={"conv": 0.4}, bandwidth=0.7, overhead_s=2e-4)
    start = replace(PERFECT, compute={"conv": 0.6}, bandwidth=0.5, overhead_s=1e-4)
    found = fit(invented(truth), start, FREE, "fp16")
    assert found.compute["conv"] == pytest.approx(0.4, rel=0.01)
    assert found.bandwidth == pytest.approx(0.7, rel=0.01)
    assert found.overhead_s == pytest.approx(2e-4, rel=0.01)
    assert found.spread < 0.01 and found.samples == 6


def test_a_fit_tells_the_launch_of_one_kind_from_that_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "PRIOR", 1e-3)
    truth = replace(PERFECT, overhead_s=2e-4, launch={"conv": 3e-3})
    start = replace(PERFECT, overhead_s=1e-4, launch={"conv": 1e-4})
    free = {"overhead_s": (1e-6, 1e-2), "launch.conv": (1e-6, 1e-2)}
    found = fit(invented(truth), start, free, "fp16")
    assert found.overhead_s == pytest.approx(2e-4, rel=0.01) and found.launch["conv"] == pytest.approx(3e-3, rel=0.01)


def test_the_spread_is_that_of_groups_left_out() -> None:
    truth = replace(PERFECT, compute={"conv": 0.4}, overhead_s=1e-5)
    cases = invented(truth)
    slow = [replace(x, seconds=x.seconds * (3 if x.group == "0" else 1)) for x in cases]
    tables = [Table(x.layers, Device(x.target, truth), "fp16") for x in slow]
    errors = left_out(slow, truth, FREE, tables)
    assert math.exp(errors["0"][0]) == pytest.approx(1 / 3, rel=0.02)  # the others do not know of it
    found = fit(slow, truth, FREE, "fp16")
    assert found.spread == pytest.approx(math.sqrt(sum(e[0] ** 2 for e in errors.values()) / 6))
    assert found.spread > math.log(3) / math.sqrt(6)


def test_the_published_gpu_rates_stay_below_the_peaks() -> None:
    rates = published.gpu_rates(target("h100"))
    for name, value in (("bandwidth", rates.bandwidth), ("cache", rates.cache), ("overhead_s", rates.overhead_s)):
        assert published.FREE[name][0] <= value <= published.FREE[name][1]
    assert rates.compute["default"] <= published.FREE["compute.default"][1] and rates.formats == ("fp16",)


def test_where_measurements_tell_nothing_the_start_decides() -> None:
    convolutions = [replace(case, layers=[CONV], seconds=1e-3) for case in invented(PERFECT)]
    found = fit(convolutions, replace(PERFECT, bandwidth=0.5, compute={"conv": 0.5}, overhead_s=1e-6), FREE, "fp16")
    assert found.bandwidth == pytest.approx(0.5) and found.compute["conv"] == pytest.approx(1, rel=0.05)


@pytest.mark.slow
def test_the_written_out_rates_are_those_that_the_published_figures_give() -> None:
    cases, written = published.cases(), published.gpu_rates(target("h100"))
    found = fit(cases, published.START, published.FREE, "fp16")
    assert found.spread == pytest.approx(written.spread, rel=0.02)
    for case in cases:
        a, b = (predict(case.layers, case.target, "fp16", r).seconds for r in (found, written))
        assert a == pytest.approx(b, rel=0.02)
    for name, value in published.SCALES.items():
        own = [case for case in cases if case.group == name]
        assert published.scale(own, written) == pytest.approx(value, rel=0.02)


def test_a_gpu_with_figures_of_its_own_is_scaled_to_them_and_its_interval_is_that_of_all() -> None:
    own, other = published.gpu_rates(target("t4")), published.gpu_rates(target("h100"))
    assert set(published.SCALES) == set(published.COMPILED)
    assert own.scale == published.SCALES["t4"] and other.scale == 1 and own.factor() == other.factor()
    assert "its own among them" in own.name and "of other GPUs" in other.name
    assert predict([CONV], target("t4"), rates=own).seconds == pytest.approx(
        own.scale * predict([CONV], target("t4"), rates=replace(own, scale=1.0)).seconds
    )


def test_the_scale_is_what_makes_a_gpus_own_figures_come_out() -> None:
    cases = [replace(case, seconds=2 * case.seconds) for case in invented(PERFECT)]
    assert published.scale(cases, PERFECT) == pytest.approx(2)


def test_calibration_measures_this_machine_once_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {
        "unet 8": c.unet_config((8, 8), 1, 8),
        "unet 16": c.unet_config((16, 16), 1, 8),
        "dit": c.dit_config(32, 1, 8),
    }
    monkeypatch.setattr(c, "calibration_networks", lambda: few)
    rates = c.calibrate(tmp_path, rounds=2)
    assert rates.name.startswith("torch eager, 1 thread") and rates.samples == 3 and not rates.fused
    assert 0.1 < 1e3 * rates.peak_tflops["fp32"] < 1e4 and rates.bandwidth_gb_s and rates.bandwidth_gb_s > 0.1
    monkeypatch.setattr(c, "measured", lambda *a: pytest.fail("measured again"))
    assert c.calibrate(tmp_path, rounds=2) == rates
    monkeypatch.setattr(c, "key", lambda: "another machine")
    with pytest.raises(pytest.fail.Exception):
        c.calibrate(tmp_path, rounds=2)
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["samples"] == 3


def test_calls_take_turns_and_the_least_time_counts() -> None:
    ticks, order = iter([0, 5, 5, 8, 8, 9, 9, 20, 20, 22, 22, 26, 26, 27, 27, 30]), []
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    assert c.least_seconds(calls, lambda: float(next(ticks)), rounds=2) == [2.0, 1.0]
    assert "".join(order) == "ab" + 2 * "aabb"
