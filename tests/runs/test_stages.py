"""Where passes compute."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.sampling import write_sampling

from optimize.diffusion.sampling import Sampler
from optimize.errors import UserError
from optimize.hardware import environment
from optimize.hardware.targets import targets
from optimize.progress import silent
from optimize.recipes.read import load
from optimize.runs import stages


@pytest.mark.parametrize(
    ("found", "asked", "torch_can", "device"),
    [
        ("a100", "here", True, "cuda"),
        ("a100", "a100", True, "cuda"),
        ("a100", "cpu", True, "cpu"),
        ("a100", "here", False, "cpu"),
        ("cpu", "here", True, "cpu"),
    ],
)
def test_passes_compute_on_the_gpu_found_unless_the_recipe_is_for_the_cpu(
    monkeypatch: pytest.MonkeyPatch, found: str, asked: str, torch_can: bool, device: str
) -> None:
    facts: dict[str, Any] = {}
    monkeypatch.setattr(stages, "here", lambda: (targets()[found], facts))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_can)
    recipe = load("smoke").model_copy(update={"target": asked})
    assert stages.pass_device(recipe) == device


@pytest.mark.parametrize(
    ("asked", "threads"), [("1", 1), ("7", 7), ("", environment.cores()), ("0", environment.cores())]
)
def test_results_are_kept_by_the_threads_that_made_them(
    monkeypatch: pytest.MonkeyPatch, asked: str, threads: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert stages._numerics()["threads"] == threads


def test_options_that_a_kind_of_source_does_not_take_are_refused() -> None:
    recipe = load("smoke")
    asked = recipe.source.model_copy(update={"network": "a:B"})
    with pytest.raises(UserError, match=r"source: kind diffusers does not take all of network"):
        stages._source(recipe.model_copy(update={"source": asked}))


def test_training_data_may_be_latents_with_conditions_by_input_name(tmp_path: Path) -> None:
    latents, text = torch.randn(4, 4, 8, 8) * 3, torch.randn(4, 7, 32)
    save_file({"latents": latents, "encoder_hidden_states": text}, tmp_path / "d.safetensors")
    data = stages.load_data(tmp_path / "d.safetensors", "data.training")
    assert torch.equal(data.images, latents) and torch.equal(data.conditions["encoder_hidden_states"], text)
    save_file({"images": latents}, tmp_path / "d.safetensors")
    with pytest.raises(UserError, match=r"images lie in \[.*\]; scale them to \[-1, 1\]"):
        stages.load_data(tmp_path / "d.safetensors", "data.training")
    save_file({"latents": latents / 0}, tmp_path / "d.safetensors")
    with pytest.raises(UserError, match="latents hold NaN or infinities, first in row 0"):
        stages.load_data(tmp_path / "d.safetensors", "data.training")
    save_file({"text": text}, tmp_path / "d.safetensors")
    with pytest.raises(UserError, match=r"has no tensor `images` .* it holds text"):
        stages.load_data(tmp_path / "d.safetensors", "data.training")


def on(monkeypatch: pytest.MonkeyPatch, name: str, card: str = "") -> None:
    """This machine has a card of the class `name`."""
    facts = {"name": card or targets()[name].title, "sm": targets()[name].sm}
    monkeypatch.setattr(stages, "here", lambda: (targets()[name], facts))


def test_engines_for_here_are_found_again_on_the_same_card_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from optimize.exporters.onnx import Onnx
    from optimize.exporters.tensorrt_rtx import TensorrtRtx

    exports, found = [Onnx(), TensorrtRtx()], []
    for name, card in (("a100", "A100 40GB"), ("a100", "A100 80GB"), ("rtx3090", ""), ("rtx3090", "")):
        on(monkeypatch, name, card)
        found.append(str(stages.card_of(exports)))
        assert stages.card_of([Onnx(), TensorrtRtx(targets=("a100",))]) == {}
    assert len(set(found)) == 3 and found[2] == found[3] and "8, 6" in found[2]
    monkeypatch.setattr(stages, "here", lambda: (targets()["cpu"], {"name": "cpu"}))
    assert stages.card_of(exports) == {}


def test_engines_whose_kernels_are_timed_are_of_the_card_whatever_class_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from optimize.exporters.tensorrt import Tensorrt

    found = []
    for card in ("NVIDIA A10", "NVIDIA GeForce RTX 3090"):
        on(monkeypatch, "rtx3090", card)
        found.append(stages.card_of([Tensorrt(targets=("rtx3090",))])["gpu"])
    assert found[0] != found[1]


class Keys:
    """A store that only notes what its stages depend on."""

    def __init__(self) -> None:
        self.noted: list[dict[str, Any]] = []

    def stage(self, name: str, key: dict[str, Any], compute: Any) -> Any:
        self.noted.append(key)
        return SimpleNamespace(folder=Path())


@pytest.mark.parametrize("name", ["parity", "images"])
def test_what_runs_on_a_gpu_is_found_again_on_the_same_card_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another card may refuse a runner, and rounds otherwise."""
    monkeypatch.setattr(stages, "read_json", lambda path: {})
    store: Any = Keys()
    variant: Any = SimpleNamespace(id="x", name="v")
    for card in ("NVIDIA A10", "NVIDIA GeForce RTX 3090", "NVIDIA A10"):
        monkeypatch.setattr(environment, "gpus", lambda card=card: ({"name": card, "sm": (8, 6)},))
        if name == "parity":
            stages._parity_stage(store, "v", variant, ["torch"], 1, silent)
        else:
            stages.images_stage(store, variant, "torch", Sampler(steps=1), 4, 2, silent)
    first, other, again = store.noted
    assert first == again != other


def sampled(folder: Path, **guidance: Any) -> dict[str, Any]:
    """A folder with how its model is sampled."""
    guided = {"cfg": None, "batched": True} | guidance
    write_sampling(folder, sampler={"solver": "ddim", "steps": 2, "guidance": guided})
    return {}


@pytest.mark.parametrize(
    ("guidance", "batch", "best"),
    [
        ({}, (1, 4, 8, 20), 8),
        ({"cfg": 0.5}, (1, 2, 4, 8, 16, 20, 40), 16),
        ({"cfg": 0.0}, (1, 2, 4, 8, 16, 20, 40), 16),
        ({"cfg": 0.5, "batched": False}, (1, 4, 8, 20), 8),
    ],
)
def test_engines_are_planned_for_the_batches_of_the_recipe(
    guidance: dict[str, Any], batch: tuple[int, ...], best: int, tmp_path: Path
) -> None:
    from optimize.exporters.onnx import Onnx
    from optimize.exporters.tensorrt_rtx import TensorrtRtx

    plain = load("smoke")
    timed = plain.benchmark.model_copy(update={"batch": (4, 8)})
    recipe = plain.model_copy(update={"benchmark": timed, "quality": plain.quality.model_copy(update={"batch": 20})})
    sampled(tmp_path, **guidance)
    made = stages.in_use(TensorrtRtx(), recipe, tmp_path)
    assert (made.batch, made.best_batch) == (batch, best)
    assert stages.in_use(TensorrtRtx(best_batch=1), recipe, tmp_path).best_batch == 1
    given = TensorrtRtx(batch=(2,))
    assert stages.in_use(given, recipe, tmp_path) is given and stages.in_use(Onnx(), recipe, tmp_path) == Onnx()


def test_another_card_computes_the_export_anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from optimize.exporters.tensorrt_rtx import TensorrtRtx
    from optimize.storage.cache import Store

    written: list[str] = []

    def export(self: Any, model: Any, folder: Path, context: Any) -> dict[str, Any]:
        written.append(stages.here()[1]["name"])
        return {}

    monkeypatch.setattr(TensorrtRtx, "export", export)
    monkeypatch.setattr(stages, "open_model", lambda stage: None)
    monkeypatch.setattr("optimize.diffusion.macs.count", lambda model: {})
    recipe = load("smoke").model_copy(update={"exports": (TensorrtRtx(),)})
    store = Store(tmp_path)
    made = store.stage("source", {}, lambda folder, work: sampled(folder))
    ids = set()
    for card in ("NVIDIA A10", "NVIDIA GeForce RTX 3090", "NVIDIA A10"):
        on(monkeypatch, "rtx3090", card)
        ids.add(stages.export_stage(store, recipe, "final", made, [], silent).id)
    assert written == ["NVIDIA A10", "NVIDIA GeForce RTX 3090"] and len(ids) == 2


def test_here_of_an_exporter_is_the_recipes_target() -> None:
    from optimize.exporters.onnx import Onnx
    from optimize.exporters.tensorrt_rtx import TensorrtRtx

    asked = TensorrtRtx(targets=("here", "v100"))
    assert stages.meant_for(asked, "a100").targets == ("a100", "v100")
    assert stages.meant_for(asked, "here") is asked
    assert stages.meant_for(Onnx(), "a100") == Onnx()
