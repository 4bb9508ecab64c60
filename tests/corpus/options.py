"""Odd values for every option and argument that the command line has; new ones are tried as soon as they exist."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from corpus.cases import SEED, Asked, Input
from corpus.files import INSTEAD
from corpus.inputs import Base

LONG = "z" * 5000
NUMBERS = {  # what no whole number is, and what one may be
    True: ("abc", "", "1e3", "nan", "0x10", "1_0_0x", " ", "9" * 5000, "-" + "9" * 5000, "١٢x"),
    False: ("-1", "0", "100000", str(2**31), str(2**63), str(10**19)),
}
FRACTIONS = {
    True: ("abc", "", "nan", "inf", "-inf", "1e999", "0x1p3", "9" * 5000),
    False: ("-1", "0", "1e-320", "1e300"),
}
TEXTS = (
    "",
    " ",
    ",",
    ",,,",
    LONG,
    "../../etc/passwd",
    "\udcff",
    "é\u202e",
    "[red]x[/nonsense]",
    "name:",
    ":",
    "torch:fp99",
    "x=y=z",
    "1,x",
)
PATHS = (
    "nothing/there",
    "",
    "../in/odd/a picture",
    "../in/odd/a folder",
    "../in/odd/empty",
    "../in/odd/a link to itself",
    "x" * 300,
    "../in/odd/a picture/below",
    "\udcff",
)
TIME = {
    "rounds",
    "seconds",
    "warm_up",
    "batch",
    "threads",
    "port",
    "host",
    "minutes",
    "exported",
}  # large values take long, or open what a test may not
BASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # command: parts, arguments that work
    "run": (("model", "data", "judges", "small.yaml"), ("../in/small.yaml", "--exported", "../out", "--quiet")),
    "plan": (("model", "final"), ("../in/model", "--target", "a100", "--exported", "../out")),
    "inspect": (("final",), ("../in/final", "--no-measure", "--target", "a100")),
    "bench": (
        ("final",),
        ("../in/final", "--runner", "torch", "--rounds", "1", "--seconds", "0.001", "--warm-up", "0"),
    ),
    "export": (("model",), ("../in/model", "--format", "onnx", "--out", "../out/made", "--exported", "../out")),
    "compare": (("run", "measurements.jsonl"), ("../in/run", "../in/run")),
    "report": (("run",), ("../out/run",)),
    "verify": (("final",), ("../in/final",)),
    "serve": (("final",), ("../in/final", "--runner", "onnxruntime", "--port", "0")),
    "schema": ((), ("recipe",)),
    "gc": ((), ("--exported", "../out")),
    "list": ((), ()),
}


def options(base: Base) -> Iterator[Input]:
    """Every option with an odd value, in a seeded order."""
    every = [made for name, command in sorted(_commands().items()) for made in _of_command(name, command)]
    random.Random(f"{SEED} options").shuffle(every)
    yield from every


def _commands() -> dict[str, Any]:
    import typer

    from optimize.cli.app import app

    return typer.main.get_command(app).commands  # type: ignore[attr-defined]


def _of_command(name: str, command: Any) -> Iterator[Input]:
    parts, usual = BASES[name]
    hints = get_type_hints(command.callback)
    for parameter in (p for p in command.params if p.name in hints):
        for value, refuses in _values(parameter.name, {hints[parameter.name], *get_args(hints[parameter.name])}):
            yield Input(
                "options",
                f"{name} {parameter.name}: {value[:40]!r}{'…' if len(value) > 40 else ''}",
                parts,
                odd,
                (Asked((name, *_with(parameter, usual, value)), refuses),),
                ("run",) if name == "report" else (),
            )


def _with(parameter: Any, usual: tuple[str, ...], value: str) -> tuple[str, ...]:
    """The usual arguments with this value; of an argument in its place, of an option behind the others."""
    named = [opt for opt in parameter.opts if opt.startswith("--")]
    if named:
        return (*usual, f"{named[0]}={value}")
    first = 1 if parameter.name == "b" else 0
    return (*usual[:first], *usual[first + 1 :], "--", value)


def _values(name: str, types: set[Any]) -> Iterator[tuple[str, bool]]:
    """Values, and whether each must be refused."""
    if types & {int, float}:
        of = NUMBERS if int in types else FRACTIONS
        yield from ((value, True) for value in of[True])
        yield from (() if name in TIME else ((value, False) for value in of[False]))
    elif name not in TIME and bool not in types:
        yield from ((value, False) for value in (PATHS if types & {Path, list[Path]} else TEXTS))


def odd(place: Path) -> None:
    """A folder of files that are nothing."""
    folder = place / "in" / "odd"
    folder.mkdir()
    for name in ("a picture", "a folder", "empty", "a link to itself"):
        (folder / name).touch()
        spoil: Callable[[Path], object] = INSTEAD[name]
        spoil(folder / name)
