"""The independent program: it imports nothing of the library and its own loop gives the library's figures."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from optimize import rng
from optimize.architectures import artifact
from optimize.diffusion.model import Model
from optimize.diffusion.sampling import Guidance, Sampler
from optimize.quality.frechet import frechet_distance

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "verify_digits.py"
EXAMPLE = ROOT / "examples" / "digits"


@pytest.fixture(scope="module")
def verify() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verify_digits", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_call(model: Model) -> Any:
    def call(feed: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return model.denoiser.network(**{k: torch.from_numpy(v) for k, v in feed.items()}).numpy()

    return call


def test_it_imports_nothing_of_the_library() -> None:
    tree = ast.parse(PROGRAM.read_text())
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert names and not [n for n in names if n.split(".")[0] == "optimize"]


def test_its_noise_is_the_librarys(verify: ModuleType) -> None:
    own = np.stack([verify.unit_noise(s, (1, 4, 4)) for s in range(3, 7)])
    assert np.array_equal(own, rng.noise(range(3, 7), (1, 4, 4)))


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(cfg=0.5), Guidance(folded=0.5)])
def test_its_loop_draws_the_librarys_images(verify: ModuleType, tiny_model: Model, guidance: Guidance) -> None:
    from dataclasses import replace

    model = replace(tiny_model, sampler=Sampler(steps=3, clip=1.0, guidance=guidance))
    sampling = json.loads(json.dumps(artifact.sampler_json(model)))
    own = verify.draw(torch_call(model), sampling, range(12))
    assert np.abs(own - model.sample(range(12)).numpy()).max() < 1e-4


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v"])
def test_it_reads_every_prediction_type_as_the_library_does(verify: ModuleType, prediction: Any) -> None:
    from optimize.diffusion.parameterization import Parameterization

    raw, z = rng.normal((2, 3), "raw"), rng.normal((2, 3), "z")
    at = {"alpha": 0.6, "sigma": 0.8}
    own = verify.read({"parameterization": {"prediction": prediction}}, raw, z, at)
    for a, b in zip(own, Parameterization(prediction).split(torch.tensor(raw), torch.tensor(z), 0.6, 0.8)):
        assert np.allclose(a, b.numpy(), atol=1e-6)


def test_its_frechet_distance_is_the_librarys(verify: ModuleType) -> None:
    a, b = rng.normal((400, 8), "a").astype(np.float64), 1.3 * rng.normal((300, 8), "b") + 0.2
    assert verify.frechet(a, b) == pytest.approx(frechet_distance(a, b), rel=1e-6)


@pytest.mark.skipif(not (EXAMPLE / "features" / "config.json").exists(), reason="the example is not there")
@pytest.mark.parametrize("name", ["features", "classifier"])
def test_its_judging_networks_are_the_shipped_ones(verify: ModuleType, name: str) -> None:
    from optimize.quality.judges.image_classifier import ImageClassifier

    network, images = ImageClassifier.load(EXAMPLE / name), rng.normal((6, 1, 16, 16), "images").clip(-1, 1)
    features, logits = verify.judge(EXAMPLE / name, images)
    with torch.inference_mode():
        x = torch.from_numpy(images)
        assert np.allclose(features, network.features(x).numpy(), atol=1e-4)
        assert np.allclose(logits, network(x).numpy(), atol=1e-4)


def test_missing_files_are_named_and_end_with_2(
    verify: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main(["--summary", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


@pytest.fixture
def run_files(verify: ModuleType, tiny_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny run whose summary was made of the program's own scores; the network stands in for ONNX Runtime."""
    if not (EXAMPLE / "features" / "config.json").exists():
        pytest.skip("the example is not there")
    monkeypatch.setitem(verify.BACKENDS, "onnxruntime", lambda *_: torch_call(tiny_model))
    monkeypatch.setattr(verify, "latency_ms", lambda *_: {"call": 1.0, "image": 2.0})
    (tmp_path / "model.onnx").write_bytes(b"12345")
    (tmp_path / "sampler.json").write_text(json.dumps(artifact.sampler_json(tiny_model)))
    scans = [str(tmp_path / f"{n}.safetensors") for n in ("training", "held_out")]
    for path in scans:
        save_file({"images": load_file(EXAMPLE / Path(path).name)["images"][:100]}, path)
    flags = [f"--{k}={tmp_path / v}" for k, v in (("model", "model.onnx"), ("sampler", "sampler.json"))]
    flags += [f"--{n}={EXAMPLE / n}" for n in ("features", "classifier")]
    flags += [f"--summary={tmp_path / 'summary.json'}", "--images=50", "--scans", *scans]
    scores = verify.Run(verify.arguments(flags)).scores(
        verify.draw(torch_call(tiny_model), json.loads((tmp_path / "sampler.json").read_text()), range(50))
    )
    times = {f"{k}_latency_ms": {"p50": v} for k, v in (("call", 1.1), ("image", 9.0))}
    row = {"variant": "final", "artifact_id": "a", "runner": "onnxruntime", "precision": "fp32", "batch": 16}
    quality = {k: {"value": v, "n": 50} for k, v in scores.items()}
    row |= {"status": "done", "size_bytes": 5, "quality": quality, **times}
    (tmp_path / "summary.json").write_text(json.dumps({"rows": [row]}))
    return flags


def test_agreement_ends_with_0_and_latency_is_informative(
    verify: ModuleType, run_files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main(run_files) == 0
    told = capsys.readouterr().out
    assert "all 6 figures agree" in told and "differs (informative)" in told


@pytest.mark.parametrize(
    ("figure", "change"), [("fd", 1.06), ("class_accuracy", None), ("fd_held_out", 0.9), ("size", None)]
)
def test_a_figure_that_differs_ends_with_1_and_is_named(
    verify: ModuleType,
    run_files: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    figure: str,
    change: float,
) -> None:
    path = tmp_path / "summary.json"
    summary = json.loads(path.read_text())
    row = summary["rows"][0]
    if figure == "size":
        row["size_bytes"] = 6
    else:
        entry = row["quality"][figure]
        entry["value"] = entry["value"] * change if change else entry["value"] + 0.006
    path.write_text(json.dumps(summary))
    assert verify.main(run_files) == 1
    told = capsys.readouterr().out
    assert f"1 of 6 figures differ: {figure}" in told
