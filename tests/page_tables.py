"""Tables in pages of the guide that are made by a script, between two comments."""

from collections.abc import Sequence
from pathlib import Path

BEGIN, END = "<!-- table -->\n", "<!-- end -->"


def table_in(page: Path) -> list[str]:
    """Returns the lines of the table of a page."""
    return page.read_text().split(BEGIN)[1].split(END)[0].splitlines()


def replace_table(page: Path, lines: Sequence[str]) -> None:
    """Replaces the table of a page."""
    before, after = (page.read_text().split(mark) for mark in (BEGIN, END))
    page.write_text("".join([before[0], BEGIN, "\n".join(lines), "\n", END, after[1]]))
