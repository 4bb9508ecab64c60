"""Parts of a diffusers pipeline that can be built from their config alone and looked at: how, and what they are fed.

More classes than the architectures that passes work on: a network here is only counted, predicted and timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from optimize.architectures.entry import Config, from_diffusers, square
from optimize.architectures.known import ARCHITECTURES
from optimize.diffusion.network import TensorSpec
from optimize.errors import ArtifactError, UserError, unknown

if TYPE_CHECKING:
    from torch import nn

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


def class_name(config: Config) -> str:
    """The class a config.json names, by diffusers' key or transformers'; empty where it names none."""
    return config.get("_class_name") or next(iter(config.get("architectures") or ()), "")


def component(name: str) -> Component:
    """The entry called `name`; UserError with the nearest name otherwise."""
    if name not in COMPONENTS:
        raise unknown("architecture", name, COMPONENTS)
    return COMPONENTS[name]


def skeleton(config: Config) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """(the network of a config on the meta device, in evaluation mode, what it is fed); no memory for weights.

    Raises UserError for a class that is not known and for a config that its class refuses.
    """
    import torch

    name = class_name(config)
    entry = component(name)
    try:
        with torch.device("meta"):
            module = entry.build(config)
        return module.eval().requires_grad_(False), entry.inputs(config)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: it cannot be built from this config ({type(error).__name__}: {error}).") from error


def with_weights(config: Config, folder: Path) -> nn.Module:
    """The network of a config with the weights in `folder`, float32, evaluation mode, by its library's own loader, which
    knows shards, half-precision variants and names of older versions; safetensors alone.

    Raises UserError for a class that is not known, ArtifactError where the weights are missing or do not fit.
    """
    import diffusers
    import transformers
    from safetensors import SafetensorError

    name = class_name(config)
    entry, library = component(name), diffusers if "_class_name" in config else transformers
    plain = any(not f.stem.endswith(".fp16") for f in folder.glob("*.safetensors"))
    options = {} if plain else {"variant": "fp16"}
    try:
        cls = getattr(library, name)
        module = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise ArtifactError(f"{folder}: its weights cannot be loaded as {name} ({first}).") from error
    return _as_called(module.float().eval().requires_grad_(False), entry.role)
