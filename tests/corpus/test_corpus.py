"""Spoiled inputs of every kind, given to every command that reads them: each is refused in one short message, or right.

Exit code 2 or 3, or 0 where the input may be taken; no traceback, no message above 2 kB, an end within the limit, no file
touched outside the folder for results. `python -m corpus` prints a table of it all.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
from corpus.cases import Input
from corpus.chosen import corpus, kinds
from corpus.inputs import Base
from corpus.tried import tried

NUMBERED = [
    pytest.param(kind, number, marks=() if number < quick else pytest.mark.slow)
    for kind, (_, count, quick) in kinds().items()
    for number in range(count)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield Base(tmp_path_factory.mktemp("base"))


@lru_cache
def inputs(base: Base, kind: str) -> list[Input]:
    return corpus(base, kind)


def test_the_corpus_has_600_inputs_and_more() -> None:
    assert len(NUMBERED) >= 600


@pytest.mark.parametrize(("kind", "number"), NUMBERED)
def test_a_spoiled_input_is_refused_in_a_short_message_or_taken_where_it_may_be(
    base: Base, kind: str, number: int, tmp_path: Path
) -> None:
    wrong = [one.wrong for one in tried(base, inputs(base, kind)[number], tmp_path / "place") if one.wrong]
    assert not wrong, "\n".join(wrong)
