"""Writes tables and figures as CSV, Markdown and PNG; formats durations and spreads; checks output folders."""

from __future__ import annotations

import csv
import io
import math
import os
import statistics
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from neural_alignment.errors import RunError, one_line
from neural_alignment.files import write_whole
from neural_alignment.paths import problem_of_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
"""One row of a CSV file: column name -> value."""


@dataclass(frozen=True)
class Artifact:
    """The content of the files of one table or figure.

    Attributes:
        columns: names of the columns of the CSV file.
        rows: rows of the CSV file; a column missing from a row is an empty cell.
        text: Markdown, without a final newline: a table, or a description of the figure. Empty: no Markdown file.
        figure: the figure; `None` for a table.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    text: str
    figure: Figure | None = None


@dataclass(frozen=True)
class Spread:
    """Mean and spread of the values of several seeds.

    `str(spread)` gives `mean ± standard deviation` with two decimals; `format(spread, ".3f")` sets the decimals. If
    values are missing, their number follows, such as `(2 of 3)`.

    Attributes:
        values: one value per seed; NaN counts as missing.
    """

    values: Sequence[float]

    @property
    def known(self) -> list[float]:
        """The values that are not NaN."""
        return [value for value in self.values if not math.isnan(value)]

    @property
    def mean(self) -> float:
        """The mean; NaN without values."""
        return statistics.fmean(self.known) if self.known else math.nan

    @property
    def deviation(self) -> float:
        """The sample standard deviation; NaN for fewer than two values."""
        return statistics.stdev(self.known) if len(self.known) > 1 else math.nan

    @property
    def error(self) -> float:
        """The standard error of the mean; 0 for fewer than two values, so that no error bar is drawn."""
        return self.deviation / math.sqrt(len(self.known)) if len(self.known) > 1 else 0.0

    @property
    def freedom(self) -> float:
        """The degrees of freedom of the standard error."""
        return len(self.known) - 1

    def __format__(self, specification: str) -> str:
        if not self.known:
            return "none"
        parts = [self.mean, self.deviation][: len(self.known)]
        text = " ± ".join(format(part, specification or ".2f") for part in parts)
        missing = len(self.known) < len(self.values)
        return f"{text} ({len(self.known)} of {len(self.values)})" if missing else text

    def __str__(self) -> str:
        return format(self, "")


def duration(seconds: float) -> str:
    """Returns a duration as text: seconds below 100 s, minutes below 100 min, hours above."""
    if math.isnan(seconds):
        return "an unknown time"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def markdown(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table, without a final newline."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines)


def _escape(cell: object) -> str:
    return str(cell).replace("|", "\\|")


def csv_text(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """Returns the text of a CSV file.

    Floats have seven digits, booleans are 0 or 1, and `None`, NaN and missing columns are empty cells. Keys of a row
    that are not columns are left out.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.7g}"
    return value


def read_csv(path: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file; an empty list if the file does not exist.

    Raises:
        RunError: if the file cannot be read.
    """
    try:
        if not tf.io.gfile.exists(path):
            return []
        if problem := problem_of_file(path):
            raise RunError(f"{path}: {problem}; restore it")
        with tf.io.gfile.GFile(path, "r") as file:
            return list(csv.DictReader(io.StringIO(file.read()), strict=True))
    except (tf.errors.OpError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: cannot be read as CSV: {one_line(error, 150)}") from None


def write(artifact: Artifact, path: str) -> list[str]:
    """Writes `path`.csv, `path`.md if there is a text, and `path`.png if there is a figure; returns their paths.

    Args:
        artifact: the content.
        path: path of the files without their extension; may be on a remote file system, such as gs://. Missing folders
            are created.
    """
    if folder := path.rpartition("/")[0]:
        tf.io.gfile.makedirs(folder)
    contents: dict[str, str | bytes] = {"csv": csv_text(artifact.columns, artifact.rows)}
    if artifact.text:
        contents["md"] = artifact.text + "\n"
    if artifact.figure is not None:
        contents["png"] = png(artifact.figure)
    for extension, content in contents.items():
        write_whole(f"{path}.{extension}", content, shared=True)
    return [f"{path}.{extension}" for extension in contents]


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file; equal figures give equal bytes."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Names of runs may be in a script that the font of Matplotlib does not have; each letter would be two lines.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure that does not depend on the global state of pyplot.

    Args:
        width: width in inches.
        height: height in inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def whole_ticks(axis: Axes) -> None:
    """Puts the ticks of an x axis at whole numbers, if their places are chosen automatically: for numbers of epochs."""
    from matplotlib.ticker import MaxNLocator

    locator = axis.xaxis.get_major_locator()
    if isinstance(locator, MaxNLocator):
        locator.set_params(integer=True)


def check_new(path: str) -> None:
    """Checks that no table or figure of this name exists, so that a long computation does not replace another result.

    Args:
        path: path of the files without their extension.

    Raises:
        RunError: if there is one.
    """
    for extension in ("csv", "md", "png"):
        if tf.io.gfile.exists(f"{path}.{extension}"):
            raise RunError(f"{path}.{extension}: exists; name other files with --output, or move it away")


def check_replaceable(path: str, columns: Sequence[str]) -> None:
    """Checks that tables which are about to be replaced are of the same kind, and not other files of the user.

    Args:
        path: path of the files without their extension.
        columns: the columns that the CSV file will have.

    Raises:
        RunError: if there is another file with one of these names.
    """
    reason = "exists and is not such a table; name other files with --output, or move it away"
    table, *others = (f"{path}.{extension}" for extension in ("csv", "md", "png"))
    if tf.io.gfile.exists(table):
        with tf.io.gfile.GFile(table, "rb") as file:
            if file.readline() != f"{','.join(columns)}\n".encode():
                raise RunError(f"{table}: {reason}")
        return
    for other in others:
        if tf.io.gfile.exists(other):
            raise RunError(f"{other}: {reason}")


def check_writable(folder: str) -> None:
    """Creates a folder, and checks that files can be written to it, so that a long computation fails early.

    Raises:
        RunError: if files cannot be written to the folder.
    """
    probe = tf.io.gfile.join(folder, f".trial-{os.getpid()}")
    try:
        tf.io.gfile.makedirs(folder)
        write_whole(probe, "")
        tf.io.gfile.remove(probe)
    except tf.errors.OpError as error:
        raise RunError(f"{folder}: cannot be written: {one_line(error)}") from None
