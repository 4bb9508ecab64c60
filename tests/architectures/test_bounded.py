"""Configs of absurd networks are refused at once, by their numbers, and nothing of a check stays behind."""

from __future__ import annotations

import time
from typing import Any

import networks
import pytest
from torch import nn

from optimize.architectures import bounded
from optimize.architectures.components import skeleton
from optimize.architectures.known import hollow
from optimize.errors import ArtifactError

T5 = {"architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "vocab_size": 9}  # fmt: skip
CLIP = {"architectures": ["CLIPTextModel"], "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
VAE = {"_class_name": "AutoencoderKL", "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [8], "norm_num_groups": 4}  # fmt: skip
ABSURD: list[tuple[dict[str, Any], str]] = [
    (networks.TINY["sd"] | {"layers_per_block": 10**7}, "layers_per_block 10000000"),
    (networks.TINY["sdxl"] | {"transformer_layers_per_block": 10**9}, "transformer_layers_per_block 1000000000"),
    (networks.TINY["unet2d"] | {"block_out_channels": [10**9, 10**9, 10**9]}, "block_out_channels 1000000000"),
    (networks.TINY["unet2d"] | {"layers_per_block": 10**30}, "layers_per_block of 100 bits"),
    (networks.TINY["sd"] | {"sample_size": 10**6}, "a sample of sample would be"),
    (networks.TINY["sd"] | {"sample_size": -1}, "a sample of sample would be"),
    (networks.TINY["dit"] | {"num_layers": 10**7}, "num_layers 10000000"),
    (networks.TINY["dit"] | {"sample_size": 10**5}, "sample_size 100000"),
    (networks.TINY["sd3"] | {"pos_embed_max_size": 10**9}, "pos_embed_max_size 1000000000"),
    (networks.TINY["flux"] | {"num_single_layers": 10**8}, "num_single_layers 100000000"),
    (networks.TINY["pixart"] | {"num_layers": "2"}, "cannot be built from this config"),
    (networks.TINY["sd"] | {"norm_num_groups": 0}, "cannot be built from this config"),
    (T5 | {"num_layers": 10**8}, "num_layers 100000000"),
    (CLIP | {"num_hidden_layers": 10**7}, "num_hidden_layers 10000000"),
    (CLIP | {"initializer_factor": "x"}, "cannot be built from this config"),
    (CLIP | {"max_position_embeddings": 10**12}, "max_position_embeddings 1000000000000"),
    (VAE | {"layers_per_block": 10**7}, "layers_per_block 10000000"),
]


@pytest.mark.parametrize(("config", "said"), ABSURD)
def test_a_config_of_an_absurd_network_is_refused_at_once_by_its_numbers(
    config: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded, "MOST", 400)
    start = time.process_time()
    with pytest.raises(ArtifactError, match=said) as raised:
        skeleton(config)
    assert time.process_time() - start < 60 and len(str(raised.value)) < 1000  # minutes without a limit


def test_an_artifact_of_an_absurd_network_is_refused_at_once() -> None:
    with pytest.raises(ArtifactError, match="layers_per_block 10000000"):
        hollow("UNet2DModel", networks.TINY["unet2d"] | {"layers_per_block": 10**7})


def test_tables_that_would_take_gigabytes_are_refused() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            import torch

            self.register_buffer("table", torch.empty(10**6, 10**3), persistent=False)

    with pytest.raises(ArtifactError, match=r"x: its table table would take 4 GB; its largest numbers are side 1000"):
        bounded.on_meta(Table, {"side": 1000}, "x")


def test_a_file_with_few_tensors_bounds_its_network() -> None:
    with pytest.raises(ArtifactError, match="asks for a network of more than 66 tensors, and its weights hold 1"):
        bounded.on_meta(lambda: nn.ModuleList(nn.Linear(1, 1) for _ in range(10**9)), {}, "x", 1)


def test_nothing_is_counted_outside_the_check_and_not_in_other_threads() -> None:
    import threading

    made: list[nn.Module] = []
    other = threading.Thread(target=lambda: made.extend(nn.Linear(1, 1) for _ in range(100)))

    def build() -> nn.Module:
        other.start()
        other.join()
        return nn.Linear(1, 1)

    assert len(bounded.on_meta(build, {}, "x", 1).state_dict()) == 2 and len(made) == 100
    assert len(nn.ModuleList(nn.Linear(1, 1) for _ in range(100))) == 100
