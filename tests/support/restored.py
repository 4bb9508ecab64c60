"""A model saved as an artifact, and a process that restores one without torch-pruning and without torch.load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from optimize.architectures.artifact import save_model
from optimize.diffusion.model import Model
from optimize.storage.commit import commit

RESTORE = """
import sys
sys.modules["torch_pruning"] = None
import torch
def refuse(*args, **kwargs):
    raise AssertionError("torch.load was called")
torch.load = refuse
from pathlib import Path
from optimize.architectures.artifact import load_model
from optimize.diffusion.network import example_inputs
from safetensors.torch import save_file
model = load_model(Path(sys.argv[1]))
with torch.inference_mode():
    save_file({"y": model.denoiser.network(**example_inputs(model.inputs, int(sys.argv[3]), classes=10))}, sys.argv[2])
"""


def saved(model: Model, folder: Path) -> Path:
    """The model as an artifact in `folder`."""

    def write(temporary: Path) -> dict[str, Any]:
        save_model(temporary, model)
        return {"id": "saved"}

    commit(folder, write)
    return folder


def output_of_a_fresh_process(folder: Path, batch: int, to: Path) -> torch.Tensor:
    """What the network in `folder` makes of its example inputs in a process of its own; written to `to` on the way."""
    program = [sys.executable, "-c", RESTORE, str(folder), str(to), str(batch)]
    subprocess.run(program, check=True, timeout=120)
    return load_file(to)["y"]
