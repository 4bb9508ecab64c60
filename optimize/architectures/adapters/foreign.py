"""What a file holds that is no plain LoRA, told by the names of its tensors, and the one error that names it.

A kind is what it is called and the pattern of its names; the first that matches counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from optimize.errors import ArtifactError

SHOWN, LONGEST, ROOM = 10, 120, 1200  # names in an error, letters of a name and of all
KINDS: tuple[tuple[str, str], ...] = (
    ("DoRA", r"\.dora_scale$|\.lora_magnitude_vector\b"),
    ("LoHa", r"\.hada_"),
    ("LoKr", r"\.lokr_"),
    ("OFT or BOFT", r"\.b?oft_"),
    ("GLoRA", r"\.[ab][12]\.weight$"),
    ("VeRA", r"\bvera_(lambda|A|B)"),
    ("(IA)3", r"\.on_input$|\.ia3_l"),
    ("LoRA of a lookup table", r"\.lora_embedding_[AB]\b"),
    ("a third factor between down and up (lora_mid)", r"\.lora_mid\b"),
    ("differences of full rank", r"\.(diff|diff_b|set_weight|w_norm|b_norm|reshape_weight)$"),
    ("biases beside the update", r"\.lora[_.](linear_layer\.)?(down|up|A|B)\b.*\.bias$|_lora\d?\.(down|up)\.bias$"),
    ("scales of norms, as in a control LoRA of Flux", r"\bnorm\.(query|key)_norm\b|\.norm_(added_)?[qk]\b"),
    ("textual inversion", r"^(emb_params|clip_[lgh]|t5|t5xxl|string_to_(token|param)(\..*)?|bundle_emb\..*|<[^>]*>)$"),
    ("a hypernetwork", r"^(320|640|768|1024|1280|2048)\.\d|^hypernet"),
    ("an IP-adapter", r"^(image_proj|ip_adapter)\.|\.to_[kv]_ip\b|\bip_adapter_"),
    ("a ControlLoRA", r"^lora_controlnet$"),
    ("a ControlNet", r"^(control_model\.|input_hint_block|zero_convs|controlnet|lllite_)|\bcontrolnet_"),
    ("a T2I-Adapter", r"^(adapter\.)?body\.\d"),
)
PLAIN = "Only plain LoRA is merged: down and up (or lora_A and lora_B) of a layer, and its alpha."
TODO = f"{PLAIN} Merge the file with the program it was made for and give the merged model, or leave the file out."


def kind_of(name: str) -> str | None:
    """What a tensor of this name belongs to; None where no kind but LoRA has such names."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), None)


def refusal(path: Path, problems: Mapping[str, Sequence[str]]) -> ArtifactError:
    """The error for a file with `problems`: {what is wrong: names}."""
    return ArtifactError(f"{path}: it holds {listed(problems)}. {TODO}")


def listed(problems: Mapping[str, Sequence[str]]) -> str:
    """`kind (name, name); kind (name)` with at most ten names in all."""
    left, parts = SHOWN, []
    for kind, names in problems.items():
        parts.append(f"{kind} ({some(names, left)})" if names else kind)
        left = max(left - len(names), 0)
    return "; ".join(parts)


def some(names: Sequence[str], most: int = SHOWN) -> str:
    """The first names, no more of them than fit in a message, and how many more there are."""
    ends = accumulate(len(name) + 2 for name in names[:most])
    shown = names[: sum(end <= ROOM for end in ends)]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if shown and more else f"{more} tensors" if more else "")


def short(name: str) -> str:
    """A name for an error, without its middle where it is long."""
    plain = name.encode("unicode_escape").decode()
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST // 2]}…{plain[-LONGEST // 2 :]}"
