"""Every tensor of a network and of its file accounted for: missing, unexpected and misshapen ones are one error.

What a file may lack or hold beside the network is a list below, each entry with its reason; nothing else is let through,
and no number that is not finite.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import ArtifactError
from optimize.storage.weights import FLOATS, Stored, is_read

if TYPE_CHECKING:
    from torch import Tensor

MOST_NAMED, LONGEST = 10, 100  # names in a message, characters of one

CLIP_TEXTS = ("CLIPTextModel", "CLIPTextModelWithProjection")
# What a file may hold beside its network: (names, classes it is so for, reason).
BESIDE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        r"(.+\.)?position_ids",
        (*CLIP_TEXTS, "CLIPModel"),
        "0, 1, 2, …: older versions of transformers stored them, every version counts them anew",
    ),
    (r"decoder\..+|lm_head\.weight", ("T5EncoderModel",), "the half of T5 that writes text; its encoder alone is used"),
    (r"vision_model\..+|visual_projection\.weight|logit_scale", CLIP_TEXTS, "the half of CLIP that looks at images"),
    (r"text_projection\.weight", ("CLIPTextModel",), "of CLIPTextModelWithProjection; this class ends before it"),
    (r"classifier\.(weight|bias)", ("Dinov2Model", "Dinov2WithRegistersModel"), "a head trained on its features"),
    (r"fc\.(weight|bias)", ("FidInception",), "the classifier behind the features"),
    (r"lins\.\d+\..+", ("Lpips",), "lin0, lin1, … a second time: the package registers them twice"),
    (r"scaling_layer\..+", ("Lpips",), "constants of the method"),
)
# What a file may lack: a counter of batches, which nothing reads in evaluation mode and conversions often drop.
COUNTER = re.compile(r"(.+\.)?num_batches_tracked")
# A level of names that CLIP's text models have in some versions and files, and not in others.
LEVEL = "text_model."
# Attention in diffusers before 0.13, in the classes whose files are that old.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
OLD = ("AutoencoderKL", "UNet2DModel", "UNet2DConditionModel")
# Names that a file of quantized weights holds beside them, and what wrote them.
QUANTIZED = {
    r"(.+\.)?scaled_fp8|.+\.(scale_weight|scale_input|comfy_quant)": "float8 with scales (ComfyUI)",
    r".+\.(absmax|quant_map|nested_absmax|nested_quant_map|SCB)|.+\.quant_state\..+": "bitsandbytes",
    r".+\.(qweight|qzeros|g_idx|scales)": "GPTQ or AWQ",
    r".+\.(_data|_scale|_shift|output_scale)": "optimum-quanto",
    r".+[._](qdata|weight_qdata)": "torchao",
    r".+\.(wscales|wcscales|wtscale|smooth_factor)": "Nunchaku",
    r".+\.(weight_scale|weight_scale_inv|weight_scale_2|input_scale|weight_zero_point)": "a format with scales",
}


@dataclass(frozen=True)
class Fit:
    """Which tensor of a file fills which of a network's: {network's name: file's}. `zero` are counters that the file
    lacks, `same` pairs of the file's names that are one tensor in the network."""

    taken: Mapping[str, str]
    zero: tuple[str, ...] = ()
    same: tuple[tuple[str, str], ...] = ()


def load_state(module: Any, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load tensors into a module, replacing meta tensors; what does not fit, or is not finite, is one ArtifactError."""
    fill(module, fit(module, in_memory(tensors), path), tensors, path)


def in_memory(tensors: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Tensors as a file's header would describe them."""
    return {name: Stored(_dtype(tensor), tuple(tensor.shape)) for name, tensor in tensors.items()}


def _dtype(tensor: Tensor) -> str:
    return "F32" if is_read(tensor.dtype) else str(tensor.dtype).removeprefix("torch.")


def fit(module: Any, stored: Mapping[str, Stored], where: Path) -> Fit:
    """How the tensors of a file fill `module`, which may be on the meta device. Raises one ArtifactError naming what is
    missing, unexpected, of another shape or no floating-point number; or that the weights are quantized."""
    wanted = module.state_dict(keep_vars=True)
    taken, unknown, twice = _named(type(module).__name__, stored, wanted)
    refuse_scales(unknown, where)
    taken |= _tied(wanted, taken)
    absent = [name for name in wanted if name not in taken]
    missing = [name for name in absent if not COUNTER.fullmatch(name)]
    packed = bool(module._load_state_dict_pre_hooks)  # its hook unpacks codes, whose dtype is another
    found = {
        "missing": missing,
        "unexpected": unknown,
        "there twice": twice,
        "of another shape": list(_misshapen(wanted, taken, stored)),
        "of another kind": [] if packed else list(_of_another_kind(wanted, taken, stored)),
    }
    refuse_gaps(found, type(module).__name__, where)
    return Fit(taken, tuple(name for name in absent if name not in missing), tuple(_same(wanted, taken)))


def fill(module: Any, fit: Fit, tensors: Mapping[str, Tensor], where: Path) -> None:
    """Assign a file's tensors as `fit` says. Raises ArtifactError naming those that hold NaN or infinities, and those that
    the network has as one and the file as two that differ."""
    import torch

    for one, other in fit.same:
        if not torch.equal(tensors[one], tensors[other]):
            raise ArtifactError(
                f"{where}: {_short(one)} and {_short(other)} are one tensor in the network, and differ in the file."
            )
    params = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    refuse_infinite({own: tensors[name] for own, name in fit.taken.items()}, where, params)
    zeros = {name: torch.zeros((), dtype=torch.int64) for name in fit.zero}
    module.load_state_dict({own: tensors[name] for own, name in fit.taken.items()} | zeros, strict=True, assign=True)


def refuse_gaps(found: Mapping[str, Sequence[str]], kind: str, where: Path) -> None:
    """Raise ArtifactError where there are names in `found`, {what is wrong: names}, of a network of the class `kind`."""
    if told := _told(found):
        raise ArtifactError(
            f"{where}: the weights do not fit the network ({kind}): {told}. Copy or download it again, or give the config that belongs to it."
        )


def refuse_infinite(tensors: Mapping[str, Tensor], where: Path, params: set[str] | None = None) -> None:
    """Raise ArtifactError naming tensors that hold NaN, or are parameters (of all where not said) and hold infinities."""
    broken = [name for name, t in tensors.items() if not _finite(t, params is None or name in params)]
    if broken:
        raise ArtifactError(
            f"{where}: {_told({'with NaN or infinities': broken})}. Such weights draw nothing: copy or download it again, or save it from an earlier step of its training."
        )


def refuse_scales(names: Sequence[str], where: Path) -> None:
    """Raise ArtifactError where some of these names, which no network has, are those beside quantized weights."""
    found = ((name, tool) for name in names for pattern, tool in QUANTIZED.items() if re.fullmatch(pattern, name))
    if first := next(found, None):
        raise ArtifactError(
            f"{where}: the weights are quantized, {first[1]}: {_short(first[0])}. They are not read: give the network's own weights, in 16 or 32 bits."
        )


def refuse_quantized(config: Mapping[str, Any], where: Path) -> None:
    """Raise ArtifactError where a config says that its weights are quantized, or would be while they are loaded."""
    if about := config.get("quantization_config"):
        method = about.get("quant_method", "") if isinstance(about, dict) else about
        raise ArtifactError(
            f"{where}: quantization_config: {str(method)[:LONGEST] or 'given'}: quantized weights are not read. Give the network's own weights, in 16 or 32 bits, and a config without this entry."
        )


def _named(kind: str, stored: Mapping[str, Stored], wanted: Mapping[str, Any]) -> tuple[dict[str, str], list[str], list[str]]:  # fmt: skip
    """({network's name: file's}, names of the file that the network has not, names that stand for one tensor twice)."""
    taken: dict[str, str] = {}
    unknown, twice = [], []
    for name in stored:
        own = next((n for n in _spellings(kind, name) if n in wanted), None)
        if own is None:
            unknown += [] if beside(kind, name) else [name]
        elif own in taken:
            twice.append(name)
        else:
            taken[own] = name
    return taken, unknown, twice


def _spellings(kind: str, name: str) -> Iterator[str]:
    """A file's name for a tensor, then what another version of its library calls it."""
    yield name
    if kind in CLIP_TEXTS:
        yield name.removeprefix(LEVEL) if name.startswith(LEVEL) else LEVEL + name
    path, _, last = name.rpartition(".")
    outer, _, layer = path.rpartition(".")
    if kind in OLD and layer in OLD_ATTENTION:
        yield f"{outer}.{OLD_ATTENTION[layer]}.{last}"


def beside(kind: str, name: str) -> bool:
    """Whether a file may hold this name beside a network of the class `kind`, which has no such tensor."""
    return any(kind in kinds and re.fullmatch(names, name) for names, kinds, _ in BESIDE)


def _tied(wanted: Mapping[str, Any], taken: Mapping[str, str]) -> dict[str, str]:
    """Names that the file lacks of tensors that the network has under another name as well."""
    filled = {id(wanted[own]): name for own, name in taken.items()}
    return {own: filled[id(t)] for own, t in wanted.items() if own not in taken and id(t) in filled}


def _same(wanted: Mapping[str, Any], taken: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Names of the file that are one tensor in the network."""
    first: dict[int, str] = {}
    for own, name in taken.items():
        other = first.setdefault(id(wanted[own]), name)
        if other != name:
            yield other, name


def _misshapen(wanted: Mapping[str, Any], taken: Mapping[str, str], stored: Mapping[str, Stored]) -> Iterator[str]:
    for own, name in taken.items():
        asked, given = tuple(wanted[own].shape), stored[name].shape
        if asked != given:
            yield f"{_short(name)} {list(asked)} in the network, {list(given)} in the file"


def _of_another_kind(
    wanted: Mapping[str, Any], taken: Mapping[str, str], stored: Mapping[str, Stored]
) -> Iterator[str]:
    for own, name in taken.items():
        if wanted[own].is_floating_point() != stored[name].floats:
            word = f"floating-point numbers ({', '.join(FLOATS[:4])}, …)" if wanted[own].is_floating_point() else "whole numbers"  # fmt: skip
            yield f"{_short(name)} is {stored[name].dtype}, and the network wants {word}"


def _finite(tensor: Tensor, parameter: bool) -> bool:
    """Whether a parameter is finite; a buffer, such as a mask, may hold infinities."""
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        return True
    return bool(tensor.isfinite().all()) if parameter else not bool(tensor.isnan().any())


def _told(found: Mapping[str, Sequence[str]]) -> str:
    """Problems in words, at most ten names in all."""
    kinds = {kind: names for kind, names in found.items() if names}
    each = MOST_NAMED // max(1, len(kinds))
    return "; ".join(f"{len(names)} {kind} ({listed(names, each)})" for kind, names in kinds.items())


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """Names, at most ten, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_short(n) for n in names[:most]) + more


def _short(name: str) -> str:
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"
