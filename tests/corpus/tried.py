"""An input of the corpus given to its commands, and a table of what came of all of them."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus.calls import EITHER, REFUSED, Outcome, call, complaint, shortened
from corpus.cases import Asked, Input
from corpus.inputs import Base

PARTS = ("in", "cwd", "out")


@dataclass(frozen=True)
class Tried:
    """A command on a spoiled input: what it did, and what is wrong with that."""

    input: Input
    asked: Asked
    outcome: Outcome
    wrong: str


def tried(base: Base, given: Input, place: Path) -> Iterator[Tried]:
    """Every command of an input, each in a fresh copy below `place`, which is empty again afterwards."""
    for asked in given.asked:
        for name in PARTS:
            (place / name).mkdir(parents=True)
        try:
            base.copy(given.parts, place / "in")
            base.copy(given.own, place / "out")
            given.spoil(place)
            outcome = call(asked.arguments, place)
        finally:
            shutil.rmtree(place)
        yield Tried(given, asked, shortened(outcome), complaint(outcome, REFUSED if asked.refuses else EITHER))


def table(found: Iterable[Tried]) -> str:
    """Kind of input and command against what came of it."""
    counted: Counter[tuple[str, str, str]] = Counter()
    for one in found:
        code = {0: "taken", 2: "refused", 3: "lacks"}.get(one.outcome.code if one.outcome.code is not None else -1, "")
        command = " ".join([one.asked.arguments[0], *(a for a in one.asked.arguments if a in MARKS)])
        counted[one.input.kind, command, "wrong" if one.wrong else code] += 1
    columns = ("refused", "lacks", "taken", "wrong")
    rows = sorted({(kind, command) for kind, command, _ in counted})
    lines = [f"{'input':<13} {'command':<18} {'all':>5} " + " ".join(f"{c:>8}" for c in columns)]
    for row in rows:
        numbers = [counted[(*row, column)] for column in columns]
        lines.append(f"{row[0]:<13} {row[1]:<18} {sum(numbers):>5} " + " ".join(f"{n:>8}" for n in numbers))
    totals = [sum(n for (_, _, c), n in counted.items() if c == column) for column in columns]
    lines.append(f"{'all':<32} {sum(totals):>5} " + " ".join(f"{n:>8}" for n in totals))
    return "\n".join(lines)


MARKS = ("--adopt", "--lora", "--triton", "--format", "--measurements", "--prices")
