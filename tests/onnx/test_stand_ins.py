"""What stands in for a module while the older exporter traces computes the same, and is gone afterwards."""

from __future__ import annotations

from typing import Any

import networks
import pytest
import torch
from diffusers.models.transformers import transformer_flux
from diffusers.models.unets.unet_1d_blocks import Downsample1d, Upsample1d
from torch import Tensor, nn

from optimize.diffusion.network import TensorSpec
from optimize.onnx.stand_ins import stand_ins
from optimize.onnx.trace import Tracing, traced

SIGNAL = (TensorSpec("x", ("B", 4, "L"), sizes=(("L", 16),)),)


class Resampled(nn.Module):
    """Half the length and back."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = Downsample1d("cubic"), Upsample1d("cubic")

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


@pytest.mark.parametrize("kernel", ["linear", "cubic", "lanczos3"])
@pytest.mark.parametrize("part", [Downsample1d, Upsample1d])
def test_a_stand_in_computes_what_the_module_does(part: Any, kernel: str) -> None:
    torch.manual_seed(0)
    module, x = part(kernel), torch.randn(3, 4, 16)
    wanted = module(x)
    with stand_ins(module):
        assert "forward" in vars(module)
        found = module(x)
    assert "forward" not in vars(module)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"eps": 1e-3}, {"elementwise_affine": False}])
@pytest.mark.parametrize("over", [16, (4, 16)])
def test_a_root_mean_square_norm_written_out_is_torchs(over: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module, x = nn.RMSNorm(over, **options), torch.randn(3, 4, 16) * 5
    if module.weight is not None:
        nn.init.normal_(module.weight)
    wanted = module(x)
    with stand_ins(module):
        assert "forward" in vars(module)
        torch.testing.assert_close(module(x), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"sequence_dim": 1}, {"use_real_unbind_dim": -2}])
def test_a_rotary_embedding_is_diffusers_own(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x, angles = torch.randn(2, 5, 5, 8), torch.randn(5, 8)
    own = transformer_flux.apply_rotary_emb
    wanted = own(x, (angles.cos(), angles.sin()), **options)
    with stand_ins(nn.Identity()):
        assert transformer_flux.apply_rotary_emb is not own
        found = transformer_flux.apply_rotary_emb(x, (angles.cos(), angles.sin()), **options)
    assert transformer_flux.apply_rotary_emb is own
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_modules_are_themselves_again_after_an_error() -> None:
    module = nn.Sequential(Downsample1d(), nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="Padding size"), stand_ins(module):
        module(torch.randn(3, 4, 5, 5))
    assert not any("forward" in vars(part) for part in module.modules())


def test_the_older_exporter_writes_resampled_signals_with_a_symbolic_length() -> None:
    made = traced(Resampled(), SIGNAL, Tracing(18, "torchscript"), {})
    assert made.record["symbols"] == ["B", "L"]
    assert {n.attributes["group"].as_int() for n in made.graph.graph if n.op_type.startswith("Conv")} == {4}


def test_only_networks_that_hold_such_parts_are_touched() -> None:
    module = networks.model(networks.TINY["unet2d"]).module
    before = {id(part): dict(vars(part)) for part in module.modules()}
    with stand_ins(module):
        assert all(vars(part) == before[id(part)] for part in module.modules())
