"""Tables in pages of the guide that are made by a command or a script, between two comments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

END = "<!-- end -->"


def table_in(page: Path, name: str = "table") -> list[str]:
    """Returns the lines of the table between the comments `<!-- name -->` and `<!-- end -->` of a page."""
    return _parts(page, name)[1].splitlines()


def replace_table(page: Path, lines: Sequence[str], name: str = "table") -> None:
    """Replaces the table between the comments `<!-- name -->` and `<!-- end -->` of a page."""
    before, _, after = _parts(page, name)
    page.write_text(before + "\n".join(lines) + "\n" + after)


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """Returns the page up to the comment `<!-- name -->`, the table, and the page from `<!-- end -->` on."""
    before, begin, after = page.read_text().partition(f"<!-- {name} -->\n")
    table, end, rest = after.partition(END)
    return before + begin, table, end + rest


def places(page: Path, name: str) -> dict[str, list[str]]:
    """Returns the comments of a page that stand for a table or a part of it -> the first cells of its rows.

    `<!-- name -->` stands for the whole table, and `<!-- name: 2; 5 -->` for its rows whose first cell is 2 or 5. An
    empty list of first cells stands for all rows.
    """
    found = re.findall(rf"<!-- ({re.escape(name)}(?:: ([^>]*))?) -->", page.read_text())
    return {comment: [cell.strip() for cell in cells.split(";") if cell.strip()] for comment, cells in found}


def part(text: str, cells: Sequence[str]) -> list[str]:
    """Returns lines of the first table of a Markdown text: its header, and the rows whose first cell is one of `cells`.

    Without `cells`, all rows are returned.
    """
    lines = next(block for block in text.split("\n\n") if block.startswith("|")).splitlines()
    return [*lines[:2], *(line for line in lines[2:] if not cells or line.split("|")[1].strip() in cells)]


def fill(page: Path, name: str, text: str) -> None:
    """Writes the first table of a Markdown text, or parts of it, to all its `places` in a page."""
    for comment, cells in places(page, name).items():
        replace_table(page, part(text, cells), comment)
