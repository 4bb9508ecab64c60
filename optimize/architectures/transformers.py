"""diffusers' image transformers as architectures: DiT, PixArt, Stable Diffusion 3, Flux.

DiT and PixArt compute their positions from the size in Python, so their height and width are fixed; Stable Diffusion 3
crops a table, Flux is given its positions: their sizes are symbols.
"""

from __future__ import annotations

from optimize.architectures.entry import Architecture, Config, from_diffusers, sized, square, told
from optimize.diffusion.denoiser import Conditioning
from optimize.diffusion.network import TensorSpec

TIME = TensorSpec("timestep", ("B",))


def _fixed_shape(config: Config) -> tuple[int, ...]:
    return config.get("in_channels", 4), *square(config, 32)


def _learned_variance(config: Config) -> bool:
    return config.get("out_channels") == 2 * config.get("in_channels", 4)


def _dit_inputs(config: Config) -> tuple[TensorSpec, ...]:
    latents = TensorSpec("hidden_states", ("B", *_fixed_shape(config)))
    return (latents, TIME, TensorSpec("class_labels", ("B",), "int64"))


def _dit_conditioning(config: Config) -> Conditioning:
    """The null class is the row behind the last class."""
    count = config.get("num_embeds_ada_norm") or 1000
    return Conditioning("class", count, count)


def _pixart_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """Text states of T5 with their mask; models of 1024 pixels are told size and aspect as well."""
    shape, tokens = _pixart_shape(config), sized(config, L=120)
    width = config.get("caption_channels") or config.get("cross_attention_dim", 1152)
    common = (
        TensorSpec("hidden_states", ("B", *shape)),
        TIME,
        TensorSpec("encoder_hidden_states", ("B", "L", width), sizes=tokens),
        TensorSpec("encoder_attention_mask", ("B", "L"), sizes=tokens, fill=(1.0,)),
    )
    asked = config.get("use_additional_conditions")
    if not (shape[1] == 128 if asked is None else asked):
        return common
    pixels = (8.0 * shape[1], 8.0 * shape[2])
    return (
        *common,
        TensorSpec("added_cond_kwargs.resolution", ("B", 2), fill=pixels),
        TensorSpec("added_cond_kwargs.aspect_ratio", ("B", 1), fill=(1.0,)),
    )


def _pixart_shape(config: Config) -> tuple[int, ...]:
    return config.get("in_channels", 4), *square(config, 128)


def _pixart_conditioning(config: Config) -> Conditioning:
    return told(_pixart_inputs(config), ("encoder_hidden_states", "encoder_attention_mask"))


def _sd3_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """Text states of CLIP (77 tokens) and T5 (256) together, and pooled text."""
    h, w = square(config, 128)
    text = ("B", "L", config.get("joint_attention_dim", 4096))
    latents = ("B", config.get("in_channels", 16), "H", "W")
    return (
        TensorSpec("hidden_states", latents, sizes=sized(config, H=h, W=w)),
        TIME,
        TensorSpec("encoder_hidden_states", text, sizes=sized(config, L=333)),
        TensorSpec("pooled_projections", ("B", config.get("pooled_projection_dim", 2048))),
    )


def _sd3_shape(config: Config) -> tuple[int, ...]:
    return _sd3_inputs(config)[0].shape(1)[1:]


def _sd3_conditioning(config: Config) -> Conditioning:
    return told(_sd3_inputs(config), ("encoder_hidden_states", "pooled_projections"))


def _flux_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """Packed latents: S positions of 2x2 latents; time in [0, 1]; positions of image and text, the same for all samples;
    the guidance weight where it was distilled in."""
    places, tokens = sized(config, S=4096), sized(config, L=512)
    common = (
        TensorSpec("hidden_states", ("B", "S", config.get("in_channels", 64)), sizes=places),
        TensorSpec("timestep", ("B",), fill=(1.0,)),
        TensorSpec("encoder_hidden_states", ("B", "L", config.get("joint_attention_dim", 4096)), sizes=tokens),
        TensorSpec("pooled_projections", ("B", config.get("pooled_projection_dim", 768))),
        TensorSpec("img_ids", ("S", 3), sizes=places, fill="grid"),
        TensorSpec("txt_ids", ("L", 3), sizes=tokens, fill=(0.0,)),
    )
    return (*common, TensorSpec("guidance", ("B",), fill=(3.5,))) if config.get("guidance_embeds") else common


def _flux_shape(config: Config) -> tuple[int, ...]:
    return _flux_inputs(config)[0].shape(1)[1:]


def _flux_conditioning(config: Config) -> Conditioning:
    return told(_flux_inputs(config), ("encoder_hidden_states", "pooled_projections"))


TRANSFORMERS = {
    "DiTTransformer2DModel": Architecture(
        from_diffusers("DiTTransformer2DModel"), _dit_inputs, _dit_conditioning, _fixed_shape, _learned_variance
    ),
    "PixArtTransformer2DModel": Architecture(
        from_diffusers("PixArtTransformer2DModel"),
        _pixart_inputs,
        _pixart_conditioning,
        _pixart_shape,
        lambda config: config.get("out_channels", 8) == 2 * config.get("in_channels", 4),
    ),
    "SD3Transformer2DModel": Architecture(
        from_diffusers("SD3Transformer2DModel"), _sd3_inputs, _sd3_conditioning, _sd3_shape
    ),
    "FluxTransformer2DModel": Architecture(
        from_diffusers("FluxTransformer2DModel"), _flux_inputs, _flux_conditioning, _flux_shape
    ),
}
