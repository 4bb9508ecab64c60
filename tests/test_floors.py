"""Rooms in order: imports between folders run downward only, plugins never import each other, and names stay apart."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "optimize"

# The order of the folders, lowest first; a file may import its own folder and those before it. "" are the files of
# `optimize/` itself that everyone may use; its __init__.py, the Python interface, stands on all rooms but the command line.
FRONT = {"__init__.py": "the interface", "__main__.py": "the program"}
ORDER = (
    "",
    "plain",
    "storage",
    "hardware",
    "diffusion/scheduler_config",
    "diffusion",
    "architectures/adapters",
    "architectures",
    "sources",
    "pruning",
    "quantization",
    "training",
    "onnx",
    "engines",
    "engines/kits",
    "serving",
    "passes",
    "exporters",
    "runners",
    "roofline",
    "measure",
    "inspect",
    "quality/judges",
    "quality",
    "recipes",
    "planning",
    "report",
    "report/terminal",
    "runs",
    "delivery",
    "pipelines",
    "the interface",
    "cli",
    "the program",
)
PLUGINS = ("passes", "exporters", "runners", "sources")
# Files that import what they are given the name of; elsewhere an import is a statement, which this test can read.
BY_NAME = ("registry.py", "storage/import_paths.py", "engines/libraries.py", "engines/script.py")
CALLS = ("import_module", "__import__", "find_spec", "resolve_name")
FILES = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.py"))
FOLDERS = sorted({f.rpartition("/")[0] for f in FILES})


def room(path: str) -> str:
    """Folder of a file given relative to the package."""
    return FRONT.get(path, path.rpartition("/")[0])


def imports(text: str, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, at any depth; a name imported from a module comes as `module.name`.

    Names given as text to `import_module` or `__import__` count as well, and modules reached by attributes of the package
    (`import optimize.errors`, then `optimize.runs.execute`).
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
        elif isinstance(node, ast.Attribute) and (dotted := ast.unparse(node)).startswith("optimize."):
            yield node.lineno, dotted


def by_name(text: str) -> Iterator[int]:
    """Lines of a file that import by a name given as text, in any spelling."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
        else:
            names = [getattr(node, "attr", getattr(node, "id", ""))]
        if any(name in CALLS for name in names):
            yield node.lineno  # type: ignore[attr-defined]


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
    own = room(path)
    if own not in ORDER:
        return [f"optimize/{own}/ has no place: add it to ORDER in tests/test_floors.py, as low as its imports allow"]
    found = []
    for line, name in imports(text, path):
        other = target(name, files)
        if other is None or other == path:
            continue
        if room(other) in ORDER and ORDER.index(room(other)) > ORDER.index(own):
            found.append(
                f"optimize/{path}:{line} imports optimize/{other}: {room(other)} stands above {own or 'optimize/ itself'}, and imports run downward"
            )
        elif own in PLUGINS and _plugin(other):
            found.append(
                f"optimize/{path}:{line} imports optimize/{other}: plugins never import each other; move what they share down"
            )
    if path not in BY_NAME:
        found += [
            f"optimize/{path}:{line} imports by name: write an import statement, whose floor can be told"
            for line in by_name(text)
        ]
    return found


def _plugin(path: str) -> bool:
    """Whether a file is a plugin: in one of the plugin folders, and neither its __init__ nor a private helper."""
    return room(path) in PLUGINS and not path.rsplit("/", 1)[1].startswith("_")


@pytest.mark.parametrize("path", FILES)
def test_imports_run_downward(path: str) -> None:
    problems = complaints(path, (PACKAGE / path).read_text(encoding="utf-8"), set(FILES))
    assert not problems, "\n".join(problems)


def test_every_folder_has_one_place_and_every_place_a_folder() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert set(FOLDERS) == set(ORDER) - set(FRONT.values())


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_is_small_and_says_what_it_is(folder: str) -> None:
    held = [p for p in (PACKAGE / folder).iterdir() if p.is_file()]
    assert len(held) <= (15 if folder else 8), f"optimize/{folder}: {len(held)} files"
    text = (PACKAGE / folder / "__init__.py").read_text(encoding="utf-8")
    if not folder:
        return
    assert len(text.splitlines()) <= 8 and len(ast.parse(text).body) == 1  # its docstring, and nothing to import
    assert "Read `" in text and "Not here: " in text


ENDINGS = ("", *["e", "s", "es", "ed", "d", "er", "ers", "r", "or", "ors", "ing", "ings", "able", "ation", "ations", "ment", "ments", "ement", "ion", "ions", "ive", "age"])  # fmt: skip
# A pass is named as it is registered, a verb; the room of what it is made of is called what the field calls it.
MEANT = {("prune", "pruning"), ("quantization", "quantize"), ("diffusers", "diffusion")}


def too_near(names: set[str]) -> set[tuple[str, str]]:
    """Pairs of names that differ by a plural, a suffix or an -ing alone: one beginning of four letters or more, two
    endings."""
    return {(a, b) for a, b in combinations(sorted(names), 2) if _near(a, b)}


def _near(a: str, b: str) -> bool:
    same = (n for n in range(4, min(len(a), len(b)) + 1) if a[:n] == b[:n])
    return any(a[n:] in ENDINGS and b[n:] in ENDINGS for n in same)


def test_no_two_names_differ_by_an_ending() -> None:
    names = {Path(f).stem.strip("_") for f in FILES if not f.endswith("__.py")} | {Path(f).name for f in FOLDERS if f}
    assert too_near(names) <= MEANT


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("plan", "plans"),
        ("plan", "plane"),
        ("pipeline", "pipelines"),
        ("runner", "runners"),
        ("export", "exporters"),
        ("export", "exporting"),
        ("quantizers", "quantizable"),
        ("measure", "measurement"),
        ("import", "imported"),
        ("calibrate", "calibration"),
    ],
)
def test_names_that_are_too_near_are_seen(a: str, b: str) -> None:
    assert too_near({a, b, "weights"}) == {(min(a, b), max(a, b))}


def test_tests_mirror_the_folders() -> None:
    allowed = {*ORDER, "support", "benchmarks", "corpus"}
    held = {p.parent.relative_to(ROOT / "tests").as_posix() for p in (ROOT / "tests").rglob("test_*.py")}
    assert {"" if h == "." else h for h in held} <= allowed


def test_the_order_is_the_one_contributing_tells() -> None:
    told = re.findall(r"^\| `(?:optimize/)?([a-z_/]*?)/?` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    assert told == [room for room in ORDER if room not in FRONT.values()]


@pytest.mark.parametrize("path", FILES)
def test_files_that_a_text_names_are_there(path: str) -> None:
    """`folder/file.py` in backticks is found from the naming file's folder, the package or the root; programs of a kit and of
    a served model are made elsewhere."""
    named = set(re.findall(r"`([\w/]+\.py)`", (PACKAGE / path).read_text(encoding="utf-8"))) - {"build.py", "model.py"}
    places = ((PACKAGE / path).parent, PACKAGE, ROOT)
    gone = sorted(name for name in named if not any((place / name).is_file() for place in places))
    assert not gone, f"optimize/{path} names {gone}"


def test_no_name_stands_for_many_files() -> None:
    counted = Counter(Path(f).name for f in FILES if not f.endswith("__init__.py"))
    assert max(counted.values()) <= 3, counted.most_common(3)


KNOWN = {"__init__.py", "errors.py", "diffusion/model.py", "diffusion/context.py", "runs/execute.py", "passes/__init__.py", "passes/prune.py", "passes/recover.py", "runners/onnxruntime.py", "cli/app.py"}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "text", "complaint"),
    [
        ("diffusion/model.py", "from optimize.errors import UserError", ""),
        ("diffusion/model.py", "import torch\nfrom torch import nn", ""),
        ("diffusion/model.py", "from optimize.diffusion.context import Context", ""),
        ("passes/prune.py", "from optimize.diffusion.context import Context\nfrom optimize.diffusion import model", ""),
        ("diffusion/model.py", "import optimize.runs.execute", "runs stands above diffusion"),
        ("diffusion/model.py", "from optimize.runs import execute", "imports optimize/runs/execute.py"),
        ("diffusion/model.py", "from optimize import load", "imports optimize/__init__.py"),
        ("cli/app.py", "from optimize import load", ""),
        ("diffusion/model.py", "def f():\n    from optimize.runs.execute import run", "diffusion/model.py:2"),
        (
            "diffusion/model.py",
            "if TYPE_CHECKING:\n    from optimize.passes.prune import Prune",
            "imports optimize/passes",
        ),
        ("diffusion/model.py", "importlib.import_module('optimize.runs.execute')", "imports optimize/runs/execute.py"),
        ("diffusion/model.py", "from ..runs.execute import run", "imports optimize/runs/execute.py"),
        ("errors.py", "from optimize.diffusion import model", "diffusion stands above optimize/ itself"),
        ("passes/prune.py", "from optimize.cli.app import main", "cli stands above passes"),
        ("passes/prune.py", "from .recover import Recover", "plugins never import each other"),
        ("runners/onnxruntime.py", "from optimize.passes.prune import Prune", "plugins never import each other"),
        (
            "runners/_shared.py",
            "from optimize.runners.onnxruntime import Onnxruntime",
            "plugins never import each other",
        ),
        ("passes/prune.py", "import optimize.passes\n\noptimize.passes.recover.Recover", "plugins never import each"),
        (
            "diffusion/model.py",
            "import optimize.errors\n\noptimize.runs.execute.run",
            "imports optimize/runs/execute.py",
        ),
        ("diffusion/model.py", "import_module(f'optimize.run.{name}')", "imports by name"),
        ("diffusion/model.py", "import_module('..run.execute', __package__)", "imports by name"),
        ("diffusion/model.py", "from importlib import import_module as load", "imports by name"),
        ("diffusion/model.py", "importlib.util.find_spec('optimize.run')", "imports by name"),
        ("registry.py", "importlib.import_module(f'{package}.{name}')", ""),
        ("brand_new/thing.py", "", "has no place: add it to ORDER in tests/test_floors.py"),
    ],
)
def test_the_rule_sees_what_it_should(path: str, text: str, complaint: str) -> None:
    problems = complaints(path, text, KNOWN)
    assert (complaint in problems[0]) if complaint else not problems
