"""MACs and parameters against closed forms and published figures."""

from __future__ import annotations

import torch
from torch import nn

from optimize.diffusion import macs
from optimize.diffusion.denoiser import Denoiser
from optimize.diffusion.model import Model, Structure
from optimize.diffusion.network import TensorSpec, TorchNetwork
from optimize.diffusion.parameterization import Parameterization
from optimize.diffusion.sampling import Sampler
from optimize.diffusion.schedule import Schedule


def wrapped(module: nn.Module, shape: tuple[int, int, int]) -> Model:
    inputs = (TensorSpec("sample", ("B", *shape)), TensorSpec("timestep", ("B",)))
    denoiser = Denoiser(TorchNetwork(module, inputs), Parameterization(), Schedule(alpha_bar=(0.9, 0.5)))
    return Model(denoiser, Sampler(steps=1), Structure("none", {}), shape)


class Small(nn.Module):
    """Convolution, linear and attention layers of known sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.blocks = nn.ModuleList([nn.Linear(8, 16)])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.conv(sample)).flatten(2).transpose(1, 2)  # (B, 16, 8)
        q = self.blocks[0](x).unflatten(2, (2, 8)).transpose(1, 2)  # (B, 2, 16, 8)
        return nn.functional.scaled_dot_product_attention(q, q, q)


def test_every_layer_counts_what_its_formula_says() -> None:
    model = wrapped(Small(), (3, 8, 8))
    expected = {
        "conv": 16 * 8 * 3 * 9,
        "depthwise": 16 * 8 * 9,
        "blocks.0": 16 * 8 * 16,
        "": 2 * 2 * 16 * 16 * 8,
    }
    assert macs.by_module(model) == expected
    assert macs.count(model) == {"params": 224 + 80 + 144, "macs": sum(expected.values())}


def test_attention_counts_the_same_with_and_without_gradients_in_the_weights() -> None:
    model = wrapped(Small(), (3, 8, 8))
    with_gradients = macs.count(model)
    model.module.requires_grad_(False)
    assert macs.count(model) == with_gradients


def test_counting_leaves_the_model_as_it_was(tiny_model: Model) -> None:
    before = {k: v.clone() for k, v in tiny_model.module.state_dict().items()}
    first, second = macs.count(tiny_model), macs.count(tiny_model)
    assert first == second
    assert all(torch.equal(before[k], v) for k, v in tiny_model.module.state_dict().items())
    assert not tiny_model.module.training


def test_ddpm_cifar10_has_its_published_size() -> None:
    from diffusers import UNet2DModel

    unet = UNet2DModel(
        sample_size=32,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )
    found = macs.count(wrapped(unet.eval(), (3, 32, 32)))
    assert abs(found["params"] / 35.7e6 - 1) < 0.005
    assert abs(found["macs"] / 6.1e9 - 1) < 0.02, found
