"""Groups tidy rows, and makes Markdown tables of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from neural_alignment.reporting import Artifact, Row, Spread, markdown

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
    """Returns the spread of a column over some rows.

    Args:
        rows: the rows.
        column: a column, or a function of a row.
        scale: factor of the values, such as 100 for percent.
    """
    return Spread([scale * value_of(row, column) for row in rows])


def table(rows: Iterable[Row], by: Sequence[Key], columns: Mapping[str, Column]) -> str:
    """Returns a Markdown table with a line for each group of rows.

    Args:
        rows: tidy rows.
        by: columns, or functions of a row, that have the same values throughout a group.
        columns: header -> content of its cells.
    """
    groups = grouped(rows, *by).values()
    cells = [[cell(own) if callable(cell) else own[0][cell] for cell in columns.values()] for own in groups]
    return markdown(list(columns), cells)


def at(column: str, **values: Any) -> Column:
    """Returns the cell that shows a column of the row of its group that has some values."""
    return lambda own: chosen(own, **values)[0][column]


def whole(rows: Sequence[Row]) -> Artifact:
    """Returns a table of all columns with a line per row; in the text, floats have four digits."""
    lines = [[f"{value:.4g}" if isinstance(value, float) else value for value in row.values()] for row in rows]
    return Artifact(tuple(rows[0]), rows, markdown([name.replace("_", " ") for name in rows[0]], lines))


def crossed(corner: str, down: Mapping[str, Any], across: Mapping[str, Any], cell: Callable[[Any, Any], object]) -> str:
    """Returns a Markdown table of two variables.

    Args:
        corner: header of the first column.
        down: text of each line -> value of the first variable.
        across: header of each further column -> value of the second variable.
        cell: content of a cell, from both values.
    """
    lines = [[text, *(cell(value, other) for other in across.values())] for text, value in down.items()]
    return markdown([corner, *across], lines)
