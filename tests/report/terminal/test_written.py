"""What an export of a pipeline prints: a graph a line, what was left out, and where it lies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from optimize.report.terminal.written import print_exported


def printed(**changes: Any) -> str:
    parts = {
        "transformer": {"inputs": [{"name": "hidden_states"}, {"name": "timestep"}], "parity": {"relative_l2": 3.2e-7}},
        "vae_decoder": {"inputs": [{"name": "latent_sample"}]},
    }
    files = {"transformer/model.onnx": {"bytes": 2**20}, "transformer/model.onnx.data": {"bytes": 2**21}}
    out = io.StringIO()
    manifest = {"kind": "pipeline", "parts": parts, "files": files, "left_out": [], **changes}
    print_exported(manifest, Path("exported/sd3"), Console(file=out, width=160))
    return out.getvalue()


def test_a_graph_is_a_line_with_size_inputs_and_distance() -> None:
    lines = printed().splitlines()
    row = next(line for line in lines if "transformer" in line)
    assert all(word in row for word in ("3.0", "hidden_states, timestep", "3.2e-07"))
    assert "the artifact's own file" in next(line for line in lines if "vae_decoder" in line)


def test_what_was_left_out_is_said() -> None:
    assert "left out" not in printed()
    assert "layout has no place for it: image_encoder, safety_checker" in printed(
        left_out=["image_encoder", "safety_checker"]
    )


def test_the_last_line_says_what_lies_where() -> None:
    assert printed().rstrip().endswith("Pipeline: exported/sd3")
