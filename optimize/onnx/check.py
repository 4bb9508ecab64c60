"""An ONNX file is looked at in a process of its own before any backend of this one parses it.

A process of its own: a file that makes a parser crash, or take all memory, costs one clear error; and neither the memory
nor the caches of a worker that measures are disturbed. The rules are in `rules.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from optimize.errors import ArtifactError, EnvironmentLacks

MEMORY = 4 * 2**30  # bytes of address space a check may take, above four times the file
SECONDS = 60  # a check may take, above one for every 4 MB of the file

Seen = tuple[str, int, int, int, int]  # a file as it was looked at: path, inode, size, times of content and inode

_passed: dict[Seen, tuple[str, ...]] = {}


def check_onnx(path: Path) -> tuple[str, ...]:
    """The external files of the model, relative to its folder, once it was found to keep every rule.

    A file is looked at once a process as long as its inode, size and times stay. Raises ArtifactError saying which rule
    is broken, EnvironmentLacks where onnx is missing."""
    if not path.is_file():
        raise ArtifactError(f"{path}: no such file. Give an ONNX file.")
    about = path.stat()
    key: Seen = (str(path.absolute()), about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    if key not in _passed:
        _passed[key] = _isolated(path, about.st_size)
    return _passed[key]


def passed() -> list[list[Any]]:
    """What this process has looked at and found good, as JSON, to `vouch` for it in a process that it starts."""
    return [[list(key), list(external)] for key, external in _passed.items()]


def vouch(seen: list[list[Any]]) -> None:
    """Take these files (see `passed`) as looked at, as long as their inode, size and times stay."""
    _passed.update({tuple(key): tuple(external) for key, external in seen})


def _isolated(path: Path, size: int) -> tuple[str, ...]:
    command = [sys.executable, "-m", "optimize.onnx.check", str(path)]
    limit = SECONDS + size // 4_000_000
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        raise ArtifactError(f"{path}: looking at it took more than {limit} s. It is not opened.") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise ArtifactError(
            f"{path}: onnx crashed or ran out of memory on it ({how}). It is not opened. {_last(done.stderr)}"
        ) from None
    if "lacks" in answer:
        raise EnvironmentLacks(f"{answer['lacks']}. Install it: pip install onnx")
    if "error" in answer:
        raise ArtifactError(answer["error"])
    return tuple(answer["external"])


def _last(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1][:200] if lines else ""


def main(argument: str) -> None:
    """Look at one file with limited memory and print the answer as JSON."""
    import resource

    from optimize.onnx.rules import examine

    path = Path(argument)
    limit = MEMORY + 4 * path.stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
    try:
        answer: dict[str, object] = {"external": examine(path)}
    except ArtifactError as error:
        answer = {"error": str(error)}
    except ImportError as error:
        answer = {"lacks": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1])
