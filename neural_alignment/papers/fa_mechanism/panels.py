"""What the figures of this paper share: lines with their spread over seeds, and the rows behind them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from neural_alignment.papers.figures import Style
from neural_alignment.papers.pieces import Arrays, Pieces
from neural_alignment.papers.plans import Cell, Outcome
from neural_alignment.papers.registry import Source
from neural_alignment.reporting import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray

BY_SEED = ("seed", "value")
"""Columns of what is told of each seed; means and deviations are for the reader to make, and for the picture."""

LAYER_STYLES = [
    Style(f"l = {layer}", "osD^v"[layer], ("-", "--", "-.", ":", "-")[layer], 0.17 * layer) for layer in range(5)
]
"""Lines of the layers l = 0 to 4."""

HIGH = 100
"""Upper limit of an axis of angles, degrees."""


def line(axis: Axes, xs: Array, values: Array, style: Style, markers: bool = True) -> None:
    """Draws the mean over seeds, and one standard deviation around it.

    Args:
        axis: where.
        xs: `(points,)`.
        values: `(seeds, points)`; NaN is left out.
        style: of the line.
        markers: whether some of the points are marked.
    """
    mean, deviation, _ = spread(values)
    shade, every = str(style.shade), max(len(xs) // 8, 1)
    axis.plot(
        xs,
        mean,
        color=shade,
        linestyle=style.line,
        linewidth=1.2,
        marker=style.marker if markers else None,
        markevery=every,
        markersize=3.5,
        label=style.label,
    )
    axis.fill_between(xs, mean - deviation, mean + deviation, color=shade, alpha=0.15, linewidth=0)


def spread(values: Array) -> tuple[Array, Array, Array]:
    """Returns mean, standard deviation (NaN of one) and number of the values that there are, over the first axis."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    filled = np.where(known, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(count > 0, filled.sum(axis=0) / count, np.nan)
        squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
        deviation = np.where(count > 1, np.sqrt(squares / (count - 1)), np.nan)
    return mean, deviation, count


def seed_rows(
    labels: Mapping[str, Any], name: str, xs: Sequence[float], values: Array, seeds: Sequence[int]
) -> Iterator[Row]:
    """Yields a row per seed and point: labels, the point, and `BY_SEED`; where there is no value there is no row.

    Args:
        labels: of all rows.
        name: column of the points.
        xs: `(points,)`.
        values: `(seeds, points)`.
        seeds: `(seeds,)`.
    """
    for seed, own in zip(seeds, values, strict=True):
        for x, value in zip(xs, own, strict=True):
            if not math.isnan(value):
                yield {**labels, name: _plain(x), "seed": int(seed), "value": float(value)}


def seeds_of(results: Sequence[Arrays]) -> list[int]:
    """Returns the seeds of some results of `computed`."""
    return [int(arrays["seed"]) for arrays in results]


def _plain(value: Any) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def stacked(results: Sequence[Arrays], name: str) -> Array:
    """Returns one array of all seeds, seeds first."""
    return np.stack([arrays[name] for arrays in results])


def computed(source: Source, **labels: Any) -> list[tuple[Mapping[str, Any], list[Arrays]]]:
    """Returns of the pieces that a figure is made from the labels, and the arrays of each seed, `seed` among them.

    Args:
        source: of the figure.
        **labels: those that are asked for; all of them where none.
    """
    return [
        (
            cell.labels,
            [{**each.arrays, "seed": np.array(each.seed)} for each in cell.read(source.folder, source.configs)],
        )
        for cell in source.cells
        if isinstance(cell, Pieces) and labels.items() <= cell.labels.items()
    ]


def chosen(source: Source, **labels: Any) -> list[Arrays]:
    """Returns the arrays of the seeds of the pieces with some labels."""
    return [each for _, results in computed(source, **labels) for each in results]


def trained(source: Source) -> list[tuple[Cell, list[Outcome]]]:
    """Returns the runs that a figure is made from."""
    cells = (cell for cell in source.cells if isinstance(cell, Cell))
    return [(cell, cell.read(source.folder, source.configs)) for cell in cells]


def thinned(points: int, number: int) -> Array:
    """Returns which of some points stand in a CSV file: `number` of them at most, evenly, first and last included."""
    return np.unique(np.linspace(0, points - 1, number).astype(int))


def moving_average(values: Array, width: int) -> Array:
    """Returns means of `width` values in a row along the last axis, fewer at the ends."""
    kernel = np.ones(width)
    weights = np.convolve(np.ones(values.shape[-1]), kernel, mode="same")
    return np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="same") / weights, -1, values)


def degrees(axis: Axes, low: float = 0) -> None:
    """Makes the second axis one of angles from `low` to 100, with a line at 90 degrees."""
    axis.axhline(90, color="0.6", linewidth=0.7, linestyle=(0, (1, 3)))
    axis.set_ylim(low, HIGH)


def legend(figure: Figure, axis: Axes, columns: int = 6) -> None:
    """Puts the legend of one panel below all."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, fontsize="small")


def range_of(values: Sequence[float]) -> str:
    """Returns for a reader the smallest and the largest of some values."""
    known = [value for value in values if not math.isnan(value)]
    return f"{min(known):.1f} to {max(known):.1f}" if known else "none"
