"""What a 16-bit file overflows to, for runners that compute it in FP32: other machines would be the first to see it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.diffusion.backend import open_runner, reads_weights, spec_parts
from optimize.errors import EnvironmentLacks

if TYPE_CHECKING:
    from optimize.diffusion.model import Model

log = logging.getLogger(__name__)
ROUNDS = "onnxruntime"  # the runner that rounds as the file is stored, on the CPU as well


def as_stored(found: dict[str, Any], folder: Path, stored: str, model: Model) -> dict[str, Any]:
    """Parities by runner spec, those of runners of the file with `not_finite` where the file, computed in `stored` (fp16,
    bf16), gives NaN or infinities. Nothing is to be done where one of them rounds itself."""
    readers = [s for s in found if not reads_weights(s) and "refused" not in found[s]]
    if stored == "fp32" or not readers or any(spec_parts(s)[0] == ROUNDS for s in readers):
        return found
    from optimize.diffusion.parity import parity

    try:
        with open_runner(folder, ROUNDS) as network:
            said = parity(model, network, levels=3, batch=2).get("not_finite")
    except EnvironmentLacks as error:
        log.warning("parity: whether the %s file overflows is not known (%s)", stored, error)
        return found
    broken = {"not_finite": f"computed in {stored} as it is stored, {said}"} if said else {}
    return {s: v | (broken if s in readers else {}) for s, v in found.items()}
