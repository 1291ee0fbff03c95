"""Prints: tables and colours where the output is a terminal, plain lines where it is a file or a pipe.

Every command prints through this module. A terminal with TERM=dumb gets plain lines, and NO_COLOR removes the colours.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_DEFAULT_WIDTH = 80

_SILENCE = 60.0
"""Minimum number of seconds between two lines of status in a file."""


def prepare() -> None:
    """Makes both outputs safe to print to: for a process that runs a command, before it prints.

    A character that an output cannot encode becomes a question mark. A closed output is replaced by one that discards
    the text, so that no file that is opened later takes its number and gets the text of libraries. When the reader of
    an output ends, such as `head` at the end of a pipe, later text is discarded, so that the run continues.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # It gets the smallest free number, this one.
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            setattr(sys, name, _safe(stream))


def _safe(stream: io.TextIOWrapper) -> io.TextIOWrapper:
    """Returns a stream that writes to the same place and never fails because of a character or a missing reader."""
    raw = getattr(stream.buffer, "raw", stream.buffer)
    if type(raw) is not io.FileIO:  # In memory, or safe already.
        stream.reconfigure(errors="replace")
        return stream
    stream.flush()
    output: Any = _Output(raw.fileno(), "w", closefd=False)
    if raw is not stream.buffer:  # With PYTHONUNBUFFERED they are the same.
        output = io.BufferedWriter(output)
    options = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
    return io.TextIOWrapper(output, stream.encoding, "replace", **options)


class _Output(io.FileIO):
    """An output that discards text once its reader has ended or its terminal is closed."""

    def write(self, content: Any) -> int | None:
        """Writes bytes, and returns their number."""
        try:
            return super().write(content)
        except OSError as error:
            is_terminal = stat.S_ISCHR(os.fstat(self.fileno()).st_mode)
            if not (isinstance(error, BrokenPipeError) or (error.errno == errno.EIO and is_terminal)):
                raise
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), self.fileno())
        return memoryview(content).nbytes


def is_terminal(stream: TextIO | None = None) -> bool:
    """Whether a stream, by default standard output, is a terminal that can show tables and colours.

    False if standard output is closed.
    """
    stream = sys.stdout if stream is None else stream
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def width(stream: TextIO | None = None) -> int:
    """Returns the number of columns of the terminal of a stream, by default standard output; COLUMNS sets it."""
    with contextlib.suppress(KeyError, ValueError):
        if (columns := int(os.environ["COLUMNS"])) > 0:
            return columns
    stream = sys.stdout if stream is None else stream
    with contextlib.suppress(OSError, ValueError):
        if stream is not None:
            return os.get_terminal_size(stream.fileno()).columns or _DEFAULT_WIDTH
    return _DEFAULT_WIDTH


def raw(text: str) -> None:
    """Prints text as it is, for other programs."""
    print(text, flush=True)


def line(text: str = "") -> None:
    """Prints text; on a terminal, Markdown tables in it are drawn."""
    if not is_terminal() or "\n| --- |" not in f"\n{text}":
        raw(text)
        return
    for is_table, lines in _parts(text):
        if is_table:
            header, _, *rows = (_cells(each) for each in lines)
            raw(_drawn(header, rows))
        else:
            raw("\n".join(lines))


def table(header: Sequence[str], rows: Iterable[Sequence[object]], plain: str) -> None:
    """Prints a table.

    Args:
        header: names of the columns.
        rows: cells of each row. Columns of numbers are aligned at the right.
        plain: the text that is printed if the output is not a terminal.
    """
    raw(_drawn(header, [list(map(str, row)) for row in rows]) if is_terminal() else plain)


def facts(pairs: Sequence[tuple[str, str]], plain: str) -> None:
    """Prints names and values; `plain` is as for `table`."""
    if not is_terminal():
        raw(plain)
        return
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, value)
    raw(_rendered(grid))


def columns(cells: Sequence[str], gap: int = 3) -> str:
    """Returns texts of equal width in as many columns as fit the terminal, read from top to bottom."""
    each = max(map(len, cells), default=0) + gap
    count = max(1, (width() + gap) // each)
    rows = -(-len(cells) // count)
    return "\n".join("".join(cell.ljust(each) for cell in cells[row::rows]).rstrip() for row in range(rows))


def folded(text: str) -> list[str]:
    """Breaks a line that is wider than the terminal, where it has two spaces; the other lines are indented."""
    found, parts = [], text.split("  ")
    for part in parts:
        if found and len(found[-1]) + 2 + len(part) <= width():
            found[-1] += f"  {part}"
        else:
            found.append(f"    {part}" if found else part)
    return found


def error(text: str) -> None:
    """Prints one line to standard error, with control characters escaped, and the word before the colon in red.

    On a terminal it replaces the last line, which may show a status.
    """
    text = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in " ".join(text.split()))
    word, colon, rest = text.partition(":")
    if is_terminal(sys.stderr):
        if colon and "NO_COLOR" not in os.environ:
            text = f"\033[1;31m{word}:\033[0m{rest}"
        text = f"{_CLEAR_LINE}{text}"
    print(text, file=sys.stderr)


_CLEAR_LINE = "\r\033[K"
"""Moves the cursor of a terminal to the beginning of its line, and clears the line."""


class StatusLine:
    """The last line of a terminal, which shows the progress; a file gets it once a minute."""

    def __init__(self):
        self._is_terminal = is_terminal(sys.stderr)
        self._shown = -_SILENCE

    def line(self, text: str) -> None:
        """Prints text that stays; see the function `line`."""
        if self._is_terminal:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
        line(text)

    def status(self, text: str) -> None:
        """Replaces the last line of the terminal."""
        if self._is_terminal:
            print(f"{_CLEAR_LINE}{text[: width(sys.stderr) - 1]}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._shown >= _SILENCE:
            self._shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)


class _NoBar:
    """Replaces the progress bar if the output is not a terminal; a line per evaluation is enough there."""

    def update(self, steps: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def progress_bar() -> tuple[Callable[[str], None], Callable[..., Any]]:
    """Returns a function that prints a line above the progress bar, and one that creates the bar, as of `tqdm.tqdm`."""
    from tqdm import tqdm

    return tqdm.write, tqdm if is_terminal(sys.stderr) else (lambda **_: _NoBar())


# Tables.


def _parts(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Yields the Markdown tables of a text, and the lines between them."""
    part: list[str] = []
    is_table = False
    for each in text.split("\n"):
        if part and each.startswith("| ") != is_table:
            yield is_table, part
            part = []
        is_table = each.startswith("| ")
        part.append(each)
    yield is_table, part


def _cells(row: str) -> list[str]:
    """Returns the cells of a row of a Markdown table."""
    inner = row.strip()[1:-1].replace("\\|", "\0")
    return [cell.strip().replace("\0", "|") for cell in inner.split("|")]


_NUMBER = re.compile(r"([+-]?\d[\d,.]*(e[+-]?\d+)?( ± [\d,.]+)?( ?%)?|-|nan)?")
"""A number, with a spread or in percent, or a missing one."""


_GAP = 2
"""Spaces between two columns."""


def _drawn(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table as text, or a block of lines per row if the terminal is too narrow for a table."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    cells = list(zip(header, *rows, strict=True))
    numeric = [all(map(_NUMBER.fullmatch, own)) for _, *own in cells]
    widths = _widths(cells, numeric)
    if widths is None:
        each = max(map(len, header))
        blocks = ["\n".join(f"{name:{each}}  {cell}" for name, cell in zip(header, row, strict=True)) for row in rows]
        return "\n\n".join(blocks)
    drawn = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0), header_style="bold"
    )
    for name, is_numeric, size in zip(header, numeric, widths, strict=True):
        drawn.add_column(Text(name), justify="right" if is_numeric else "left", overflow="fold", width=size)
    for row in rows:
        drawn.add_row(*map(Text, row))
    return _rendered(drawn)


def _widths(cells: Sequence[Sequence[str]], numeric: Sequence[bool]) -> list[int] | None:
    """Returns the widths of columns that together fit the terminal; None if there are none.

    Args:
        cells: the header and the cells of each column.
        numeric: whether a column has numbers, which are not broken into lines.
    """
    found = [max(map(len, own)) for own in cells]
    least = []
    for own, is_numeric in zip(cells, numeric, strict=True):
        words = [len(word) for text in own for word in text.split()]  # Names stay whole, so that they can be copied.
        least.append(max([0, *words, *map(len, own[1:] if is_numeric else [])]))
    excess = sum(found) + _GAP * (len(found) - 1) - width()
    for _ in range(excess):
        free = [place for place, size in enumerate(found) if size > least[place]]
        if not free:
            return None
        found[max(free, key=found.__getitem__)] -= 1
    return found


def _console() -> Console:
    from rich.console import Console

    colors = {} if "NO_COLOR" in os.environ else {"color_system": "standard"}
    return Console(file=io.StringIO(), width=width(), force_terminal=True, highlight=False, markup=False, **colors)


def _rendered(renderable: RenderableType) -> str:
    """Returns a table as text with the codes of its colours, without empty lines around it."""
    console = _console()
    console.print(renderable)
    lines = [each.rstrip() for each in console.file.getvalue().split("\n")]
    return "\n".join(lines).strip("\n")
