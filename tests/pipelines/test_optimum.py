"""optimum's own pipelines load what was exported, unchanged, and draw what diffusers draws: in an environment of its own.

optimum-onnx 0.1 wants transformers 4.57, so the environment is made once, under a folder that OPTIMIZE_ENVIRONMENTS names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.tiny_pipelines import (
    flux,
    lora_tensors,
    sd3,
    text_lora_tensors,
    transformer_lora_tensors,
    write_pipeline,
    write_transformer_pipeline,
)

from optimize.delivery.as_onnx import export_model, load_network
from optimize.pipelines.whole import export_pipeline

pytestmark = pytest.mark.slow
PACKAGES = ("optimum-onnx==0.1.0", "transformers==4.57.*", "diffusers==0.36.*", "onnxruntime", "accelerate", "peft")
DRAW = textwrap.dedent(
    """
    import json, sys
    from pathlib import Path
    import diffusers, numpy as np, torch
    from diffusers.pipelines import DiffusionPipeline
    from optimum import onnxruntime as ort

    source, exported, name, options, lora = *sys.argv[1:4], json.loads(sys.argv[4]), sys.argv[5]
    index = json.loads((Path(source) / "model_index.json").read_text())
    gone = {part: None for part, about in index.items() if part.endswith("_3") and about == [None, None]}
    theirs = getattr(diffusers, name).from_pretrained(source, **gone)
    if lora:
        theirs.load_lora_weights(str(Path(lora).parent), weight_name=Path(lora).name)
        theirs.fuse_lora(lora_scale=0.8)
    ours = getattr(ort, f"ORT{name}").from_pretrained(exported, export=False)

    def draw(pipeline):
        pipeline.set_progress_bar_config(disable=True)
        given = dict(options)
        if "image" in given:
            given["image"] = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        if "mask_image" in given:
            given["mask_image"] = (torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(2)) > 0.5).float()
        return pipeline(generator=torch.Generator().manual_seed(0), output_type="np", **given).images

    a, b = draw(theirs), draw(ours)
    other = theirs("dog", **{k: v for k, v in options.items() if k in ("num_inference_steps", "height", "width")},
                   generator=torch.Generator().manual_seed(3), output_type="np").images if "image" not in options else a + 1
    print(json.dumps({"shape": a.shape, "largest": float(np.abs(a - b).max()), "spread": float(a.std()),
                      "other": float(np.abs(a - other).max()), "classes": [type(getattr(ours, "unet", None) or ours.transformer).__name__]}))
    """
)


def environment() -> Path:
    """The interpreter of the environment, made where it is not there yet."""
    root = Path(os.environ.get("OPTIMIZE_ENVIRONMENTS", Path.home() / ".cache" / "diffusion-optimize"))
    place = root / f"optimum-0.1-python{sys.version_info.major}.{sys.version_info.minor}"
    python, done = place / "bin" / "python", place / "complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        version = torch.__version__.split("+")[0]
        for packages in ((f"torch=={version}",), (f"torch=={version}", *PACKAGES)):  # torch first: nothing pulls CUDA
            subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True, timeout=1800)
        done.touch()
    return python


def drawn(tmp_path: Path, source: Path, name: str, lora: str = "", **options: Any) -> dict[str, Any]:
    out = tmp_path / "out"
    export_pipeline(source, out, lora=[f"{lora}:0.8"] if lora else [])
    return compared(source, out, name, lora, **options)


def compared(source: Path, out: Path, name: str, lora: str = "", **options: Any) -> dict[str, Any]:
    """What diffusers draws from `source` and optimum from `out`, side by side in the environment."""
    command = [str(environment()), "-c", DRAW, str(source), str(out), name, json.dumps(options), lora]
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    quiet.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=quiet, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(name, found)  # the measured differences, shown by pytest -rP
    return found


SMALL = {"prompt": "a cat", "num_inference_steps": 4, "guidance_scale": 5.0}
TOLERANCE = 1e-4  # of pixels in [0, 1]


@pytest.mark.parametrize("xl", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize("size", [(16, 16), (24, 16)], ids=str)
def test_optimum_draws_what_diffusers_draws(tmp_path: Path, xl: bool, size: tuple[int, int]) -> None:
    name = "StableDiffusionXLPipeline" if xl else "StableDiffusionPipeline"
    source = write_pipeline(tmp_path / "source", xl=xl)
    found = drawn(tmp_path, source, name, **SMALL, height=size[0], width=size[1])
    assert found["shape"] == [1, *size, 3] and found["classes"] == ["ORTUnet"]
    assert found["largest"] < TOLERANCE < 0.01 < found["other"], found


def test_a_merged_lora_draws_what_diffusers_fused_pipeline_draws(tmp_path: Path) -> None:
    source, style = write_pipeline(tmp_path / "source"), tmp_path / "style.safetensors"
    marks = {".A": ".lora_A.weight", ".B": ".lora_B.weight"}
    parts = {"unet": lora_tensors(), "text_encoder": text_lora_tensors()}
    save_file({f"{n}.{k[:-2]}{marks[k[-2:]]}": v for n, t in parts.items() for k, v in t.items()}, style)
    found = drawn(tmp_path, source, "StableDiffusionPipeline", str(style), **SMALL, height=16, width=16)
    assert found["largest"] < TOLERANCE < 0.01 < found["other"], found


def test_optimum_draws_from_a_picture_as_diffusers_does(tmp_path: Path) -> None:
    source = write_pipeline(tmp_path / "source")
    found = drawn(tmp_path, source, "StableDiffusionImg2ImgPipeline", **SMALL, image=True, strength=0.8)
    assert found["largest"] < TOLERANCE < found["spread"], found


def test_optimum_paints_in_as_diffusers_does_with_nine_channels(tmp_path: Path) -> None:
    source = write_pipeline(tmp_path / "source", in_channels=9)
    index = json.loads((source / "model_index.json").read_text())
    (source / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionInpaintPipeline"}))
    asked = {**SMALL, "image": True, "mask_image": True, "height": 16, "width": 16}
    found = drawn(tmp_path, source, "StableDiffusionInpaintPipeline", **asked)
    assert found["largest"] < TOLERANCE < found["spread"], found


# pipelines with a transformer

Pair = tuple[Path, Path]  # a pipeline's folder and its export


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """{kind: (source, exported)} of Stable Diffusion 3 and Flux."""
    made = {}
    for kind in ("sd3", "flux"):
        folder = tmp_path_factory.mktemp(kind)
        made[kind] = (write_transformer_pipeline(folder / "source", kind), folder / "out")
        export_pipeline(*made[kind])
    return made


NAMES = {"sd3": "StableDiffusion3Pipeline", "flux": "FluxPipeline"}


@pytest.mark.parametrize("kind", ["sd3", "flux"])
@pytest.mark.parametrize("size", [(16, 16), (24, 16)], ids=str)
def test_optimum_draws_what_diffusers_draws_with_a_transformer(
    pairs: dict[str, Pair], kind: str, size: tuple[int, int]
) -> None:
    found = compared(*pairs[kind], NAMES[kind], **SMALL, height=size[0], width=size[1])
    assert found["shape"] == [1, *size, 3] and found["classes"] == ["ORTTransformer"]
    assert found["largest"] < TOLERANCE < 0.01 < found["other"], found


def test_sd3_draws_without_its_third_text_encoder(tmp_path: Path) -> None:
    source = write_transformer_pipeline(tmp_path / "source", t5=False)
    found = drawn(tmp_path, source, "StableDiffusion3Pipeline", **SMALL, height=16, width=16)
    assert found["largest"] < TOLERANCE < 0.01 < found["other"], found


def test_flux_without_distilled_guidance_draws_guided_by_two_prompts(tmp_path: Path) -> None:
    source = write_transformer_pipeline(tmp_path / "source", "flux", guidance_embeds=False)
    asked = {**SMALL, "negative_prompt": "a dog", "true_cfg_scale": 3.0, "height": 16, "width": 16}
    found = drawn(tmp_path, source, "FluxPipeline", **asked)
    assert found["largest"] < TOLERANCE < 0.01 < found["other"], found


@pytest.mark.parametrize("kind", ["sd3", "flux"])
def test_a_lora_merged_into_a_transformer_draws_what_diffusers_fused_pipeline_draws(
    pairs: dict[str, Pair], tmp_path: Path, kind: str
) -> None:
    source, style = pairs[kind][0], tmp_path / "style.safetensors"
    tensors = transformer_lora_tensors({"sd3": sd3, "flux": flux}[kind]())
    marks = {".A": ".lora_A.weight", ".B": ".lora_B.weight"}
    save_file({f"transformer.{k[:-2]}{marks[k[-2:]]}": v for k, v in tensors.items()}, style)
    found = drawn(tmp_path, source, NAMES[kind], str(style), **SMALL, height=16, width=16)
    plain = compared(source, tmp_path / "out", NAMES[kind], **SMALL, height=16, width=16)
    assert found["largest"] < TOLERANCE < 0.01 < plain["largest"], (found, plain)


@pytest.mark.parametrize("use", ["Img2Img", "Inpaint"])
def test_sd3_draws_from_a_picture_and_paints_in_as_diffusers_does(tmp_path: Path, use: str) -> None:
    name = f"StableDiffusion3{use}Pipeline"
    source = write_transformer_pipeline(tmp_path / "source", name=name, in_channels=16, out_channels=16)
    asked = {"image": True, "height": 16, "width": 16, **({"mask_image": True} if use == "Inpaint" else {})}
    found = drawn(tmp_path, source, name, **SMALL, **asked, strength=0.8)
    assert found["largest"] < TOLERANCE < found["spread"], found


def test_a_smaller_transformers_artifact_draws_as_a_pipeline_with_it_does(
    pairs: dict[str, Pair], tmp_path: Path
) -> None:
    smaller = write_transformer_pipeline(tmp_path / "smaller", num_layers=1, dual_attention_layers=())
    export_model(load_network(smaller), tmp_path / "artifact")
    export_pipeline(pairs["sd3"][0], tmp_path / "out", denoiser=tmp_path / "artifact")
    found = compared(smaller, tmp_path / "out", NAMES["sd3"], **SMALL, height=24, width=16)
    other = compared(pairs["sd3"][0], tmp_path / "out", NAMES["sd3"], **SMALL, height=24, width=16)
    assert found["largest"] < TOLERANCE < 0.01 < other["largest"], (found, other)
