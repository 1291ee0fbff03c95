"""Reads the numbers that the papers printed, from CSV files in this package."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any


def read(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a file, with numbers as `int` or `float`, and empty cells as NaN.

    Args:
        name: paper and file without its extension: `"two_routes/table_3"` is two_routes/published/table_3.csv.
    """
    paper, _, file = name.partition("/")
    path = Path(__file__).parent / paper / "published" / f"{file}.csv"
    with path.open(encoding="utf-8", newline="") as lines:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(lines)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text) if text else math.nan
        except ValueError:
            continue
    return text
