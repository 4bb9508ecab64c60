"""`optimize bench`: any artifacts on any runners in one interleaved bench; results are appended to a measurements file.

One JSON line a row. The file is replaced as a whole, under a lock on its folder: killed at any moment, or written by two
benches at once, it holds whole lines and all of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import ValidationError

from optimize.architectures.artifact import verify_network
from optimize.configs import MOST_AT_ONCE, described
from optimize.diffusion.backend import runner_config, spec_parts
from optimize.diffusion.sampling import ALL_SOLVERS, Sampler
from optimize.errors import ArtifactError, UserError, cut, unknown
from optimize.measure.record import Measurement, Variant, policy_text
from optimize.plain.shapes import Measured, as_shaped, misshapen
from optimize.plain.text import LARGEST, parse_json, read_text
from optimize.registry import RUNNERS
from optimize.storage.commit import write_text_atomically
from optimize.storage.disk import writing
from optimize.storage.trust import MANIFEST, checked
from optimize.storage.weights import read_json

FEWEST = 8  # rounds of any row's images: below six no signed-rank interval of a ratio exists
IO: tuple[str, ...] = ("host", "device")


def variants(
    artifacts: Sequence[Path],
    runners: Sequence[str],
    batches: Sequence[int] = (1,),
    *,
    io: Sequence[str] = ("host",),
    cuda_graphs: Sequence[bool] = (False,),
    solver: str | None = None,
    steps: int | None = None,
    threads: int | None = None,
) -> list[Variant]:
    """Every artifact x runner x batch x policy, keyed `artifact/runner/batch`, a policy other than the usual appended.

    `solver` and `steps` replace those of the artifacts' own samplers. Raises UserError for a runner, option or sampler
    that does not exist, ArtifactError for a folder that is no artifact, or a changed one.
    """
    named = _named(artifacts)
    for spec in runners:
        _check_runner(spec)
    for value in io:
        if value not in IO:
            raise unknown("--io", value, IO)
    samplers = {name: _sampler(folder, solver, steps) for name, folder in named.items()}
    made = []
    for name, spec, batch, place, graphs in product(named, dict.fromkeys(runners), batches, io, cuda_graphs):
        runner, options = spec_parts(spec)
        made.append(
            Variant(
                key=f"{name}/{spec}/{batch}{policy_text(place, graphs)}",
                folder=str(named[name]),
                runner=runner,
                options=options,
                batch=batch,
                sampler=samplers[name],
                threads=threads,
                io=cast(Literal["host", "device"], place),
                cuda_graphs=graphs,
            )
        )
    return made


def numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers above zero, separated by commas; UserError for anything else."""
    parts = [p.strip() for p in text.split(",")]
    wrong = [p for p in parts if not re.fullmatch("0*[1-9][0-9]{0,9}", p, re.ASCII) or int(p) > MOST_AT_ONCE]
    if wrong:
        allowed = f"is no whole number above zero. Give e.g. {option} 1,16. At most {MOST_AT_ONCE}"
        raise UserError(f'{option}: "{cut(wrong[0], 40)}" {allowed}.')
    return tuple(dict.fromkeys(int(p) for p in parts))


def append(path: Path, rows: Sequence[Measurement]) -> None:
    """Add a line for each row; the file is never seen with a part of them."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.parent):
            before = path.read_text() if path.exists() else ""
            if before and not before.endswith("\n"):
                raise _malformed(path, before.count("\n") + 1)
            lines = (json.dumps(row.to_json(), separators=(",", ":"), allow_nan=False) for row in rows)
            write_text_atomically(path, before + "".join(f"{line}\n" for line in lines))


def read(path: Path) -> list[Measurement]:
    """Every row of a measurements file, in the order they were written; ArtifactError naming a line that is none."""
    if not path.exists():
        raise ArtifactError(f"{path}: no such file. Make one with: optimize bench ARTIFACT --out {path}")
    found = []
    for number, line in enumerate(read_text(path, LARGEST, ArtifactError, "a measurements file").splitlines(), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line, str(path))
            wrong = misshapen(value, Measured)
            found += [] if wrong else [Measurement.from_json(value)]
        except (UserError, ValueError, TypeError) as error:
            raise _malformed(path, number) from error
        if wrong:
            raise _malformed(path, number, wrong)
    return found


def exit_code(rows: Sequence[Measurement]) -> int:
    """0 where anything was measured; else 3 where this machine lacks what all take, and 2 where a row failed."""
    if any(row.done for row in rows):
        return 0
    return 3 if all(row.status == "refused" for row in rows) else 2


def check_out(path: Path) -> None:
    """Raise, before anything is measured, where results could not be appended to `path`."""
    if path.is_dir():
        raise UserError(f"--out: {path} is a folder. Give a file, e.g. {path / 'measurements.jsonl'}.")
    if path.exists():
        read(path)


def _malformed(path: Path, line: int, why: str = "") -> ArtifactError:
    return ArtifactError(
        f"{path}: line {line} is no whole measurement (one JSON object a line, as optimize bench writes). {why} Remove that line, or choose another file."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder against other benches that append; let go at the end, or by the system where this process dies."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _named(artifacts: Sequence[Path]) -> dict[str, Path]:
    """Folders by a name: their own, or the whole path where two have the same."""
    if not artifacts:
        raise UserError("bench: no artifact. Give one folder or more, e.g. exported/digits/final.")
    for folder in artifacts:
        if not (folder / MANIFEST).is_file():
            reason = "is no artifact: it has no manifest.json" if folder.is_dir() else "is no folder"
            raise ArtifactError(f"bench: {folder} {reason}. Give an artifact such as exported/digits/final.")
        verify_network(folder)
    folders = dict.fromkeys(folder.resolve() for folder in artifacts)
    names = [f.name for f in folders]
    return {f.name if names.count(f.name) == 1 else str(f): f for f in folders}


def _check_runner(spec: str) -> None:
    name, options = spec_parts(spec)
    if name not in RUNNERS.names():
        raise unknown("--runner", name, RUNNERS.names())
    runner_config(name, **options)


def _sampler(folder: Path, solver: str | None, steps: int | None) -> Sampler | None:
    """The artifact's sampler with another solver or number of steps; None where neither is asked for."""
    if solver is None and steps is None:
        return None
    if solver is not None and solver not in ALL_SOLVERS:
        raise unknown("--sampler", solver, ALL_SOLVERS)
    said = read_json(checked(folder, "sampler.json"))
    changed = {"timesteps": None} | {k: v for k, v in (("solver", solver), ("steps", steps)) if v is not None}
    with as_shaped(folder / "sampler.json"):
        own: dict[str, Any] = said["sampler"]
    try:
        return Sampler(**(own | changed))
    except ValidationError as error:
        raise ArtifactError(f"{folder / 'sampler.json'}: {'; '.join(described(error, Sampler, 'sampler'))}") from None
