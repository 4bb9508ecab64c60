"""What is imported to read a recipe or show help stays light: no torch, and nothing that pulls it in."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN_FOLDERS = ("passes", "exporters", "runners", "sources")
PLUGINS = [
    f"optimize.{folder}.{p.stem}"
    for folder in PLUGIN_FOLDERS
    for p in sorted((ROOT / "optimize" / folder).glob("*.py"))
    if not p.stem.startswith("_")
]
LIGHT = ["optimize", "optimize.errors", "optimize.registry", "optimize.recipes.schema", "optimize.recipes.read", "optimize.planning.refusals", "optimize.cli.app", "optimize.report.terminal.summary", "optimize.measure.bench", "optimize.runs.comparison", "optimize.report.terminal.bench"]  # fmt: skip
HEAVY = ("torch", "diffusers", "transformers", "onnx", "onnxruntime", "openvino", "modelopt", "torch_pruning", "matplotlib", "scipy")  # fmt: skip

PROBE = """
import importlib, sys
for name in sys.argv[1].split():
    importlib.import_module(name)
    loaded = [heavy for heavy in sys.argv[2].split() if heavy in sys.modules]
    if loaded:
        sys.exit(f"importing {name} loads {', '.join(loaded)}: import it inside the function that needs it")
"""


def probe(names: list[str]) -> None:
    """Import modules one after another in a fresh process; fail at the first that brings in something heavy."""
    command = [sys.executable, "-c", PROBE, " ".join(names), " ".join(HEAVY)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert found.returncode == 0, found.stderr


def test_no_plugin_imports_a_heavy_library_at_its_top() -> None:
    assert PLUGINS
    probe(PLUGINS)


@pytest.mark.parametrize("name", LIGHT)
def test_what_the_command_line_starts_with_is_light(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not there")
    probe([name])


def test_the_probe_catches_a_heavy_import() -> None:
    with pytest.raises(AssertionError, match=r"importing optimize.quality.judges.image_classifier loads torch"):
        probe(["optimize.errors", "optimize.quality.judges.image_classifier"])
