"""A network that gives NaN fails its gate with the reason, also through a runtime that hides it; nothing of it is judged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.not_finite import HIDING, INPUTS, artifact, hiding

from optimize import rng
from optimize.errors import GateFailed
from optimize.progress import silent
from optimize.quality import worker
from optimize.recipes.read import load
from optimize.recipes.schema import Gates
from optimize.runs import execute, fair, gates, rounded, stages
from optimize.runs.stages import Variant
from optimize.storage.cache import Stage, Store

KINDS: dict[str, dict[str, bool]] = {"sound": {}, "poisoned": {"poisoned": True}, "overflowing": {"overflow": True}}


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Variant]:
    made = {}
    for name, network in KINDS.items():
        folder = tmp_path_factory.mktemp(name)
        place = artifact(folder / "a", hiding(folder, **network))
        made[name] = Variant("baseline", "source", Stage(name, "export", place, {}, 0.0, False), {})
    return made


@pytest.mark.parametrize("spec", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", ["poisoned", "overflowing"])
def test_images_of_a_network_that_gives_nan_are_not_kept(
    variants: dict[str, Variant], tmp_path: Path, spec: str, kind: str
) -> None:
    broken = variants[kind]
    sampler, store = broken.model.sampler, Store(tmp_path / "store")
    words = "torch network gives" if spec == "openvino" else "gives"
    with pytest.raises(
        GateFailed, match=rf"quality: baseline on {spec} .*{words} NaN or infinities at timestep 999"
    ) as e:
        stages.images_stage(store, broken, spec, sampler, 3, 2, silent)
    assert ("hides" in str(e.value)) == (spec == "openvino")


def test_a_process_that_draws_a_share_sees_it_as_well(variants: dict[str, Variant], tmp_path: Path) -> None:
    broken = variants["overflowing"]
    about = {"folder": str(broken.folder), "options": {}, "sampler": broken.model.sampler.to_json()}
    for runner, words in (("openvino", "hides that the torch network gives"), ("torch", "torch gives")):
        with (
            pytest.raises(GateFailed, match=rf"{words} NaN or infinities"),
            worker._images(about | {"runner": runner}, None, tmp_path) as compute,  # type: ignore[arg-type]
        ):
            compute(0, 2)


def test_a_sound_network_is_drawn_as_ever(variants: dict[str, Variant], tmp_path: Path) -> None:
    sound = variants["sound"]
    drawn = stages.images_stage(Store(tmp_path / "s"), sound, "openvino", sound.model.sampler, 3, 2, silent)
    assert torch.allclose(stages.images(drawn), sound.model.sample(range(3), 2), atol=1e-4)


def test_what_was_not_judged_fails_a_gate_that_says_why() -> None:
    sound = {"fd": {"value": 1.0}}
    for pair in (({"failed": "NaN at 999"}, sound), (sound, {"failed": "NaN at 999"})):
        found = gates.quality_gates(Gates(), *pair, {"value": 0.0})
        assert list(found) == ["finite"] and not gates.hold(found) and found["finite"]["note"] == "NaN at 999"
    assert gates.hold(gates.quality_gates(Gates(), sound, sound, {"value": 0.1}))


def test_a_parity_of_something_that_is_not_finite_does_not_hold_however_near() -> None:
    near = {"relative_l2": 1e-7, "max_abs": 0.0}
    assert gates.parity_gate(Gates(), near, "fp32")["holds"]
    found = gates.parity_gate(Gates(), near | {"not_finite": "NaN at 999"}, "fp32")
    assert not found["holds"] and found["note"] == "NaN at 999"


def test_a_parity_that_is_far_for_latents_of_one_value_alone_does_not_hold() -> None:
    found = gates.parity_gate(Gates(), {"relative_l2": 1e-7, "edges": [{"t": 0, "relative_l2": 0.5}]}, "fp32")
    assert not found["holds"] and (found["value"], found["note"]) == (0.5, "for latents of one value")


def test_a_fair_candidate_that_is_not_finite_is_a_row_with_the_reason(tmp_path: Path) -> None:
    recipe = load("smoke")
    model = hiding(tmp_path)
    refused = gates.quality_gates(recipe.gates, {"failed": "NaN at 999"}, {}, {"value": 0.0})
    assert recipe.fair is not None
    chosen, rows = fair.search(
        recipe.fair, recipe.sampler, model.denoiser.schedule, lambda s: ({"failed": "NaN"}, refused)
    )
    assert (
        chosen is None and rows and {r["reason"] for r in rows} == {"NaN at 999"} and not any(r["passes"] for r in rows)
    )


def test_a_16_bit_file_that_overflows_is_found_though_its_only_runner_widens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that FP16 holds, products that it does not, and an exporter that did not see it."""
    model = hiding(tmp_path)
    near = {"torch": {"relative_l2": 0.0}, "openvino": {"relative_l2": 1e-3}}
    assert rounded.as_stored(near, artifact(tmp_path / "fits", model, precision="fp16"), "fp16", model) == near
    model.module.first.weight.data *= 1e5
    monkeypatch.setattr("optimize.onnx.overflow.overflowing", lambda *_: {})
    found = rounded.as_stored(near, artifact(tmp_path / "wide", model, precision="fp16"), "fp16", model)
    assert found["torch"] == near["torch"]
    assert found["openvino"]["not_finite"].startswith(
        "computed in fp16 as it is stored, the file as it is run gives NaN"
    )


def test_runners_of_an_fp32_file_and_those_that_round_are_taken_at_their_word(tmp_path: Path) -> None:
    found = {"openvino": {"relative_l2": 0.0}}
    assert rounded.as_stored(found, tmp_path, "fp32", None) is found  # type: ignore[arg-type]
    both = found | {"onnxruntime": {"relative_l2": 0.0}}
    assert rounded.as_stored(both, tmp_path, "fp16", None) is both  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_of_a_network_that_overflows_at_large_noise_ends_with_failed_gates(tmp_path: Path) -> None:
    from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig

    hiding(tmp_path, overflow=True)
    for name, count in (("training", 64), ("held_out", 40)):
        images = torch.from_numpy(rng.normal((count, 1, 8, 8), name)).clamp(-1, 1)
        save_file({"images": images}, tmp_path / f"{name}.safetensors")
    ImageClassifier(ImageClassifierConfig(widths=(4, 8), feature_dim=8)).save(tmp_path / "features")
    value = {
        "name": "broken",
        "source": {"kind": "module", "path": "weights.safetensors", "network": HIDING, "inputs": INPUTS, "arguments": {"overflow": True}},
        "sampler": {"steps": 2, "clip": 1.0},
        "data": {k: f"{k}.safetensors" for k in ("training", "held_out")},
        "passes": [],
        "exports": [{"onnx": {}}],
        "benchmark": {"batch": [2], "runners": ["openvino"], "source_runners": [], "rounds": 2, "seconds": 0.02},
        "quality": {"images": 32, "features": "features", "endpoint_images": 4, "endpoint_steps": 4, "replicates": 20},
    }  # fmt: skip
    (tmp_path / "broken.yaml").write_text(yaml.safe_dump(value))
    found = execute.run(load(str(tmp_path / "broken.yaml")), tmp_path / "exported")
    assert not found["gates_passed"] and not found["targets_met"]
    assert {r["status"] for r in found["rows"]} == {"failed"}
    assert all("torch network gives NaN or infinities at timestep" in r["reason"] for r in found["rows"])
    assert not found["gates"]["finite"]["holds"] and not found["gates"]["parity baseline openvino"]["holds"]
    assert json.loads((tmp_path / "exported" / "broken" / "summary.json").read_text())["gates_passed"] is False
    assert "NaN or infinities" in (tmp_path / "exported" / "broken" / "report.md").read_text()
