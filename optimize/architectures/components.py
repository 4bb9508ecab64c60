"""Parts of a diffusers pipeline that can be built from their config alone and looked at: how, and what they are fed.

More classes than the architectures that passes work on: a network here is only counted, predicted and timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from optimize.architectures.bounded import as_errors, check_inputs, on_meta
from optimize.architectures.entry import Config, from_diffusers, square
from optimize.architectures.filled import compared, config_of, filled
from optimize.architectures.known import ARCHITECTURES
from optimize.diffusion.network import TensorSpec
from optimize.errors import unknown

if TYPE_CHECKING:
    from torch import nn

    from optimize.storage.variants import Weights

Role = Literal["denoiser", "decoder", "text encoder"]
SIZED = 64  # latents, where a config names no size


@dataclass(frozen=True)
class Component:
    """`build(config)` gives the module, whose `forward` is what a sampler calls; `inputs(config)` what it is fed."""

    role: Role
    build: Callable[[Config], nn.Module]
    inputs: Callable[[Config], tuple[TensorSpec, ...]]


def _transformers(name: str, config_name: str) -> Callable[[Config], nn.Module]:
    def build(config: Config) -> nn.Module:
        import transformers

        return getattr(transformers, name)(getattr(transformers, config_name).from_dict(config))

    return build


def _decoder(config: Config) -> nn.Module:
    return _as_called(from_diffusers("AutoencoderKL")(config), "decoder")


def _as_called(module: nn.Module, role: Role) -> nn.Module:
    """An autoencoder with `decode` as what is called, since its encoder is not run when images are drawn."""
    if role == "decoder":
        module.forward = module.decode
    return module


def _decoder_inputs(config: Config) -> tuple[TensorSpec, ...]:
    shrink = 2 ** (len(config["block_out_channels"]) - 1)
    h, w = (side // shrink for side in square(config, SIZED * shrink))
    return (TensorSpec("z", ("B", config.get("latent_channels", 4), h, w)),)


def _token_inputs(config: Config) -> tuple[TensorSpec, ...]:
    return (TensorSpec("input_ids", ("B", config.get("max_position_embeddings", 77)), "int64"),)


def _t5_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """T5 takes any length; its config names the one it was trained with."""
    return (TensorSpec("input_ids", ("B", config.get("n_positions", 512)), "int64"),)


COMPONENTS: dict[str, Component] = {
    **{name: Component("denoiser", a.build, a.inputs) for name, a in ARCHITECTURES.items()},
    "AutoencoderKL": Component("decoder", _decoder, _decoder_inputs),
    "CLIPTextModel": Component("text encoder", _transformers("CLIPTextModel", "CLIPTextConfig"), _token_inputs),
    "CLIPTextModelWithProjection": Component(
        "text encoder", _transformers("CLIPTextModelWithProjection", "CLIPTextConfig"), _token_inputs
    ),
    "T5EncoderModel": Component("text encoder", _transformers("T5EncoderModel", "T5Config"), _t5_inputs),
}


def class_name(config: Any) -> str:
    """The class a config.json names, by diffusers' key or transformers'; empty where it names none."""
    about = config if isinstance(config, dict) else {}
    named = about.get("_class_name") or about.get("architectures")
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) else ""


def component(name: str) -> Component:
    """The entry called `name`; UserError with the nearest name otherwise."""
    if name not in COMPONENTS:
        raise unknown("architecture", name, COMPONENTS)
    return COMPONENTS[name]


def skeleton(config: Config, weights: Weights | None = None) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """(the network of a config on the meta device, in evaluation mode, what it is fed); no memory for weights. Where
    `weights` are given, their headers are compared with it.

    Raises UserError for a class that is not known, ArtifactError for a config that its class refuses, for one of an absurd
    size, and where the weights do not fit.
    """
    name = class_name(config)
    entry = component(name)
    build, where = partial(entry.build, config), config_of(weights) if weights else name
    if weights:
        compared(build, config, weights)
    module = on_meta(build, config, where)
    with as_errors(config, where):
        inputs = entry.inputs(config)
        check_inputs(inputs, config, where)
    return module.eval().requires_grad_(False), inputs


def with_weights(config: Config, weights: Weights) -> nn.Module:
    """The network of a config with its weights, float32, evaluation mode.

    Raises UserError for a class that is not known, ArtifactError where the weights are missing or do not fit.
    """
    return filled(partial(component(class_name(config)).build, config), config, weights)
