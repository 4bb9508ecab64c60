"""A whole run on a tiny model: it ends, it is found again, it survives kill -9 anywhere with the same bits."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from optimize import rng
from optimize.storage.trust import verify

STAGES = ("baseline", "prune", "recover", "distill", "quantize", "final")


@pytest.fixture(scope="session")
def recipe(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of every pass over the tiny model, random scans and untrained judges."""
    from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig

    folder = tmp_path_factory.mktemp("recipe")
    for name, count in (("training", 64), ("held_out", 40)):
        images = torch.from_numpy(rng.normal((count, 1, 16, 16), name)).clamp(-1, 1)
        save_file({"images": images, "labels": torch.arange(count) % 10}, folder / f"{name}.safetensors")
    for name in ("features", "classifier"):
        torch.manual_seed(len(name))
        ImageClassifier(ImageClassifierConfig(widths=(4, 8), feature_dim=8)).save(folder / name)
    value: dict[str, Any] = {
        "name": "tiny",
        "source": {"path": str(tiny_folder), "null_class": 10},
        "sampler": {"steps": 4, "guidance": {"cfg": 0.5}, "clip": 1.0},
        "data": {k: str(folder / f"{k}.safetensors") for k in ("training", "held_out")},
        "passes": [
            {"prune": {"budget": {"macs": 0.3}, "batch": 8}},
            {"recover": {"steps": 6, "batch": 4, "checkpoint_s": 0}},
            {"distill": {"steps": 6, "batch": 4, "checkpoint_s": 0}},
            {"quantize": {"samples": 8}},
        ],
        "exports": [{"onnx": {}}],
        "benchmark": {
            "batch": [2],
            "runners": ["torch", "openvino"],
            "source_runners": [],
            "rounds": 2,
            "seconds": 0.02,
        },
        "quality": {
            "images": 32,
            "features": str(folder / "features"),
            "classifier": str(folder / "classifier"),
            "endpoint_images": 4,
            "endpoint_steps": 8,
            "replicates": 20,
        },
        "fair": {"solvers": ["ddim"], "steps": [2], "spacings": ["trailing"]},
        "gates": {"fd": {"max_ratio": 1e9}, "class_accuracy": {"max_drop": 1.0}},
        "targets": {"speedup_vs_baseline": 1e9},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(value))
    return path


def command(recipe: Path | str, exported: Path) -> list[str]:
    return [sys.executable, "-m", "optimize", "run", str(recipe), "--exported", str(exported)]


def weights(exported: Path, name: str = "tiny") -> dict[str, Any]:
    """Hashes of the files that define every variant."""
    files = {n: verify(exported / name / n)["files"] for n in STAGES}
    return {n: {k: v["sha256"] for k, v in f.items()} for n, f in files.items()}


@pytest.fixture(scope="session")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exported = tmp_path_factory.mktemp("exported")
    done = subprocess.run(command(recipe, exported), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return exported


def summary(exported: Path) -> dict[str, Any]:
    return json.loads((exported / "tiny" / "summary.json").read_text())


def test_a_run_leaves_every_variant_a_summary_and_reports(finished: Path) -> None:
    found = summary(finished)
    assert found["gates_passed"] and not found["targets_met"]
    assert {r["variant"] for r in found["rows"]} >= {*STAGES, "fair"}
    assert all(r["status"] == "done" for r in found["rows"]), [r["reason"] for r in found["rows"]]
    for name in (
        "report.html",
        "report.md",
        "samples/grid.png",
        "measurements.jsonl",
        "recipe.resolved.yaml",
        "run.log",
    ):
        assert (finished / "tiny" / name).stat().st_size > 0
    for name in STAGES:
        assert (finished / "tiny" / name / "onnx" / "model.onnx").exists()


def test_the_same_recipe_in_another_folder_finds_every_stage_and_its_resolved_form_does_from_anywhere(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    value = yaml.safe_load(recipe.read_text())
    for place, field in (("source", "path"), ("data", "training"), ("data", "held_out"), ("quality", "features")):
        value[place][field] = os.path.relpath(value[place][field], tmp_path / "sub")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "tiny.yaml").write_text(yaml.safe_dump(value))
    exported = Path(shutil.copytree(finished, tmp_path / "exported"))
    before = {p.name for p in (exported / ".cache").iterdir()}
    for asked in ("sub/tiny.yaml", str(exported / "tiny" / "recipe.resolved.yaml")):
        done = subprocess.run(command(asked, exported), capture_output=True, text=True, timeout=500, cwd=tmp_path)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert {p.name for p in (exported / ".cache").iterdir()} == before
    resolved = yaml.safe_load((exported / "tiny" / "recipe.resolved.yaml").read_text())
    assert Path(resolved["quality"]["features"]).is_absolute()


def test_the_factors_multiply_to_the_whole_speed_up(finished: Path) -> None:
    found = summary(finished)
    final = next(r for r in found["rows"] if r["variant"] == "final")
    product = 1.0
    for value in found["factors"].values():
        product *= value
    assert product == pytest.approx(final["speedup"]["vs_baseline"]["ratio"], rel=1e-6)


def test_the_final_row_counts_two_evaluations_an_image(finished: Path) -> None:
    rows = {r["variant"]: r for r in summary(finished)["rows"]}
    assert rows["baseline"]["nfe"] == 8 and rows["final"]["nfe"] == 2
    assert rows["final"]["macs"] < 0.8 * rows["baseline"]["macs"]


def test_the_same_command_again_finds_everything_and_imports_no_torch(recipe: Path, finished: Path) -> None:
    before, start = summary(finished), time.perf_counter()
    code = "import sys\nfrom optimize.cli.app import app\ntry: app()\nexcept SystemExit as e: assert not e.code, e\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *command(recipe, finished)[3:]], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert summary(finished) == before
    assert time.perf_counter() - start < 60


def kill_at_random_moments(line: list[str], moments: random.Random, longest_s: float, times: int) -> int:
    """Start a command again and again, kill -9 it at random; how often it was killed before it could end."""
    for killed in range(times):
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(moments.uniform(4, longest_s))
            return killed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    return times


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_kill_9_at_random_moments_then_the_same_command_gives_the_same_bits(
    recipe: Path, finished: Path, tmp_path: Path, attempt: int
) -> None:
    line = command(recipe, tmp_path)
    assert kill_at_random_moments(line, random.Random(attempt), 25, times=6)
    done = subprocess.run(line, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    assert weights(tmp_path) == weights(finished)


@pytest.mark.slow
def test_the_smoke_recipe_survives_kill_9_with_the_same_bits(tmp_path: Path) -> None:
    whole, broken = command("smoke", tmp_path / "whole"), command("smoke", tmp_path / "broken")
    assert kill_at_random_moments(broken, random.Random(0), 30, times=4)
    for line in (broken, whole):
        done = subprocess.run(line, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr[-2000:]
    assert weights(tmp_path / "broken", "smoke") == weights(tmp_path / "whole", "smoke")


@pytest.mark.slow
def test_two_equal_runs_at_once_and_gc_beside_them_end_with_the_same_bits(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    both = [
        subprocess.Popen(command(recipe, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    emptied = [sys.executable, "-m", "optimize", "gc", "--exported", str(tmp_path)]
    while both[0].poll() is None:
        assert subprocess.run(emptied, stdout=subprocess.DEVNULL, timeout=60).returncode == 0
        time.sleep(1)
    said = [process.communicate(timeout=600)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert any("another optimize command is at work on it; this one waits" in s for s in said)
    assert weights(tmp_path) == weights(finished)
    assert not [p.name for p in (tmp_path / "tiny").iterdir() if p.name.startswith((".tmp-", ".lock-"))]


@pytest.mark.slow
def test_a_run_on_disks_that_are_too_small_goes_on_where_there_is_more_room(
    recipe: Path, finished: Path, tmp_path: Path
) -> None:
    if subprocess.run(["unshare", "-Urm", "sh", "-c", "true"]).returncode:
        pytest.skip("no namespaces here")
    line, kept, codes = " ".join(command(recipe, tmp_path / "disk")), tmp_path / "kept", []
    for place in (tmp_path / "disk", kept):
        place.mkdir()
    for size in range(300, 100_000, 900):  # kilobytes
        mounted = f"mount -t tmpfs -o size={size}k none disk && cp -r kept/. disk"
        act = f"{mounted} || exit 99; {line}; code=$?; rm -r kept; cp -r disk kept; exit $code"
        done = subprocess.run(
            ["unshare", "-Urm", "sh", "-c", act], capture_output=True, text=True, cwd=tmp_path, timeout=900
        )
        codes.append(done.returncode)
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        if done.returncode == 0:
            break
        if done.returncode != 99:  # what is kept fits, and there was no room for the next
            assert done.returncode == 3 and "the disk is full" in done.stderr, done.stderr[-2000:]
            assert not [p for p in kept.rglob("*") if "~" in p.name], "half of something is left"
    assert codes[-1] == 0 and codes.count(3) >= 10, codes
    assert weights(kept) == weights(finished)


def test_two_recipes_that_share_stages_share_their_work(recipe: Path, finished: Path, tmp_path: Path) -> None:
    value = yaml.safe_load(recipe.read_text())
    value["name"], value["passes"] = "shorter", value["passes"][:1]
    other = tmp_path / "shorter.yaml"
    other.write_text(yaml.safe_dump(value))
    before = {p.name for p in (finished / ".cache").iterdir()}
    done = subprocess.run(command(other, finished), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    pruned = verify(finished / "shorter" / "prune")["files"]["model.safetensors"]
    assert pruned == verify(finished / "tiny" / "prune")["files"]["model.safetensors"]
    assert before <= {p.name for p in (finished / ".cache").iterdir()}
