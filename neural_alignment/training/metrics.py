"""Reads and writes `metrics.csv`, which has one row per evaluation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping

import tensorflow as tf

from neural_alignment import files
from neural_alignment.errors import RunError, one_line

MetricsRow = dict[str, float]
"""Column of `metrics.csv` -> value."""


def by_layer(row: Mapping[str, float], measure: str = "weight_angle") -> dict[str, float]:
    """Returns a measure of each layer, in the order of the network; NaN where it is undefined.

    Args:
        row: a row of `metrics.csv`.
        measure: the part of the column names before the slash.
    """
    prefix = f"{measure}/"
    return {key.removeprefix(prefix): value for key, value in row.items() if key.startswith(prefix)}


class MetricsFile:
    """A CSV file of float columns. An undefined value is an empty cell in the file, and NaN in Python.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: str):
        self.path = path

    def rows(self) -> list[dict[str, float]]:
        """Returns all rows, oldest first; an empty list if there is no file.

        Raises:
            RunError: if the file is damaged.
        """
        content = self._content()
        if content is None:
            return []
        try:
            header, *lines = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
            if not content.endswith(b"\n"):
                raise ValueError("its last line is cut off")
            if "step" not in header or len({*header}) < len(header):
                raise ValueError("its first line does not name the columns")
            for number, line in enumerate(lines, start=2):
                if len(line) != len(header):
                    raise ValueError(f"line {number} has {len(line)} cells for {len(header)} columns")
            return [dict(zip(header, map(_value, line), strict=True)) for line in lines]
        except (ValueError, csv.Error) as error:
            reason = str(error) if content else "it is empty"
            raise self.damaged(reason) from None

    def append(self, row: dict[str, float]) -> None:
        """Appends one row. The first row determines the columns.

        Raises:
            RunError: if the file is damaged, or has other columns.
        """
        rows = self.rows()
        if rows and (wrong := rows[0].keys() ^ row.keys()):
            raise self.damaged(f"its columns are not those of this run ({min(wrong)})")
        before = (self._content() or b"") if rows else b""
        files.write_whole(self.path, before + _text(row, list((rows or [row])[0]), header=not rows))

    def cut(self, step: int) -> None:
        """Removes the rows after a step, and the file if no row is left.

        Raises:
            RunError: if the file is damaged.
        """
        rows = self.rows()
        count = sum(row["step"] <= step for row in rows)
        if not count:
            files.remove(self.path)
        elif count < len(rows):
            lines = (self._content() or b"").splitlines(keepends=True)
            files.write_whole(self.path, b"".join(lines[: count + 1]))

    def digest(self) -> str:
        """Returns the checksum of the file, or of an empty file if there is none."""
        return files.digest(self._content() or b"")

    def fits(self, digest: str, step: int, row: dict[str, float] | None = None) -> bool:
        """Whether the file is unchanged since a state was saved, except that the row of its step may have been added.

        Args:
            digest: the checksum of the file when the state was saved.
            step: the step of the state. The row of this step is written after the state.
            row: this row, if it was known when the state was saved.
        """
        content, rows = self._content() or b"", self.rows()
        if files.digest(content) == digest:
            return True
        if not rows or rows[-1]["step"] != step:
            return False
        lines = content.splitlines(keepends=True)
        if row is not None and lines[-1] != _text(row, list(rows[-1]), header=False):
            return False
        # Before its first row the file did not exist.
        return files.digest(b"".join(lines[:-1]) if len(rows) > 1 else b"") == digest

    def damaged(self, reason: str) -> RunError:
        """Returns the error of a damaged file, with its remedy."""
        return RunError(f"{self.path}: is damaged: {reason}; restore it from a copy, or start over with --force")

    def _content(self) -> bytes | None:
        """Returns the content of the file, or None if there is no file.

        Raises:
            RunError: if it cannot be read.
        """
        if not tf.io.gfile.exists(self.path):
            return None
        try:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                return file.read()
        except tf.errors.PermissionDeniedError:
            raise RunError(f"{self.path}: cannot be read: permission denied") from None
        except tf.errors.OpError as error:
            raise self.damaged(one_line(error, 150)) from None


def _text(row: dict[str, float], columns: list[str], header: bool) -> bytes:
    """Returns the line of a row, preceded by the names of the columns if `header` is true."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n", extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerow({key: _cell(value) for key, value in row.items()})
    return text.getvalue().encode()


def _value(cell: str) -> float:
    return float(cell) if cell else math.nan


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.7g}"
