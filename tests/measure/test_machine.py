"""Conditions of a turn: what /sys and /proc tell, counters as differences, throttling that is said."""

from __future__ import annotations

from pathlib import Path

from optimize.measure import machine


def system(root: Path, mhz: int, heat: int, throttles: int) -> Path:
    """A made-up /sys with two cores."""
    files = {
        **{f"devices/system/cpu/cpu{i}/cpufreq/scaling_cur_freq": mhz * 1000 + i * 100_000 for i in (0, 1)},
        "class/thermal/thermal_zone0/temp": heat * 1000,
        "class/hwmon/hwmon0/temp1_input": "broken",
        "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": throttles,
        "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": 0,
    }
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")
    return root


def stat(path: Path, busy: int, steal: int) -> Path:
    path.write_text(f"cpu  {busy} 0 0 1000 5 0 0 {steal} 0 0\ncpu0 1 2 3\n")
    return path


def test_a_turn_is_described_by_clocks_heat_load_and_what_was_stolen(tmp_path: Path):
    before = machine.now(system(tmp_path / "sys", 2000, 60, 3), stat(tmp_path / "stat", 100, 10))
    assert before["cpu_mhz"] == [2000, 2100] and before["temperature_c"] == 60 and before["load_1m"] >= 0
    after = machine.now(system(tmp_path / "sys", 1500, 95, 5), stat(tmp_path / "stat", 300, 60))
    found = machine.between(before, after)
    assert (found["cpu_mhz"], found["temperature_c"], found["throttle_count"]) == ([1500, 1600], 95, 2)
    assert found["busy_s"] == 2.0 and found["stolen_s"] == 0.5  # 100 ticks a second
    assert found["throttled"] == ["processor hot"]


def test_a_machine_that_tells_nothing_leaves_the_figures_out(tmp_path: Path):
    found = machine.now(tmp_path, tmp_path / "nowhere")
    assert set(found) == {"load_1m"}
    assert machine.between(found, found)["throttled"] == []


def test_reasons_for_throttling_are_gathered_over_turns_and_devices():
    turns = [{"throttled": []}, {"throttled": ["processor hot"], "gpu": {"throttled": ["software power cap"]}}]
    assert machine.throttled(turns) == ["processor hot", "software power cap"]
    assert machine.throttled([{}]) == []


def test_a_machine_of_many_cores_is_asked_for_sixteen(tmp_path: Path):
    for i in range(100):
        path = tmp_path / f"devices/system/cpu/cpu{i}/cpufreq/scaling_cur_freq"
        path.parent.mkdir(parents=True)
        path.write_text("1000000")
    assert len(machine._files(tmp_path, "devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")) <= 16
