"""metrics.csv: one row per evaluation."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.training import files


class MetricsFile:
    """A CSV file of float columns. An undefined value is an empty cell, and NaN here.

    Args:
        path: the file, which need not exist yet.
    """

    def __init__(self, path: str):
        self.path = path

    def rows(self) -> list[dict[str, float]]:
        """Returns all rows, oldest first; none where there is no file.

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
        """Adds one row; the first one sets the columns.

        Raises:
            RunError: if the file is damaged, or has other columns.
        """
        files.write_whole(self.path, self._with(row))

    def digests(self, row: dict[str, float] | None = None) -> list[str]:
        """Returns the checksum of the file as it is and, if a row is given, as it will be once that is added."""
        present = files.digest(self._content() or b"")
        return [present] if row is None else [present, files.digest(self._with(row))]

    def fits(self, digests: Sequence[str], step: int) -> bool:
        """Returns whether the file is as it was when a state was saved, or has its next row in addition.

        Args:
            digests: what `digests` returned then.
            step: the step of that state. Its row may have been added later than the state was saved.
        """
        content = self._content() or b""
        if files.digest(content) in digests:
            return True
        rows = self.rows()
        without_last = b"".join(content.splitlines(keepends=True)[:-1])
        added = len(digests) == 1 and rows and rows[-1]["step"] == step
        # Before its first row the file did not exist.
        return bool(added) and files.digest(without_last if len(rows) > 1 else b"") in digests

    def damaged(self, reason: str) -> RunError:
        """Returns the error that says so."""
        return RunError(f"{self.path}: is damaged: {reason}; restore it from a copy, or train anew with --force")

    def _content(self) -> bytes | None:
        """Returns what the file holds; none where there is no file.

        Raises:
            RunError: if it cannot be read.
        """
        if not tf.io.gfile.exists(self.path):
            return None
        try:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                return file.read()
        except tf.errors.OpError as error:
            raise self.damaged(" ".join(error.message.split())[:150]) from None

    def _with(self, row: dict[str, float]) -> bytes:
        """Returns the content with one more row."""
        rows = self.rows()
        if rows and rows[0].keys() != row.keys():
            other = min(rows[0].keys() ^ row.keys(), default="their order")
            raise self.damaged(f"its columns are not those of this run ({other})")
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(row), lineterminator="\n")
        if not rows:
            writer.writeheader()
        writer.writerow({key: _cell(value) for key, value in row.items()})
        before = (self._content() or b"") if rows else b""
        return before + text.getvalue().encode()


def _value(cell: str) -> float:
    return float(cell) if cell else math.nan


def _cell(value: float) -> str:
    if math.isnan(value):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.7g}"
