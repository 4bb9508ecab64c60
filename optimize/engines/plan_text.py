"""What an engine says of itself: the format each convolution and matrix product really computes in, and for which GPUs.

A TensorRT-RTX plan holds readable text, so this needs no GPU; TensorRT's inspector is asked on the card. Standard
library only: a build kit's script is made of this file.
"""

from __future__ import annotations

WIDE = ("fp32", "tf32")


def compare(expected: dict[str, int], found: dict[str, int]) -> list[str]:
    """What of the graph's precision an engine lost, as sentences; empty where nothing, or where it does not tell."""
    if not found:
        return []
    problems = [
        f"{expected[name]} layers of the graph are {name}, the engine computes {found.get(name, 0)} of them in it."
        for name in ("int8", "fp8")
        if found.get(name, 0) < expected.get(name, 0)
    ]
    asked, made = (sum(counts.get(name, 0) for name in WIDE) for counts in (expected, found))
    if made > asked:
        problems.append(f"the engine computes {made} layers in fp32, the graph asks for {asked}.")
    return problems
