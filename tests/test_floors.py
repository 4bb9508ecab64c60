"""Imports run strictly downward, at any depth of any file of the package; plugins never import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "optimize"

# The floor of every file, a folder (with its slash) standing for all files in it. A file may import its own floor and
# those below. A new file that no entry covers fails the test: give it the lowest floor its imports allow.
FLOORS: dict[int, tuple[str, ...]] = {
    0: ("errors.py",),
    1: (
        "configs.py",
        "registry.py",
        "rng.py",
        "environment.py",
        "gpus.py",
        "room.py",
        "imports.py",
        "targets.py",
        "trust.py",
        "quantizable.py",
        "weights.py",
    ),
    2: ("schedule.py", "parameterization.py", "network.py", "onnx_rules.py", "onnx_check.py", "ops/"),
    3: ("conditions.py", "denoiser.py", "lora.py", "sampling.py", "model.py", "models/", "sources/"),
    4: (
        "artifact.py",
        "calibration.py",
        "context.py",
        "cost.py",
        "engines/",
        "feasibility.py",
        "gates.py",
        "layers.py",
        "macs.py",
        "offers.py",
        "onnx_clean.py",
        "onnx_emulation.py",
        "onnx_file.py",
        "onnx_graph.py",
        "onnx_lowering.py",
        "onnx_precision.py",
        "onnx_quantize.py",
        "onnx_stand_ins.py",
        "onnx_symbols.py",
        "onnx_trace.py",
        "overflow.py",
        "parity.py",
        "quantizers.py",
        "places.py",
        "schemas.py",
        "recipe.py",  # holds the sampler's config, of floor 3
        "recipes/",
        "runner.py",
        "training.py",
        "measure/",
        "quality/",
    ),
    5: ("passes/", "exporters/", "runners/", "serving/"),
    6: (
        "as_onnx.py",
        "benchmark.py",
        "comparison.py",
        "exporting.py",
        "fair.py",
        "fleet.py",
        "forecast.py",
        "inspection.py",
        "optimum_artifact.py",
        "optimum_layout.py",
        "parts.py",
        "pipeline.py",
        "pipeline_folder.py",
        "pipelines.py",
        "plan.py",
        "planning.py",
        "progress.py",
        "propose.py",
        "report/",
        "stages.py",
        "store.py",
        "subject.py",
        "suite.py",
        "summary.py",
    ),
    7: (
        "cli.py",
        "cli_export.py",
        "cli_measure.py",
        "cli_names.py",
        "cli_options.py",
        "__main__.py",
        "__init__.py",
    ),  # __init__.py is the Python interface: the front door, like cli.py
}
PLUGINS = ("passes/", "exporters/", "runners/", "sources/", "serving/")
FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))


def floor(path: str) -> int | None:
    """Floor of a file given relative to the package; None where no entry covers it."""
    found = [
        (len(e), n)
        for n, entries in FLOORS.items()
        for e in entries
        if path == e or (e[-1] == "/" and path.startswith(e))
    ]
    return max(found)[1] if found else None


def imports(text: str, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, at any depth; a name imported from a module comes as `module.name`.

    Names given as text to `import_module` or `__import__` count as well.
    """
    here = ["optimize", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def target(name: str, files: set[str]) -> str | None:
    """The package's file that a dotted name stands for, or None for what lies outside the package."""
    parts = name.split(".")
    if parts[0] != "optimize":
        return None
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[1:length])
        for candidate in (f"{path}.py", f"{path}/__init__.py" if path else "__init__.py"):
            if candidate in files:
                return candidate
    return None


def complaints(path: str, text: str, files: set[str]) -> list[str]:
    """What is wrong with the imports of one file."""
    own = floor(path)
    if own is None:
        return [
            f"optimize/{path} has no floor: add it to FLOORS in tests/test_floors.py, on the lowest its imports allow"
        ]
    found = []
    for line, name in imports(text, path):
        other = target(name, files)
        if other is None or other == path:
            continue
        above = floor(other)
        if above is not None and above > own:
            found.append(
                f"optimize/{path}:{line} (floor {own}) imports optimize/{other} (floor {above}): imports run downward"
            )
        elif _plugin(path) and _plugin(other):
            found.append(
                f"optimize/{path}:{line} imports optimize/{other}: plugins never import each other; move what they share down"
            )
    return found


def _plugin(path: str) -> bool:
    """Whether a file is a plugin: in one of the plugin folders, and neither its __init__ nor a private helper."""
    return path.startswith(PLUGINS) and not path.rsplit("/", 1)[1].startswith("_")


@pytest.mark.parametrize("path", FILES)
def test_imports_run_downward(path: str) -> None:
    problems = complaints(path, (PACKAGE / path).read_text(encoding="utf-8"), set(FILES))
    assert not problems, "\n".join(problems)


def test_no_file_is_on_two_floors() -> None:
    entries = [e for found in FLOORS.values() for e in found]
    assert len(entries) == len(set(entries))


KNOWN = {"__init__.py", "errors.py", "model.py", "pipeline.py", "passes/__init__.py", "passes/prune.py", "passes/recover.py", "runners/onnx.py", "context.py"}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("model.py", "from optimize.errors import UserError", ""),
        ("model.py", "import torch\nfrom torch import nn", ""),
        ("passes/prune.py", "from optimize.diffusion.context import Context\nfrom optimize import model", ""),
        ("model.py", "import optimize.run.execute", "floor 3) imports optimize/run/execute.py (floor 6)"),
        ("model.py", "from optimize import pipeline", "imports optimize/run/execute.py"),
        ("model.py", "from optimize import load", "imports optimize/__init__.py (floor 7)"),
        ("model.py", "def f():\n    from optimize.run.execute import run", "model.py:2"),
        (
            "model.py",
            "if TYPE_CHECKING:\n    from optimize.diffusion.context import Context",
            "imports optimize/diffusion/context.py",
        ),
        ("model.py", "importlib.import_module('optimize.run.execute')", "imports optimize/run/execute.py"),
        ("model.py", "from .pipeline import run", "imports optimize/run/execute.py"),
        ("passes/prune.py", "from ..pipeline import run", "imports optimize/run/execute.py"),
        ("passes/prune.py", "from .recover import Recover", "plugins never import each other"),
        ("passes/prune.py", "from optimize.runners.onnx import Onnx", "plugins never import each other"),
        ("brand_new.py", "", "has no floor: add it to FLOORS in tests/test_floors.py"),
    ],
)
def test_the_rule_sees_what_it_should(path: str, text: str, complaint: str) -> None:
    problems = complaints(path, text, KNOWN)
    assert (complaint in problems[0]) if complaint else not problems
