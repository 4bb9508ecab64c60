"""Tables on a terminal that fit its width without a cut: figures that share a column where space is short, names folded.

A table comes with layouts, the widest first; the first that fits is taken. A layout's column stacks one figure or several
over each other, and its heading their titles. Columns of words, such as names, may be folded, after a separator where
there is one; headings, figures and verdicts never are. Where no layout fits, a row becomes a paragraph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Column = tuple[tuple[str, ...], tuple[str, ...]]  # titles above each other, keys of the texts above each other
Layout = tuple[Column, ...]
Texts = Mapping[str, str]  # by key
Style = Callable[[str], str]  # of a text

NARROWEST = 16  # columns that a folded word has at least
PIECE = re.compile(r"[^ /:@+,\-_.·]*[ /:@+,\-_.·]?")  # ends with a separator, after which a line may end


def mark_style(text: str) -> str:
    """Marks carry a colour beside their sign."""
    return {"✓": "green", "✗": "bold red", "~": "yellow"}.get(text[:1], "")


def print_layout(
    console: Console,
    title: str,
    layouts: Sequence[Layout],
    rows: Sequence[Texts],
    *,
    words: Collection[str] = (),
    style: Style = mark_style,
    strong: Collection[int] = (),
) -> None:
    """Print a table. `words` are the keys whose columns stand left and may be folded, `strong` the numbers of the rows
    that stand out."""
    from rich.text import Text

    if title:
        console.print(Text(title, "italic"))
    found = fitting(layouts, rows, words, console.width)
    if found is None:
        _print_paragraphs(console, layouts[0], rows)
        return
    layout, widths, gap = found
    _print_columns(console, layout, widths, gap, rows, words, style, strong)


def one_each(columns: Layout) -> Layout:
    """The layout with a column for every figure."""
    return tuple(((title,), (key,)) for titles, keys in columns for title, key in zip(titles, keys, strict=True))


def plain(keys: Sequence[str]) -> Layout:
    """A column a key, titled as it is named."""
    return tuple(((key,), (key,)) for key in keys)


def fitting(
    layouts: Sequence[Layout], rows: Sequence[Texts], words: Collection[str], width: int
) -> tuple[Layout, list[int], int] | None:
    """(layout, widths of its columns, columns between two of them): the first that fits; None where none does."""
    for layout in layouts:
        for gap in (2, 1):
            widths = _widths(layout, rows, words, width - gap * (len(layout) - 1))
            if widths:
                return layout, widths, gap
    return None


def _widths(layout: Layout, rows: Sequence[Texts], words: Collection[str], room: int) -> list[int]:
    """Widths that need no more than `room` together: whole texts, folded words where they must be; empty where even
    these are too wide."""
    natural = [max(len(t) for t in (*titles, *(row[k] for row in rows for k in keys))) for titles, keys in layout]
    least = [
        max(*(len(t) for t in titles), min(full, NARROWEST)) if keys[0] in words else full
        for (titles, keys), full in zip(layout, natural, strict=True)
    ]
    spare = room - sum(least)
    if spare < 0:
        return []
    for i, full in enumerate(natural):
        given = min(full - least[i], spare)
        least[i] += given
        spare -= given
    return least


def fold(text: str, width: int) -> list[str]:
    """The text in lines of at most `width`, broken after separators, within a word only where that alone is too long."""
    lines = [""]
    for piece in PIECE.findall(text):
        while len(piece.rstrip()) > width:
            lines += [piece[:width]]
            piece = piece[width:]
        if len(lines[-1] + piece.rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _print_columns(
    console: Console,
    layout: Layout,
    widths: list[int],
    gap: int,
    rows: Sequence[Texts],
    words: Collection[str],
    style: Style,
    strong: Collection[int],
) -> None:
    from rich import box
    from rich.table import Table

    padding = (0, gap - 1, 0, 0)  # the box itself has one column between two
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=padding, pad_edge=False)
    tallest = max(len(titles) for titles, _ in layout)
    for (titles, keys), width in zip(layout, widths, strict=True):
        justify: Literal["left", "right"] = "left" if keys[0] in words else "right"
        heading = "\n".join([*titles, *[""] * (tallest - len(titles))])  # a title stands where its texts do
        table.add_column(heading, justify=justify, no_wrap=True, min_width=width, max_width=width)
    for number, row in enumerate(rows):
        folded = [_cell([row[k] for k in keys], w, style) for (_, keys), w in zip(layout, widths, strict=True)]
        table.add_row(*folded, style="bold" if number in strong else "")
    console.print(table)


def _cell(texts: list[str], width: int, style: Style) -> Text:
    """Texts above each other, those below the first dim where they have no style of their own."""
    from rich.text import Text

    lines = [
        Text(line, style(text) or ("dim" if i else "")) for i, text in enumerate(texts) for line in fold(text, width)
    ]
    return Text("\n").join(lines)


def _print_paragraphs(console: Console, layout: Layout, rows: Sequence[Texts]) -> None:
    from rich.text import Text

    for row in rows:
        told = [f"{title} {row[key]}" for titles, keys in layout for title, key in zip(titles, keys)]
        console.print(Text(", ".join(told)))


def print_parts(
    console: Console, title: str, first: str, others: Sequence[str], rows: Sequence[Texts], style: Style = mark_style
) -> None:
    """Print a table of as many columns as there are, `first` again before those that have no place beside the others; a
    text may have several lines."""
    waiting, said = list(others), title
    while waiting:
        taken = next(n for n in range(len(waiting), 0, -1) if n == 1 or _fits(console, [first, *waiting[:n]], rows))
        _print_lines(console, said, [first, *waiting[:taken]], rows, style)
        waiting, said = waiting[taken:], ""


def _fits(console: Console, keys: list[str], rows: Sequence[Texts]) -> bool:
    return sum(_broadest(key, rows) + 2 for key in keys) - 2 <= console.width


def _broadest(key: str, rows: Sequence[Texts]) -> int:
    return max(len(line) for text in (key, *(row[key] for row in rows)) for line in text.split("\n"))


def _print_lines(console: Console, title: str, keys: list[str], rows: Sequence[Texts], style: Style) -> None:
    """A table whose texts stand as they are."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    if title:
        console.print(Text(title, "italic"))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    for i, key in enumerate(keys):
        table.add_column(key, justify="right" if i else "left", no_wrap=True, min_width=_broadest(key, rows))
    for row in rows:
        table.add_row(*(Text(row[key], style(row[key])) for key in keys))
    console.print(table)
