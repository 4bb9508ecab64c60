"""Networks that judge are whole or refused: a judge with random weights in it would pass anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from optimize.errors import ArtifactError
from optimize.quality.judges.image_classifier import ImageClassifier, ImageClassifierConfig
from optimize.quality.judges.inception import FidInception
from optimize.quality.judges.lpips import Lpips
from optimize.quality.judges.pretrained import load_pretrained


def dinov2(folder: Path) -> Callable[[], Any]:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return lambda: load_pretrained("dinov2", folder)


def clip(folder: Path) -> Callable[[], Any]:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": 9, "max_position_embeddings": 12, "eos_token_id": 1, "bos_token_id": 0}
    vision = small | {"image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    return lambda: load_pretrained("clip", folder)


def classifier(folder: Path) -> Callable[[], Any]:
    ImageClassifier(ImageClassifierConfig(widths=(4, 8), feature_dim=8)).save(folder)
    return lambda: ImageClassifier.load(folder)


def lpips(folder: Path) -> Callable[[], Any]:
    folder.mkdir(exist_ok=True)
    save_file(Lpips("alex").state_dict(), folder / "model.safetensors")
    return lambda: Lpips.load(folder)


JUDGES = {"dinov2": dinov2, "clip": clip, "classifier": classifier, "lpips": lpips}


@pytest.fixture(params=sorted(JUDGES))
def judge(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Callable[[], Any]]:
    """(its weights' file, how it is opened)."""
    return tmp_path / "j" / "model.safetensors", JUDGES[request.param](tmp_path / "j")


def edit(file: Path, change: Callable[[dict[str, Any], str], dict[str, Any]]) -> str:
    """Change the last floating-point tensor of a file; its name."""
    state = load_file(file)
    name = [k for k, v in state.items() if v.is_floating_point()][-1]
    save_file(change(state, name), file, {"format": "pt"})
    return name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s, n: {k: v for k, v in s.items() if k != n}, r"do not fit the network .*1 missing \("),
        (lambda s, n: s | {"x": torch.zeros(1)}, r"do not fit the network .*1 unexpected \(x\)"),
        (
            lambda s, n: s | {n: torch.zeros(3, 5, 7)},
            r"1 of another shape \(.* in the network, \[3, 5, 7\] in the file",
        ),
        (lambda s, n: s | {n: torch.full_like(s[n], torch.nan)}, r"1 with NaN or infinities \("),
        (lambda s, n: s | {n: torch.full_like(s[n], torch.inf)}, r"1 with NaN or infinities \("),
    ],
)
def test_a_judge_that_is_not_whole_is_refused_by_the_tensors_name(
    change: Callable[[dict[str, Any], str], dict[str, Any]], said: str, judge: tuple[Path, Callable[[], Any]]
) -> None:
    edit(judge[0], change)
    with pytest.raises(ArtifactError, match=said) as raised:
        judge[1]()
    assert "model.safetensors" in str(raised.value) and len(str(raised.value)) < 2000


def test_a_judge_in_half_precision_computes_in_float32(judge: tuple[Path, Callable[[], Any]]) -> None:
    whole = judge[1]().state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in load_file(judge[0]).items()}
    save_file(half, judge[0], {"format": "pt"})
    found = judge[1]().state_dict()
    assert all(torch.equal(v, whole[k].half().float() if v.is_floating_point() else whole[k]) for k, v in found.items())
    assert {v.dtype for v in found.values()} <= {torch.float32, torch.int64}


@pytest.mark.parametrize("name", ["dinov2", "clip", "classifier"])
def test_a_judge_of_an_absurd_config_is_refused_at_once(name: str, tmp_path: Path) -> None:
    opened, config = JUDGES[name](tmp_path / "j"), tmp_path / "j" / "config.json"
    about = json.loads(config.read_text())
    if name == "clip":
        about["vision_config"]["num_hidden_layers"] = 10**8
    else:
        about |= {"num_hidden_layers": 10**8} if name == "dinov2" else {"feature_dim": 10**12}
    config.write_text(json.dumps(about))
    with pytest.raises(ArtifactError, match="100000000"):
        opened()


def test_inception_lacks_counters_alone_and_may_hold_its_classifier(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in FidInception().state_dict().items() if not k.endswith("num_batches_tracked")}
    state = {k: torch.ones(1).half().expand(shape).contiguous() for k, shape in shapes.items()}
    save_file(state | {"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    network = FidInception.load(tmp_path / "w.safetensors")
    assert {v.dtype for v in network.state_dict().values()} == {torch.float32, torch.int64}
    state["Mixed_7c.branch_pool.bn.weight"][0] = torch.nan
    del state["Conv2d_1a_3x3.conv.weight"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ArtifactError, match=r"1 missing \(Conv2d_1a_3x3.conv.weight\)"):
        FidInception.load(tmp_path / "w.safetensors")
