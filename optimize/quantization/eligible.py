"""Which layers of a network may compute in 8 bits, and why the others do not: by kind, by name and by size.

One list of names serves every architecture, since diffusers calls the same things the same. It follows what is
published: NVIDIA's list for diffusion networks (Model-Optimizer, examples/diffusers/quantization), the modulation
layers that SVDQuant (Li et al., arXiv 2411.05007) leaves in 16 bit, and MixDQ (Zhao et al., arXiv 2405.17873) for text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import nn

Format = Literal["int8", "fp8"]

KEEP = (
    # embeddings of time, size, position and text, first and last convolution, shortcuts
    "time_emb_proj|time_embedding|class_embedding|add_embedding|pos_embed|time_text_embed|context_embedder",
    "(^|[.])conv_in$|(^|[.])conv_out$|conv_shortcut|norm_out|x_embedder",
    # the same under the names of 1-D U-Nets, PixArt and embedded guidance
    "time_mlp|time_emb$|conv_skip|residual_conv|final_conv1d_2|caption_projection|encoder_hid_proj",
    # scales and shifts from time and condition, once a call: AdaLN of DiT, SD3, Flux (norm1.linear), PixArt (adaln_single)
    "norm[0-9]?(_context)?[.](linear|emb)|adaln_single",
    # last layer of a transformer; proj_out inside a network is an ordinary linear layer
    "^proj_out",
    # of text: outliers of the first token set the range of the whole tensor; 77 positions cost little
    "attn2[.]to_[kv]$",
)
WEIGHT_ONLY = (
    "time_emb_proj|time_embedding|conv_shortcut|conv_skip",
    "norm[0-9]?(_context)?[.]linear|adaln_single[.]linear|attn2[.]to_[kv]$",
)
# Channels that 8-bit kernels take at once: TensorRT excludes narrower convolutions (INT8 ones but for multiples of 8)
# and wants 16 of FP8 products; taps of an FP8 convolution (Model-Optimizer, onnx/quantization/graph_utils.py)
CHANNELS: dict[str, int] = {"int8": 8, "fp8": 16}
MOST_TAPS = 32


def quantizable(layer: nn.Module) -> bool:
    """Whether a layer is of a kind that can be quantized: a 1-D or 2-D convolution or a linear layer."""
    from torch import nn

    return isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear)


def layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, layer) of all that are of a quantizable kind."""
    return ((path, layer) for path, layer in module.named_modules() if path and quantizable(layer))


def matching(path: str, expressions: Sequence[str]) -> str | None:
    """The first of the regular expressions that is found in `path`; None where none is."""
    return next((text for text in expressions if re.search(text, path)), None)


def unfit(layer: nn.Module, format: Format) -> str:
    """Why no 8-bit kernel takes a layer of this size, in a few words; empty where one does."""
    from torch import nn

    if isinstance(layer, nn.Linear):
        groups, taps, given, made = 1, 1, layer.in_features, layer.out_features
    else:
        groups, taps = layer.groups, layer.weight[0, 0].numel()
        given, made = layer.in_channels // groups, layer.out_channels // groups
    least = CHANNELS[format]
    if min(given, made) < least:
        return f"{given} channels in and {made} out; {format.upper()} needs {least}"
    if format == "int8":
        return ""
    if given % least or made % least:
        return f"{given} channels in and {made} out; FP8 needs multiples of {least}"
    if groups > 1:
        return f"a convolution of {groups} groups; FP8 has none"
    return f"{taps} taps; FP8 takes {MOST_TAPS}" if taps > MOST_TAPS else ""
