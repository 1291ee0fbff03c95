"""Draws the figures of the papers from tidy rows.

A figure is a grid of panels, and a panel is a list of marks with the texts and limits of its axes. A mark is a function
that draws on matplotlib axes; the functions of this module make the common ones. A summary combines the values of
several seeds at one x. All figures are grey: lines differ in marker and line style as well as in shade.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from neural_alignment.errors import ArgumentError, Words
from neural_alignment.papers.tables import Key, chosen, grouped, value_of
from neural_alignment.reporting import Artifact, Row, Spread, new_figure, whole_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mark = Callable[["Axes"], None]
"""Draws one element of a panel."""


@dataclass(frozen=True)
class RowMark:
    """A mark that is made from tidy rows, which `panels_by` divides among panels."""

    rows: Sequence[Row]
    draw: Callable[[Axes, Sequence[Row]], None]

    def __call__(self, axis: Axes) -> None:  # noqa: D102 (as of `Mark`)
        self.draw(axis, self.rows)


Summary = Callable[[Sequence[float]], tuple[float, float, float]]
"""Values with the same x -> the point that is drawn, and the lower and the upper end of its error bar."""


@dataclass(frozen=True)
class Style:
    """The look of one line of a figure: marker and line style are those of matplotlib.

    Attributes:
        label: text in the legend; `None` for a line that the legend leaves out.
        shade: grey level, from 0 (black) to 1 (white).
        filled: whether markers are filled.
        width: width of the line in points.
    """

    label: str | None
    marker: str = "o"
    line: Any = "-"
    shade: float = 0.0
    filled: bool = True
    width: float = 1.2

    def options(self) -> dict[str, Any]:
        """Returns the arguments of `Axes.plot`."""
        look = {"label": self.label, "marker": self.marker, "linestyle": self.line, "color": str(self.shade)}
        face = {} if self.filled else {"markerfacecolor": "white"}
        return {**look, "linewidth": self.width, "markersize": 4, **face}


class Panel(NamedTuple):
    """One panel of a figure: its elements, drawn in this order, and arguments of `Axes.set`, such as title and xlim."""

    marks: Sequence[Mark]
    axes: Mapping[str, Any]


def panel(*marks: Mark, **axes: Any) -> Panel:
    """Returns a panel; **axes are arguments of `Axes.set`."""
    return Panel(marks, axes)


def panels_by(
    column: str, *marks: Mark, title: Callable[[Any], str] = str, values: Iterable[Any] = (), **axes: Any
) -> list[Panel]:
    """Returns a panel for each value of a column; marks that are made from rows show only those with the value.

    Args:
        column: name of the column.
        *marks: the elements of each panel.
        title: value -> title of its panel, such as `"layer {}".format`.
        values: the values that have a panel. Default: all, in the order of the rows.
        **axes: arguments of `Axes.set` for all panels.
    """

    def own(mark: Mark, value: Any) -> Mark:
        return replace(mark, rows=chosen(mark.rows, **{column: value})) if isinstance(mark, RowMark) else mark

    found = dict.fromkeys(row[column] for mark in marks if isinstance(mark, RowMark) for row in mark.rows)
    return [panel(*(own(mark, value) for mark in marks), title=title(value), **axes) for value in values or found]


Panels = Sequence[Sequence[Panel | None]]
"""Rows of panels of equal length; `None` leaves a place empty."""


def drawn(
    rows: Sequence[Row], text: str, panels: Panels, size: tuple[float, float], columns: Sequence = (), **layout: Any
) -> Artifact:
    """Returns a figure and its rows; without `columns` those of the first row, and `layout` is as of `grid`."""
    return Artifact(columns or tuple(rows[0]), rows, text, grid(panels, size, **layout))


def grid(
    panels: Panels,
    size: tuple[float, float],
    *,
    ylabels: Sequence[str] = (),
    legends: Sequence[tuple[int, int]] = (),
    beside: Sequence[tuple[int, int]] = (),
    legend: str = "",
    note: str = "",
    share_x: bool = False,
    share_y: bool | str = False,
) -> Figure:
    """Draws a figure.

    Args:
        panels: rows of panels.
        size: width and height in inches.
        ylabels: label of the y axis of the first panel of each row.
        legends: row and column of each panel that has a separate legend.
        beside: row and column of each panel whose legend is to its right, outside of the panel.
        legend: place of one legend of all other panels, such as `"outside lower center"`; empty for none.
        note: a line of text below the panels, or above the entries of a legend there, such as the meaning of shades.
        share_x: whether all panels have the same x axis.
        share_y: whether all panels have the same y axis; `"row"`: those of the same row.

    Raises:
        ValueError: if a legend has a label of two looks, so that it would explain only one of them.
    """
    figure = new_figure(*size)
    axes = figure.subplots(len(panels), len(panels[0]), squeeze=False, sharex=share_x, sharey=share_y)
    for axis, each in zip(axes.flat, itertools.chain(*panels), strict=True):
        if each is None:
            axis.remove()
            continue
        for mark in each.marks:
            mark(axis)
        axis.set(**each.axes)
        if axis.get_xlabel() == "epoch":
            whole_ticks(axis)
        if not axis.has_data():
            _empty(axis)
    for axis, label in zip(axes[:, 0], ylabels, strict=False):
        axis.set(ylabel=label)
    own = [axes[place] for place in legends]
    for axis in own:
        _add_legend(axis, [axis], fontsize="x-small")
    outside = [axes[place] for place in beside]
    for axis in outside:
        _add_legend(axis, [axis], loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")
    own += outside
    below = "lower" in legend  # The note would be under the legend.
    if note and not below:
        figure.supxlabel(note, fontsize="small")
    if legend:
        others = [axis for axis in figure.axes if axis not in own]
        looks = {"ncols": int(size[0] / 1.7) if "center" in legend else 1, "fontsize": "small"}
        title = {"title": note, "title_fontsize": "small"} if note and below else {}
        _add_legend(figure, others, loc=legend, **looks, **title)
    return figure


def _empty(axis: Axes) -> None:
    """Leaves only the title of a panel without data, so that no reader looks for lines between 0 and 1."""
    axis.spines[:].set_visible(False)
    axis.tick_params(which="both", left=False, bottom=False, labelleft=False, labelbottom=False)
    axis.set(xlabel="", ylabel="")


def _add_legend(owner: Axes | Figure, axes: Sequence[Axes], **options: Any) -> None:
    """Adds a legend that has each label of some axes once; raises `ValueError` if a label has two looks."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            first = entries.setdefault(label, handle)
            if _look(first) != _look(handle):
                requirement = "must have the same look in all panels of a legend"
                found = Words(f"{label!r} with {_look(first)} and {_look(handle)}")
                raise ArgumentError("label", requirement, found, "a style for each label")
    if entries:
        owner.legend(list(entries.values()), list(entries), **options)


def _look(handle: Any) -> dict[str, str]:
    """Returns the line style, marker and colours of a legend handle; of a line with error bars those of the line."""
    artist = getattr(handle, "lines", [handle])[0]
    names = ("linestyle", "marker", "color", "markerfacecolor", "edgecolor")
    return {name: str(getattr(artist, f"get_{name}")()) for name in names if hasattr(artist, f"get_{name}")}


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean, and one standard deviation below and above."""
    spread = Spread(values)
    deviation = spread.deviation if len(spread.known) > 1 else 0.0
    return spread.mean, spread.mean - deviation, spread.mean + deviation


def mean_and_error(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean, and one standard error below and above."""
    spread = Spread(values)
    return spread.mean, spread.mean - spread.error, spread.mean + spread.error


def mean_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean, the smallest and the largest value."""
    return statistics.fmean(values), min(values), max(values)


def median_and_range(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median, the smallest and the largest value."""
    return statistics.median(values), min(values), max(values)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the median, and the lower and the upper quartile."""
    return tuple(np.percentile(values, (50, 25, 75)).tolist())


def first(values: Sequence[float]) -> tuple[float, float, float]:
    """Returns the first value, without an error bar."""
    return (values[0],) * 3


def lines(
    rows: Sequence[Row],
    x: Key,
    y: Key,
    by: Key | None,
    styles: Mapping[Any, Style] | Style,
    summary: Summary = mean_and_deviation,
    band: bool = False,
    **options: Any,
) -> RowMark:
    """Returns a line with error bars for each value of `by`.

    Args:
        rows: tidy rows; those without an x or a y are left out.
        x: column of x, or a function of a row.
        y: column of y, or a function of a row.
        by: column that tells the lines apart, or a function of a row; `None` for one line.
        styles: value of `by` -> look of its line; a single style where `by` is `None`.
        summary: combines the rows with the same x.
        band: whether errors are shaded instead of drawn as bars.
        **options: further arguments of `Axes.plot`.
    """

    def draw(axis: Axes, rows: Sequence[Row]) -> None:
        groups = {(None,): rows} if by is None else grouped(rows, by)
        for key, style in ({None: styles} if by is None else styles).items():
            points = _points(groups.get((key,), ()), x, y, summary)
            if points:
                _draw_line(axis, np.array(points, float), style.options() | options, band)

    return RowMark(rows, draw)


def span(rows: Sequence[Row], x: Key, y: Key, label: str) -> RowMark:
    """Returns an area in light grey from the smallest to the largest y at each x."""

    def draw(axis: Axes, rows: Sequence[Row]) -> None:
        if found := _points(rows, x, y, median_and_range):
            xs, _, low, high = zip(*found, strict=True)
            axis.fill_between(xs, low, high, color="0.88", linewidth=0, label=label)

    return RowMark(rows, draw)


def apart(x: str, by: str, values: Sequence[Any], move: Callable[[float, float], float]) -> Key:
    """Returns x of a row, moved a little by its value of `by`, so that equal points of several lines can be seen.

    Args:
        x: column of x.
        by: column that tells the lines apart.
        values: its values, from left to right.
        move: x and the place of the value, counted from the middle -> the moved x.
    """
    places = {value: number - (len(values) - 1) / 2 for number, value in enumerate(values)}
    return lambda row: move(row[x], places[row[by]])


def _points(rows: Sequence[Row], x: Key, y: Key, summary: Summary) -> list[tuple[float, ...]]:
    """Returns x, y and both ends of the error bar of each point, in ascending order of x."""
    values: dict[float, list[float]] = {}
    for row in rows:
        place, value = value_of(row, x), value_of(row, y)
        if place is not None and value is not None and not np.isnan(value):
            values.setdefault(place, []).append(value)
    return [(place, *summary(values[place])) for place in sorted(values)]


def _draw_line(axis: Axes, points: np.ndarray, options: Mapping[str, Any], band: bool) -> None:
    xs, middle, low, high = points.T
    if band:
        axis.plot(xs, middle, markevery=max(len(xs) // 8, 1), **options)
        axis.fill_between(xs, low, high, color=options["color"], alpha=0.15, linewidth=0)
    else:
        bars = [middle - low, high - middle] if np.any(high > low) else None
        axis.errorbar(xs, middle, yerr=bars, capsize=2.5, **options)


def points(xs: Sequence[float], ys: Sequence[float], style: Style, **options: Any) -> Mark:
    """Returns a point for each x and y; **options are further arguments of `Axes.plot`."""
    return lambda axis: axis.plot(xs, ys, **{**style.options(), **options})


def steps(heights: Sequence[float], edges: Sequence[float], style: Style) -> Mark:
    """Returns a histogram; there is one more edge than bins."""
    look = {name: style.options()[name] for name in ("color", "linestyle", "linewidth", "label")}
    return lambda axis: axis.stairs(heights, edges, **look, zorder=1 / style.width)  # Thin lines above thick ones.


def words(x: float, y: float, text: str) -> Mark:
    """Returns a small text that runs upwards from a point."""
    place = {"xytext": (0, 7), "textcoords": "offset points", "rotation": 90, "ha": "center", "va": "bottom"}
    return lambda axis: axis.annotate(text, (x, y), fontsize="x-small", **place)


_DOTTED = {"color": "0.5", "linewidth": 1, "linestyle": (0, (1, 3))}


def level(value: float, label: str | None = None) -> Mark:
    """Returns a dotted horizontal line."""
    return lambda axis: axis.axhline(value, label=label, **_DOTTED)


def upright(place: float, label: str | None = None) -> Mark:
    """Returns a dotted vertical line."""
    return lambda axis: axis.axvline(place, label=label, **_DOTTED)


def diagonal() -> Mark:
    """Returns the dotted line y = x."""
    return lambda axis: axis.axline((0, 0), slope=1, linestyle=":", color="0.5")


def scale(which: str, name: str, **options: Any) -> Mark:
    """Sets the scale of the axis `which`, `"x"` or `"y"`, by name; **options are those of matplotlib's scale."""
    return lambda axis: getattr(axis, f"set_{which}scale")(name, **options)


def ticks(places: Sequence[float], labels: Sequence[str] = (), log: bool = True, **options: Any) -> Mark:
    """Sets the only ticks of the x axis, labelled by their x if there are no labels; **options of `Axes.set_xticks`."""

    def draw(axis: Axes) -> None:
        if log:
            axis.set_xscale("log")
        axis.set_xticks(places, labels or [f"{place:g}" for place in places], **options)
        axis.minorticks_off()

    return draw


def plain_ticks() -> Mark:
    """Makes the y axis logarithmic, with plain numbers such as 0.9 at its ticks; it follows the other marks."""

    def draw(axis: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

        axis.set_yscale("log")
        low, high = axis.get_ylim()
        if high < 5 * low:
            axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axis.minorticks_off()
        elif high < 100 * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())

    return draw


HATCHES = ("", "///", "...", "xxx", "\\\\\\", "+++", "ooo", "---")


def bars(rows: Sequence[Row], name: str, height: str, error: str) -> Mark:
    """Returns a hatched bar with an error bar for each row; arguments are columns."""

    def draw(axis: Axes) -> None:
        names, heights, errors = ([row[column] for row in rows] for column in (name, height, error))
        hatches = [HATCHES[place % len(HATCHES)] for place in range(len(rows))]
        axis.bar(range(len(rows)), heights, yerr=errors, color="0.8", edgecolor="black", hatch=hatches, capsize=3)
        axis.set_xticks(range(len(rows)), names, rotation=30, ha="right")

    return draw


def image(values: np.ndarray, label: str = "", **options: Any) -> Mark:
    """Returns a matrix in greys, dark where it is large; without a label no colour bar; **options of `Axes.imshow`."""

    def draw(axis: Axes) -> None:
        shades = axis.imshow(values, cmap="Greys", interpolation="nearest", **options)
        if label:
            axis.figure.colorbar(shades, ax=axis, label=label, shrink=0.8)

    return draw


def contours(xs: np.ndarray, ys: np.ndarray, heights: np.ndarray, label: str = "", **options: Any) -> Mark:
    """Returns filled contours; without a label no colour bar; other arguments as of `Axes.contourf`."""

    def draw(axis: Axes) -> None:
        shades = axis.contourf(xs, ys, heights, cmap="Greys", **options)
        if label:
            axis.figure.colorbar(shades, ax=axis, label=label, shrink=0.8)

    return draw


def row_bar(label: str, **options: Any) -> Mark:
    """Returns the colour bar of a row whose panels have the same shades; it follows the image or contours of its panel.

    **options are those of `Figure.colorbar`.
    """

    def draw(axis: Axes) -> None:
        places = {each: each.get_subplotspec() for each in axis.figure.axes}  # None for a colour bar.
        panels = [each for each, place in places.items() if place and place.rowspan == places[axis].rowspan]
        axis.figure.colorbar([*axis.images, *axis.collections][0], ax=panels, label=label, **options)

    return draw


def arrows(places: np.ndarray, directions: np.ndarray, shade: float = 0.0, **options: Any) -> Mark:
    """Returns arrows of unit length from places `(arrows, 2)`, none where the direction is 0; **options of `quiver`."""
    sizes = np.linalg.norm(directions, axis=1, keepdims=True)
    units = np.divide(directions, sizes, out=np.zeros_like(directions), where=sizes > 0)
    return lambda axis: axis.quiver(*np.transpose(places), *units.T, color=str(shade), **options)
