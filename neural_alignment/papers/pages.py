"""Tables in pages of the guide that are made by a command or a script, between two comments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from neural_alignment.errors import InputError

END = "<!-- end -->"


def replace_table(page: Path, lines: Sequence[str], name: str = "table") -> None:
    """Replaces the lines between the comments `<!-- name -->` and `<!-- end -->` of a page.

    Raises:
        InputError: if one of the comments is missing.
    """
    text = page.read_text(encoding="utf-8")
    before, begin, after = text.partition(f"<!-- {name} -->\n")
    table, end, rest = after.partition(END)
    if not end or "<!--" in table:
        raise InputError(f"{page}: has no lines `<!-- {name} -->` and `{END}`, between which the table belongs")
    page.write_text(before + begin + "\n".join(lines) + "\n" + end + rest, encoding="utf-8")


def places(page: Path, name: str) -> dict[str, list[str]]:
    """Returns the comments of a page that stand for a table or a part of it -> the first cells of its rows.

    `<!-- name -->` stands for the whole table, and `<!-- name: 2; 5 -->` for its rows whose first cell is 2 or 5. An
    empty list of first cells stands for all rows.
    """
    found = re.findall(rf"<!-- ({re.escape(name)}(?:: ([^>]*))?) -->", page.read_text(encoding="utf-8"))
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
