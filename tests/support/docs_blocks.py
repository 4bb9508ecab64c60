"""The documentation as data: its pages, code blocks, commands, tables, headings and links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = {str(p.relative_to(ROOT)): p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, the line it starts at, its language and what is in it."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def _blocks() -> Iterator[Block]:
    for page, path in PAGES.items():
        lines, opened = path.read_text().splitlines(), None
        for number, line in enumerate(lines, 1):
            if line.startswith("```") and opened is None:
                opened = number
            elif line.startswith("```") and opened is not None:
                text = "".join(f"{x}\n" for x in lines[opened : number - 1])
                yield Block(page, opened, lines[opened - 1][3:].strip(), text)
                opened = None
        assert opened is None, f"{page}:{opened}: a block that is never closed"


BLOCKS = list(_blocks())


def blocks(language: str, page: str | None = None) -> list[Block]:
    """All blocks of a language, or those of one page."""
    return [b for b in BLOCKS if b.language == language and page in (None, b.page)]


@dataclass(frozen=True)
class Line:
    """A command line without its comment; `into` is the file that its output goes to."""

    place: str
    argv: tuple[str, ...]
    into: str | None = None


def _lines() -> Iterator[Line]:
    for block in blocks("bash"):
        for offset, text in enumerate(block.text.splitlines(), 1):
            argv = shlex.split(text, comments=True)
            into = argv.pop() if ">" in argv else None
            if argv:
                yield Line(f"{block.page}:{block.line + offset}", tuple(a for a in argv if a != ">"), into)


LINES = list(_lines())


def lines(program: str) -> list[Line]:
    """The command lines that start with this program."""
    return [line for line in LINES if line.argv[0] == program]


def prose(page: str) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", PAGES[page].read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """What links to a page may end in, as GitHub names its headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: str) -> list[str]:
    """Targets of a page's links and pictures that lie in this repository."""
    return [x for x in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not x.startswith(("http:", "https:"))]


def rows(page: str, heading: str) -> list[list[str]]:
    """Cells of the first table below a heading, without its title row."""
    text = prose(page).partition(f"# {heading}\n")[2].partition("\n#")[0]
    table = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in table[2:]]


def codes(text: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)
