"""diffusers' U-Nets as architectures: UNet2DModel, UNet2DConditionModel (SD 1.x, 2.x, SDXL, inpainting), UNet1DModel."""

from __future__ import annotations

from dataclasses import replace

from optimize.architectures.entry import Architecture, Config, from_diffusers, ours, sized, square, told
from optimize.diffusion.denoiser import Conditioning
from optimize.diffusion.network import TensorSpec
from optimize.errors import UserError

LATENTS = 64  # where a config names no size
CLIP_TOKENS = 77
TEXT = ("encoder_hidden_states", "added_cond_kwargs.text_embeds")


def _plain_inputs(config: Config) -> tuple[TensorSpec, ...]:
    c, h, w = _plain_shape(config)
    common = (TensorSpec("sample", ("B", c, h, w)), TensorSpec("timestep", ("B",)))
    return (*common, TensorSpec("class_labels", ("B",), "int64")) if config.get("num_class_embeds") else common


def _plain_conditioning(config: Config) -> Conditioning:
    """Every class embedding is a class: whether one of them was trained as the null class, only the source can say."""
    count = config.get("num_class_embeds")
    return Conditioning("class", count) if count else Conditioning()


def _plain_shape(config: Config) -> tuple[int, ...]:
    size = config["sample_size"]
    h, w = (size, size) if isinstance(size, int) else size
    return config["in_channels"], h, w


def _text_inputs(config: Config) -> tuple[TensorSpec, ...]:
    """Latents (with mask and masked image behind them where it inpaints), time, text states, and what the config adds:
    SDXL's pooled text and sizes, class embeddings, a ControlNet's residuals."""
    if config.get("encoder_hid_dim_type") not in (None, "text_proj"):
        raise UserError(
            f'UNet2DConditionModel: encoder_hid_dim_type "{config["encoder_hid_dim_type"]}" is not supported. Allowed: text_proj.'
        )
    width = config.get("encoder_hid_dim") or config.get("cross_attention_dim", 1280)
    text = ("B", "L", width if isinstance(width, int) else max(width))
    return (
        TensorSpec("sample", ("B", config.get("in_channels", 4), "H", "W"), sizes=_sizes(config)),
        TensorSpec("timestep", ("B",)),
        TensorSpec("encoder_hidden_states", text, sizes=sized(config, L=CLIP_TOKENS)),
        *_added(config),
        *_class(config),
        *_guided(config),
        *_residuals(config),
    )


def _sizes(config: Config) -> tuple[tuple[str, int], ...]:
    h, w = square(config, LATENTS)
    return sized(config, H=h, W=w)


def _added(config: Config) -> tuple[TensorSpec, ...]:
    """SDXL's added conditions: pooled text (width of the projection less that of the embedded sizes) and six sizes in
    pixels (original, crop, target)."""
    kind = config.get("addition_embed_type")
    if kind in (None, "text"):
        return ()
    if kind != "text_time":
        raise UserError(
            f'UNet2DConditionModel: addition_embed_type "{kind}" is not supported. Allowed: text, text_time.'
        )
    ids = 6 if config.get("addition_time_embed_dim") else 0
    pooled = config["projection_class_embeddings_input_dim"] - ids * config["addition_time_embed_dim"]
    h, w = (float(8 * size) for _, size in _sizes(config))
    return (
        TensorSpec("added_cond_kwargs.text_embeds", ("B", pooled)),
        TensorSpec("added_cond_kwargs.time_ids", ("B", ids), fill=(h, w, 0.0, 0.0, h, w)),
    )


def _class(config: Config) -> tuple[TensorSpec, ...]:
    """Class labels, or the embedding that takes their place."""
    kind, widths = config.get("class_embed_type"), config.get("block_out_channels", (320, 640, 1280, 1280))
    if kind is None:
        return (TensorSpec("class_labels", ("B",), "int64"),) if config.get("num_class_embeds") else ()
    if kind == "timestep":
        return (TensorSpec("class_labels", ("B",), fill=(0.0,)),)
    width = (
        (config.get("time_embedding_dim") or 4 * widths[0])
        if kind == "identity"
        else config["projection_class_embeddings_input_dim"]
    )
    return (TensorSpec("class_labels", ("B", width)),)


def _guided(config: Config) -> tuple[TensorSpec, ...]:
    """The embedding of the guidance weight, where it was distilled in (latent consistency models)."""
    width = config.get("time_cond_proj_dim")
    return (TensorSpec("timestep_cond", ("B", width)),) if width else ()


def _residuals(config: Config) -> tuple[TensorSpec, ...]:
    """A ControlNet's residuals: one after conv_in, one after every layer and every downsampling, one in the middle."""
    if not ours(config, "controlnet"):
        return ()
    widths, sizes = config.get("block_out_channels", (320, 640, 1280, 1280)), _sizes(config)
    layers = config.get("layers_per_block", 2)
    layers = (layers,) * len(widths) if isinstance(layers, int) else layers
    found = [(widths[0], 0)]
    for i, (width, count) in enumerate(zip(widths, layers, strict=True)):
        found += [(width, i)] * count + ([(width, i + 1)] if i < len(widths) - 1 else [])

    def residual(name: str, width: int, halvings: int) -> TensorSpec:
        h, w = (s if not halvings else f"{s}/{2**halvings}" for s in "HW")
        return TensorSpec(name, ("B", width, h, w), sizes=sizes)

    down = (residual(f"down_block_additional_residuals.{i}", *where) for i, where in enumerate(found))
    return (*down, residual("mid_block_additional_residual", widths[-1], len(widths) - 1))


def _text_conditioning(config: Config) -> Conditioning:
    """Everything but latents and time; channels the network reads beyond those it predicts (mask, masked image) are a
    condition under the latents' own name. The text alone differs in the unconditional branch, unless the source says
    which class is null."""
    extra = config.get("in_channels", 4) - _text_shape(config)[0]
    behind = (TensorSpec("sample", ("B", extra, "H", "W"), sizes=_sizes(config)),) if extra > 0 else ()
    labels = config.get("num_class_embeds") if config.get("class_embed_type") is None else None
    return replace(told(_text_inputs(config), TEXT, behind), classes=labels or 0)


def _text_shape(config: Config) -> tuple[int, ...]:
    channels = config.get("out_channels", 4)
    return (channels // 2 if _text_variance(config) else channels, *(size for _, size in _sizes(config)))


def _text_variance(config: Config) -> bool:
    return config.get("out_channels", 4) == 2 * config.get("in_channels", 4)


def _line_inputs(config: Config) -> tuple[TensorSpec, ...]:
    latents = ("B", config.get("in_channels", 2), "L")
    return (TensorSpec("sample", latents, sizes=_line_sizes(config)), TensorSpec("timestep", ("B",)))


def _line_sizes(config: Config) -> tuple[tuple[str, int], ...]:
    return sized(config, L=config.get("sample_size", 65536))


def _line_shape(config: Config) -> tuple[int, ...]:
    return config.get("in_channels", 2), _line_sizes(config)[0][1]


def _nothing(config: Config) -> Conditioning:
    return Conditioning()


UNETS = {
    "UNet2DModel": Architecture(
        from_diffusers("UNet2DModel"), _plain_inputs, _plain_conditioning, _plain_shape, limit=1.0
    ),
    "UNet2DConditionModel": Architecture(
        from_diffusers("UNet2DConditionModel"), _text_inputs, _text_conditioning, _text_shape, _text_variance
    ),
    "UNet1DModel": Architecture(from_diffusers("UNet1DModel"), _line_inputs, _nothing, _line_shape),
}
