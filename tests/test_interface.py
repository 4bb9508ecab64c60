"""The Python interface: its names are there, and nothing is imported before it is asked for."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import optimize
from optimize.diffusion.context import Context, Data
from optimize.errors import UserError
from optimize.registry import PASSES

CLASSES = ("Context", "Data", "Distill", "Prune", "Quantize", "Recover")


def test_passes_and_what_they_are_given_come_from_the_package_itself() -> None:
    from optimize import Distill, Prune, Quantize, Recover

    assert (optimize.Context, optimize.Data) == (Context, Data)
    assert [PASSES.get(n) for n in ("distill", "prune", "quantize", "recover")] == [Distill, Prune, Quantize, Recover]
    assert Prune(budget={"macs": 0.4}).budget.macs == 0.4
    assert {*CLASSES} <= {*optimize.__all__} <= {*dir(optimize)}
    assert all(hasattr(optimize, name) for name in optimize.__all__)


def test_every_pass_that_ships_is_in_the_interface() -> None:
    assert {n.lower() for n in optimize.PASSES} == {n for n in PASSES.names() if PASSES.get(n).__module__.startswith("optimize.")}  # fmt: skip


def test_a_name_that_is_not_there_is_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match="module 'optimize' has no attribute 'Prun'"):
        optimize.Prun  # noqa: B018


def test_a_wrong_name_is_an_error_to_a_type_checker() -> None:
    """A module's `__getattr__` that a checker sees makes every name valid."""
    tree = ast.parse(Path(str(optimize.__file__)).read_text())
    assert not [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "__getattr__"]


def test_functions_stay_functions_whatever_rooms_were_imported() -> None:
    """A room of a function's name would take its place as soon as something in the room is imported."""
    rooms = {m.name for m in pkgutil.iter_modules(optimize.__path__)}
    assert not rooms & {*optimize.__all__}
    for _ in range(2):
        with pytest.raises(UserError, match="no such file"):
            optimize.run("nowhere.yaml")
    with pytest.raises(UserError):
        optimize.compare("nowhere", "nowhere")
    assert not isinstance(optimize.run, ModuleType) and not isinstance(optimize.compare, ModuleType)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, optimize; dir(optimize); loaded = {m.split('.')[0] for m in sys.modules}\n"
        "assert not {'torch', 'pydantic', 'numpy', 'yaml', 'diffusers'} & loaded, loaded\n"
        "from optimize import Prune, Context\n"
        "assert 'pydantic' in sys.modules and 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
