"""Messages: whatever is given, they are short, and any terminal can print them."""

from __future__ import annotations

import pytest

from optimize.errors import LONGEST, UserError, cut, shown, some, unknown


@pytest.mark.parametrize(
    "given",
    [
        "x" * 10**6,
        ["x" * 1000] * 1000,
        {"a": {"b": {"c": {"d": ["e"] * 1000}}}},
        10**5000,
        {i: i for i in range(10**4)},
        "é" * 3000,
        b"\xff" * 5000,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_shown_in_few_characters(given: object) -> None:
    assert len(shown(given)) <= 121
    assert (
        len(str(UserError(f"field: given {given if not isinstance(given, int) else shown(given)}")).encode())
        <= LONGEST + 8
    )


def test_a_value_that_is_nested_in_itself_many_times_is_shown_at_once() -> None:
    value: list[object] = ["x"]
    for _ in range(60):
        value = [value] * 10
    assert len(shown(value)) <= 121


def test_a_message_holds_nothing_that_a_terminal_would_obey() -> None:
    said = str(UserError("a\x1b[31mb\x00c\udcffd\ne"))
    assert said == r"a\x1b[31mb\x00c\udcffd" + "\ne"
    said.encode("utf-8")


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    said = str(UserError("begin " + "é" * 5000 + " end"))
    assert said.startswith("begin ") and said.endswith(" end") and len(said.encode()) <= LONGEST


def test_of_many_names_ten_are_shown() -> None:
    assert some(range(3)) == "0, 1, 2"
    assert some(range(12)) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"
    assert some([]) == ""


def test_an_unknown_name_is_cut() -> None:
    assert len(str(unknown("kind", "x" * 10**6, ["a", "b"]))) < 300
    assert cut("abcdefghij" * 3, 12) == "abcdefgh…hij"
