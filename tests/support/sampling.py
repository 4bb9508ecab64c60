"""A whole sampler.json, as artifacts hold it, with a part of it as a test wants it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WHOLE: dict[str, Any] = {
    "sampler": {"solver": "ddim", "steps": 2, "guidance": {"cfg": None, "batched": True}},
    "schedule": {"kind": "flow"},
    "parameterization": {"prediction": "epsilon", "time": "index", "time_scale": 1.0, "learned_variance": False},
    "conditioning": {"kind": "none", "classes": 0, "null": None},
    "shape": [1, 16, 16],
    "limit": 1.0,
}


def write_sampling(folder: Path, **parts: Any) -> None:
    """sampler.json in `folder`, these parts instead of the usual ones."""
    (folder / "sampler.json").write_text(json.dumps(WHOLE | parts))
