"""Reads the numbers that the papers printed, from CSV files in this package."""

from __future__ import annotations

import contextlib
import csv
from pathlib import Path
from typing import Any


def read(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a file, with numbers as `int` or `float`, and empty cells as NaN.

    The name `"two_routes/table_3"` stands for two_routes/published/table_3.csv.
    """
    paper, _, file = name.partition("/")
    path = Path(__file__).parent / paper / "published" / f"{file}.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(lines)]


def _value(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text or "nan")
    return text
