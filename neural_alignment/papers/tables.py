"""Groups tidy rows, and makes Markdown tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from neural_alignment.reporting import Artifact, Row, Spread, markdown
from neural_alignment.training.metrics import by_layer

Key = str | Callable[[Row], Any]
"""A column, or a function of a row."""

Column = str | Callable[[Sequence[Row]], Any]
"""The content of a table cell: a column of the first row of a group, or a function of all rows of the group."""


def value_of(row: Row, key: Key) -> Any:
    """Returns a value of a row; `None` if it lacks the column."""
    return key(row) if callable(key) else row.get(key)


def grouped(rows: Iterable[Row], *keys: Key) -> dict[tuple[Any, ...], list[Row]]:
    """Returns values of some keys -> rows that have them, in the order of the rows."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(value_of(row, key) for key in keys), []).append(row)
    return groups


def chosen(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Returns the rows with some values."""
    return [row for row in rows if values.items() <= row.items()]


def spread(rows: Iterable[Row], column: Key, scale: float = 1.0) -> Spread:
    """Returns the spread of a column over some rows; `scale` is a factor of the values, such as 100 for percent."""
    return Spread([scale * value_of(row, column) for row in rows])


def over_layers(row: Mapping[str, float], measure: str) -> Spread:
    """Returns the spread over the layers of a measure in a row of `metrics.csv`."""
    return Spread(list(by_layer(row, measure).values()))


def one_decimal(values: Spread) -> str:
    """Returns mean and deviation with one decimal; an empty cell without values."""
    return f"{values:.1f}" if values.known else ""


def runs_of(rows: Sequence[Row], diverged: str = "diverged") -> str:
    """Returns the number of rows, one per run, and of those that diverged: the rows whose column `diverged` is true."""
    count = sum(bool(row[diverged]) for row in rows)
    return f"{len(rows)}, {count} diverged" if count else str(len(rows))


def table(rows: Iterable[Row], by: Sequence[Key], columns: Mapping[str, Column]) -> str:
    """Returns a Markdown table: a line for each group of rows with the same values of `by`, header -> its cells."""
    groups = grouped(rows, *by).values()
    cells = [[cell(own) if callable(cell) else own[0][cell] for cell in columns.values()] for own in groups]
    return markdown(list(columns), cells)


def at(column: str, **values: Any) -> Column:
    """Returns the cell that shows a column of the row of its group that has some values."""
    return lambda own: chosen(own, **values)[0][column]


def whole(rows: Sequence[Row]) -> Artifact:
    """Returns a table of all columns with a line per row; in the text, floats have four digits, and true cells an x."""
    lines = [[_text(value) for value in row.values()] for row in rows]
    return Artifact(tuple(rows[0]), rows, markdown([name.replace("_", " ").strip() for name in rows[0]], lines))


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "x" if value else ""
    return f"{value:.4g}" if isinstance(value, float) else value


def crossed(corner: str, down: Mapping[str, Any], across: Mapping[str, Any], cell: Callable[[Any, Any], object]) -> str:
    """Returns a Markdown table of two variables; `down` and `across` map headers to the values that `cell` gets."""
    lines = [[text, *(cell(value, other) for other in across.values())] for text, value in down.items()]
    return markdown([corner, *across], lines)
