"""The strength that peft describes beside the weights is kept, by its own rule for patterns; two that differ are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optimize.architectures.lora import read_lora
from optimize.errors import ArtifactError

LAYERS = ("down_blocks.0.attn.to_q", "down_blocks.1.attn.to_q", "down_blocks.1.attn.to_out.0")


def written(
    folder: Path, about: object = None, alpha: float | None = None, name: str = "style", prefix: str = "unet."
) -> Path:
    tensors = {f"{prefix}{n}.lora_A.weight": torch.ones(4, 3) for n in LAYERS}
    tensors |= {f"{prefix}{n}.lora_B.weight": torch.ones(2, 4) for n in LAYERS}
    tensors |= {f"{prefix}{n}.alpha": torch.tensor(alpha) for n in LAYERS if alpha is not None}
    metadata = (
        None if about is None else {"lora_adapter_metadata": about if isinstance(about, str) else json.dumps(about)}
    )
    save_file(tensors, folder / f"{name}.safetensors", metadata)
    return folder / f"{name}.safetensors"


def scales(path: Path) -> list[float]:
    deltas = read_lora(path).deltas["unet"]
    return [deltas[layer].scale for layer in LAYERS]


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"unet.r": 4, "unet.lora_alpha": 8}, [2, 2, 2]),
        ({"r": 4, "lora_alpha": 2}, [0.5, 0.5, 0.5]),
        ({"unet.lora_alpha": 8, "text_encoder.lora_alpha": 1}, [2, 2, 2]),
        ({"lora_alpha": 8, "alpha_pattern": {LAYERS[1]: 4}}, [2, 1, 2]),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": 4}}, [1, 1, 2]),
        ({"lora_alpha": 8, "alpha_pattern": {"o_q": 4, "q": 4}}, [2, 2, 2]),
        ({"lora_alpha": 8, "alpha_pattern": {r"down_blocks\.1\..*": 4, "to_q": 2}}, [0.5, 1, 1]),
        ({"lora_alpha": 8, "alpha_pattern": {r"^down_blocks\.[0]\.attn\.to_q": 4}}, [1, 2, 2]),
        ({"r": 8, "lora_alpha": 8, "rank_pattern": {"attn.to_q": 4, "attn.to_out.0": 4}}, [2, 2, 2]),
        ({"lora_alpha": 8, "use_rslora": True}, [4, 4, 4]),
        ({"r": 4}, [1, 1, 1]),
        ({}, [1, 1, 1]),
    ],
)
def test_the_settings_in_the_header_give_alpha_over_rank(tmp_path: Path, about: Any, expected: list[float]) -> None:
    assert scales(written(tmp_path, about)) == expected


def test_patterns_are_read_as_peft_reads_them() -> None:
    peft = pytest.importorskip("peft.utils.other", reason="the reference is peft's own rule")
    import re

    from optimize.architectures.adapters.strength import _ends

    for pattern in (
        "to_q",
        "attn.to_q",
        r".*\.to_q",
        "o_q",
        r"^down_blocks\.0\.attn\.to_q",
        "blocks.1.attn.to_out.0",
        "out.0",
    ):
        for layer in LAYERS:
            theirs = peft.get_pattern_key([pattern], layer) == pattern != layer or pattern == layer
            assert bool(re.fullmatch(_ends(pattern), layer)) == theirs, (pattern, layer)


def test_pefts_own_file_beside_its_weights_is_read(tmp_path: Path) -> None:
    """peft keeps alpha in adapter_config.json alone."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16}))
    assert scales(written(tmp_path, name="adapter_model", prefix="base_model.model.")) == [4, 4, 4]
    assert scales(written(tmp_path, name="another", prefix="base_model.model.")) == [1, 1, 1]
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json: an object is expected here, found a list"):
        scales(tmp_path / "adapter_model.safetensors")


def test_alphas_of_the_file_count_where_there_are_some(tmp_path: Path) -> None:
    assert scales(written(tmp_path, None, 8.0)) == [2, 2, 2]
    assert scales(written(tmp_path, {"r": 4, "lora_alpha": 8}, 8.0)) == [2, 2, 2]
    assert scales(written(tmp_path, {"r": 4, "lora_alpha": 8, "use_rslora": True}, 8.0)) == [4, 4, 4]


NUMBER = "which is no finite number"
WRONG = [
    ({"lora_alpha": 4}, 8.0, r"says alpha 4 of down_blocks\.0\.attn\.to_q, and the file's own is 8"),
    ({"r": 8, "lora_alpha": 4}, None, r"says rank 8 of down_blocks\.0\.attn\.to_q, whose tensors have 4"),
    ({"lora_alpha": "8"}, None, f"gives lora_alpha '8', {NUMBER}"),
    ({"lora_alpha": math.nan}, None, f"gives lora_alpha nan, {NUMBER}"),
    ({"lora_alpha": True}, None, f"gives lora_alpha True, {NUMBER}"),
    ({"lora_alpha": 10**400}, None, f"gives lora_alpha 1000.*, {NUMBER}"),
    ({"unet.r": [4]}, None, rf"gives r \[4\], {NUMBER}"),
    ({"alpha_pattern": [1]}, None, r"gives alpha_pattern \[1\], not as at most 5000 numbers by layer"),
    ({"alpha_pattern": {"to_q": None}}, None, "has in alpha_pattern the pattern to_q, which cannot be read"),
    ({"alpha_pattern": {"to_q": "x"}}, None, f"gives alpha_pattern 'x', {NUMBER}"),
    ({"rank_pattern": {"(": 1}}, None, r"has in rank_pattern the pattern \(, which cannot be read; name layers"),
    ({"rank_pattern": {"(a*)*b": 1}}, None, r"has in rank_pattern the pattern \(a\*\)\*b, which cannot be read"),
    ({"alpha_pattern": {"a)(b": 1}}, None, "which cannot be read"),
    ({"alpha_pattern": {".*" * 9: 1}}, None, "which cannot be read"),
    ({"alpha_pattern": {str(i): 1 for i in range(5001)}}, None, "not as at most 5000 numbers by layer"),
    ({"unet.use_dora": True}, None, "says use_dora, and only plain LoRA is merged"),
    ({"lora_bias": True, "fan_in_fan_out": True}, None, "says lora_bias, fan_in_fan_out, and only plain LoRA"),
    ({"peft_type": "LOHA"}, None, "says peft_type LOHA, and only LORA is merged"),
    ([], None, "lora_adapter_metadata is no JSON object"),
    ("{", None, "lora_adapter_metadata is no JSON object"),
    ("[" * 100_000, None, "lora_adapter_metadata is no JSON object"),
]


@pytest.mark.parametrize(("about", "alpha", "said"), WRONG, ids=range(len(WRONG)))
def test_settings_that_are_wrong_or_contradict_are_named(tmp_path: Path, about: Any, alpha: Any, said: str) -> None:
    with pytest.raises(ArtifactError, match=said) as error:
        scales(written(tmp_path, about, alpha))
    assert "Save the LoRA again with the program that made it." in str(error.value) and len(str(error.value)) < 2000
