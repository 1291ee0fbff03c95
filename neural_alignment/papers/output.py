"""What papers' tables and figures are written with: CSV, Markdown, PNG, and a style that survives a grey printer."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from neural_alignment.errors import RunError
from neural_alignment.training.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Product:
    """What a table or a figure is made of.

    Attributes:
        columns: of the CSV file.
        rows: its rows; a column that a row lacks is an empty cell.
        text: Markdown for the reader: a table, or what the figure shows and lacks.
        figure: of a figure.
    """

    columns: Sequence[str]
    rows: Sequence[Row]
    text: str
    figure: Figure | None = None


@dataclass(frozen=True)
class Style:
    """How one line of a figure looks; told apart by marker and line style, not by shade alone.

    Attributes:
        label: in the legend.
        marker: matplotlib's letter.
        line: matplotlib's line style.
        shade: grey, 0 black to 1 white.
    """

    label: str
    marker: str = "o"
    line: Any = "-"
    shade: float = 0.0

    def options(self) -> dict[str, Any]:
        """Returns what `Axes.errorbar` takes."""
        shade = str(self.shade)
        return {"label": self.label, "marker": self.marker, "linestyle": self.line, "color": shade, "capsize": 2.5}


@dataclass
class Spread:
    """Values of several seeds.

    Attributes:
        values: one per seed; NaN is left out.
    """

    values: Sequence[float]
    known: list[float] = field(init=False)

    def __post_init__(self):
        self.known = [value for value in self.values if not math.isnan(value)]

    @property
    def mean(self) -> float:
        """The mean, NaN where there is no value."""
        return statistics.fmean(self.known) if self.known else math.nan

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds; NaN of fewer than two."""
        return statistics.stdev(self.known) if len(self.known) > 1 else math.nan

    @property
    def error(self) -> float:
        """The standard error of the mean; 0 of fewer than two, for which no bar is drawn."""
        return self.deviation / math.sqrt(len(self.known)) if len(self.known) > 1 else 0.0

    def __str__(self) -> str:
        if not self.known:
            return "none"
        return f"{self.mean:.2f} ± {self.deviation:.2f}" if len(self.known) > 1 else f"{self.mean:.2f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_escaped(cell) for cell in line)} |" for line in lines)


def _escaped(cell: object) -> str:
    return str(cell).replace("|", "\\|")


def csv_text(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """Returns a CSV file; floats are rounded to seven digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def read_csv(path: str) -> list[dict[str, str]]:
    """Returns the rows of a CSV file; none where there is no file.

    Raises:
        RunError: if it cannot be read.
    """
    if not tf.io.gfile.exists(path):
        return []
    try:
        with tf.io.gfile.GFile(path, "r") as file:
            return list(csv.DictReader(io.StringIO(file.read()), strict=True))
    except (tf.errors.OpError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: cannot be read as CSV: {' '.join(str(error).split())[:150]}") from None


def write(product: Product, path: str) -> list[str]:
    """Writes `path`.csv and `path`.md, and of a figure `path`.png; returns their names."""
    contents: dict[str, str | bytes] = {"csv": csv_text(product.columns, product.rows), "md": product.text + "\n"}
    if product.figure is not None:
        contents["png"] = png(product.figure)
    for ending, content in contents.items():
        write_whole(f"{path}.{ending}", content)
    return [f"{path}.{ending}" for ending in contents]


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file, the same for the same figure."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return content.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of so many inches, free of pyplot's state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def check_writable(folder: str) -> None:
    """Makes sure that files can be written to a folder, before hours of training; it is made.

    Raises:
        RunError: if they cannot.
    """
    trial = tf.io.gfile.join(folder, ".trial")
    try:
        tf.io.gfile.makedirs(folder)
        write_whole(trial, "")
        tf.io.gfile.remove(trial)
    except tf.errors.OpError as error:
        raise RunError(f"{folder}: cannot be written: {' '.join(error.message.split())[:200]}") from None


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.7g}"
    return value
