"""The corpus: of every kind of input the first so many, in the order of the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

from corpus import given, results
from corpus.cases import Input
from corpus.inputs import Base
from corpus.options import options


def kinds() -> dict[str, tuple[Callable[[Base], Iterator[Input]], int, int]]:
    """(inputs of a kind, how many of them are the corpus, how many of those come with every test run)."""
    return {
        "recipe": (given.recipes, 170, 24),
        "model": (given.models, 150, 6),
        "weights": (given.weights, 90, 4),
        "artifact": (results.artifacts, 130, 6),
        "edited": (results.edited, 80, 3),
        "onnx": (results.onnx_files, 70, 0),
        "checkpoint": (given.checkpoints, 40, 2),
        "judge": (given.judges, 60, 3),
        "data": (given.data, 90, 3),
        "lora": (given.loras, 72, 2),
        "prices": (given.prices, 80, 10),
        "kit": (results.kits, 80, 5),
        "report": (results.reports, 130, 16),
        "options": (options, 300, 12),
    }


def corpus(base: Base, kind: str) -> list[Input]:
    """The inputs of a kind."""
    made, count, _ = kinds()[kind]
    return list(islice(made(base), count))
