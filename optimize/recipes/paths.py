"""Where the files are that a recipe names, and what they hold: a result depends on their content, never on their place.

Paths in a recipe file are relative to its folder; those in a recipe that ships are relative to the folder that holds
`examples/`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimize.errors import EnvironmentLacks

if TYPE_CHECKING:
    from optimize.configs import Config

SHIPPED = "examples/digits"  # what the recipes that ship work on
RELATIVE = "Paths in a recipe file are relative to its folder."


def builtin() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("optimize.recipes")
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def builtin_text(name: str) -> str:
    """The YAML of a recipe that ships."""
    return (resources.files("optimize.recipes") / f"{name}.yaml").read_text()


def examples_root() -> Path | None:
    """The folder that holds `examples/`: a checkout that this package runs from, else the working directory; empty where
    it is the working directory. None where neither has them, as with an installed wheel."""
    checkout = Path(str(resources.files("optimize"))).parent
    found = next((root for root in (checkout, Path()) if (root / SHIPPED).is_dir()), None)
    return Path() if found is not None and found.resolve() == Path.cwd().resolve() else found


def required_examples(name: str) -> Path:
    """`examples_root` for the recipe `name`; EnvironmentLacks where there are none."""
    root = examples_root()
    if root is None:
        raise EnvironmentLacks(
            f"recipe {name}: it works on {SHIPPED}, which comes with the source of diffusion-optimize and not with the "
            f"installed package. Download the source and run the same command in its folder (the one with examples/), "
            "or write a recipe for a model of your own: optimize schema recipe."
        )
    return root


def as_seen_from(folder: Path) -> Callable[[Path], Path]:
    """What makes a path, relative to the working directory, right in a recipe file in `folder`."""
    return (lambda path: path) if folder.resolve() == Path.cwd().resolve() else Path.absolute


def content(config: Config) -> dict[str, Any]:
    """The JSON form of a config with every file and folder by what it holds, without the fields on which no result
    depends (`not_content`)."""
    apart: frozenset[str] = getattr(config, "not_content", frozenset())
    return {k: v for k, v in config.moved(_by_content).to_json().items() if k not in apart}


def _by_content(path: Path) -> Path:
    """The digest of a file or a folder in the place of its path; of what is not there, its name."""
    from optimize.configs import digest
    from optimize.storage.weights import file_sha256

    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
        return Path(digest({os.fspath(p.relative_to(path)): file_sha256(p) for p in files}))
    return Path(file_sha256(path)) if path.is_file() else Path(path.name)
