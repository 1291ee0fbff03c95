"""metrics.csv: one row per evaluation."""

from __future__ import annotations

import csv
import io
import math

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.training.files import write_whole


class MetricsFile:
    """A CSV file of float columns. An undefined value is an empty cell, and NaN here.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: str):
        self.path = path

    def rows(self) -> list[dict[str, float]]:
        """Returns all rows, oldest first.

        Raises:
            RunError: if the file is damaged.
        """
        if not tf.io.gfile.exists(self.path):
            return []
        try:
            with tf.io.gfile.GFile(self.path, "r") as file:
                rows = list(csv.DictReader(io.StringIO(file.read()), strict=True))
            return [{key: float(value) if value else math.nan for key, value in row.items()} for row in rows]
        except (tf.errors.OpError, UnicodeDecodeError, csv.Error, TypeError, ValueError):
            raise RunError(f"{self.path}: is damaged; restore it, or train anew with --force") from None

    def append(self, row: dict[str, float]) -> None:
        """Adds one row; the first one sets the columns."""
        self._write([*self.rows(), row])

    def _write(self, rows: list[dict[str, float]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
        write_whole(self.path, text.getvalue())


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.7g}"
