"""Tables in pages of the guide that are made by a script, between two comments."""

from collections.abc import Sequence
from pathlib import Path

END = "<!-- end -->"


def table_in(page: Path, name: str = "table") -> list[str]:
    """Returns the lines of a table of a page."""
    return _parts(page, name)[1].splitlines()


def replace_table(page: Path, lines: Sequence[str], name: str = "table") -> None:
    """Replaces a table of a page."""
    before, _, after = _parts(page, name)
    page.write_text(before + "\n".join(lines) + "\n" + after)


def _parts(page: Path, name: str) -> tuple[str, str, str]:
    """Returns the page up to the comment `<!-- name -->`, the table, and the page from `<!-- end -->` on."""
    before, begin, after = page.read_text().partition(f"<!-- {name} -->\n")
    table, end, rest = after.partition(END)
    return before + begin, table, end + rest
