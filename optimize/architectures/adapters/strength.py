"""The strength that an update was trained with, alpha / r: from its alpha in the file, else from what peft wrote beside.

peft keeps no alpha as a tensor: diffusers stores its settings in the file's header, peft itself in adapter_config.json.
Where neither says anything, alpha is r.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimize.architectures.adapters.contents import Update
from optimize.architectures.adapters.foreign import short
from optimize.errors import ArtifactError
from optimize.plain.text import read_json

HEADER, BESIDE = "lora_adapter_metadata", {"adapter_model.safetensors": "adapter_config.json"}
OTHERS = ("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora")  # settings under which an update is another one
MANY = 5000  # patterns at most
Settings = dict[str, Any]


@dataclass(frozen=True)
class Described:
    """Settings of a file's adapters, and where they stand, for errors."""

    settings: Settings
    place: str

    def of(self, component: str) -> Strengths:
        """The settings of one component, which diffusers writes as "unet.r"; else those without a component.

        Raises ArtifactError for settings of another kind or of what is no plain LoRA."""
        own = {k.removeprefix(f"{component}."): v for k, v in self.settings.items() if k.startswith(f"{component}.")}
        given = own or self.settings
        if others := [name for name in OTHERS if given.get(name)]:
            raise self.error(f"says {', '.join(others)}, and only plain LoRA is merged")
        if str(given.get("peft_type") or "LORA").upper() not in ("LORA", "PEFTTYPE.LORA"):
            raise self.error(f"says peft_type {short(str(given['peft_type']))}, and only LORA is merged")
        alphas, ranks = (self._patterns(given, name) for name in ("alpha_pattern", "rank_pattern"))
        alpha, rank = (self._number(given.get(name), name) for name in ("lora_alpha", "r"))
        return Strengths(self, alphas, ranks, alpha, rank, bool(given.get("use_rslora")))

    def _number(self, value: Any, name: str) -> float | None:
        if value is None or _is_number(value):
            return value
        raise self.error(f"gives {name} {short(repr(value))}, which is no finite number")

    def _patterns(self, given: Settings, name: str) -> Patterns:
        values = given.get(name) or {}
        if not isinstance(values, Mapping) or len(values) > MANY:
            raise self.error(f"gives {name} {short(repr(values))}, not as at most {MANY} numbers by layer")
        for pattern, value in values.items():
            if self._number(value, name) is None or not _is_quick(pattern):
                raise self.error(f"has in {name} the pattern {short(pattern)}, which cannot be read; name layers")
        return [(re.compile(_ends(pattern)), float(value)) for pattern, value in values.items()]

    def error(self, text: str) -> ArtifactError:
        """What is wrong with the settings."""
        return ArtifactError(f"{self.place} {text}. Save the LoRA again with the program that made it.")


Patterns = list[tuple[re.Pattern[str], float]]


@dataclass(frozen=True)
class Strengths:
    """The settings of one component, by which its layers' strengths are told."""

    described: Described
    alphas: Patterns
    ranks: Patterns
    alpha: float | None
    rank: float | None
    stabilized: bool

    def scale(self, layer: str, update: Update) -> float:
        """alpha / r of a layer, called as in the file but for the component; alpha / sqrt(r) for rank-stabilized LoRA
        (arXiv:2312.03732).

        Raises ArtifactError where file and settings give two strengths, or the settings another rank."""
        rank, alpha = len(update.down), _first(self.alphas, layer, self.alpha)
        if update.alpha is not None:
            if alpha is not None and not math.isclose(alpha, update.alpha, rel_tol=0.01):
                raise self.described.error(
                    f"says alpha {alpha:g} of {short(layer)}, and the file's own is {update.alpha:g}"
                )
            alpha = update.alpha
        told = _first(self.ranks, layer, self.rank)
        if alpha is None:
            return 1.0
        if told is not None and told != rank and update.alpha is None:
            raise self.described.error(f"says rank {told:g} of {short(layer)}, whose tensors have {rank}")
        return alpha / (math.sqrt(rank) if self.stabilized else rank)


def described(path: Path) -> Described:
    """peft's settings of a file, from its header, or from the adapter_config.json beside an adapter_model.safetensors."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        kept = (file.metadata() or {}).get(HEADER)
    if kept is not None:
        return Described(_parsed(kept, f"{path}: {HEADER}"), f"{path}: {HEADER}")
    beside = path.parent / BESIDE.get(path.name, "")
    if path.name in BESIDE and os.path.lexists(beside):
        return Described(read_json(beside), f"{beside}: it")
    return Described({}, str(path))


def _parsed(text: str | bytes, place: str) -> Settings:
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise ArtifactError(f"{place} is no JSON object. Save the LoRA again with the program that made it.")
    return about


def _first(values: Patterns, layer: str, otherwise: float | None) -> float | None:
    return next((value for pattern, value in values if pattern.fullmatch(layer)), otherwise)


def _ends(pattern: str) -> str:
    """peft's rule: a pattern is for a layer's whole name or its end after a dot."""
    return rf"(?:.*\.)?(?:{pattern})"


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:
        return False


def _is_quick(pattern: str) -> bool:
    """Whether a pattern compiles and is of few repetitions, none of them of a group, so that it matches in no time."""
    try:
        re.compile(pattern), re.compile(_ends(pattern))
    except (re.error, RecursionError, OverflowError):
        return False
    return len(pattern) <= 200 and len(re.findall(r"[*+{]", pattern)) <= 2 and not re.search(r"\)[*+{]", pattern)
