"""An input of the corpus: how a valid one is spoiled, and the commands that are given it.

A command `refuses` an input, or may also take it (a field left out that has a default, a file that it never reads).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from corpus.files import Spoil, put

SEED = 20261127
Spoiling = Callable[[Path], object]  # of the folder that holds in/, cwd/ and out/


@dataclass(frozen=True)
class Asked:
    """A command, and whether it must refuse; paths are as seen from the folder cwd."""

    arguments: tuple[str, ...]
    refuses: bool = False


@dataclass(frozen=True)
class Input:
    """A spoiled input: parts copied to in/, and to out/ those that a command writes into; what is done to them."""

    kind: str
    name: str
    parts: tuple[str, ...]
    spoil: Spoiling
    asked: tuple[Asked, ...]
    own: tuple[str, ...] = ()


OUT = ("--exported", "../out")
A100 = ("--target", "a100")
OF_RECIPES = ("model", "data", "judges", "prices.yaml")


def text(path: str, content: str) -> Spoiling:
    """The file at `path` holds this text."""
    return lambda place: put(content.encode("utf-8", "surrogatepass"))(place / path)


def at(path: str, spoil: Spoil) -> Spoiling:
    """A file is spoiled."""
    return lambda place: spoil(place / path)


def turns(*kinds: Iterable[Input]) -> Iterator[Input]:
    """One of each in its turn until all have ended; one that stands there twice comes twice as often."""
    iterators = [iter(kind) for kind in kinds]
    while iterators:
        for one in list(iterators):
            found = next(one, None)
            if found is None:
                iterators.remove(one)
            else:
                yield found
