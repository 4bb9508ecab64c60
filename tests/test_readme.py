"""Every block of the README does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from optimize.recipes.read import parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


def test_the_recipe_in_the_readme_is_valid() -> None:
    (text,) = blocks("yaml")
    assert parse(text).name == yaml.safe_load(text)["name"]


def test_the_commands_in_the_readme_exist() -> None:
    from typer.main import get_command

    from optimize.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    named = {line.split()[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("optimize ")}
    assert named and named <= known
    targets = {line.split()[1] for block in blocks("bash") for line in block.splitlines() if line.startswith("make ")}
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)


@pytest.mark.parametrize("number", range(2))
def test_the_python_in_the_readme_runs(number: int) -> None:
    code = blocks("python")[number]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / link).exists(), link
