"""Pictures of runs: the summary of one run, and several runs in one picture, with their seeds as bands.

Runs that are still training are drawn up to their last evaluation.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from neural_alignment import files
from neural_alignment.errors import InputError, RunError
from neural_alignment.losses import Criterion
from neural_alignment.paths import real
from neural_alignment.reporting import check_writable, new_figure, png, whole_ticks
from neural_alignment.training.metrics import by_layer
from neural_alignment.training.run_directory import RunDirectory, check_different_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = np.ndarray

SUMMARY = "summary.png"
"""Name of the summary, which is one of the files of a run directory."""

RIGHT_ANGLE = 90.0

_VALIDATION = "validation"

_R = "R, which each rule scales differently"
"""Title of the panel with the R of several rules."""

_LARGE_R = 10.0
"""From this value of |R| on, the axis of R is logarithmic, because the R of rules differ by orders of magnitude."""

_COLORS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""The palette of Okabe and Ito, for people with any colour vision. In grey, line styles tell the lines apart."""

_LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

_MOST_LABELS = 30
"""Maximum number of layers whose names are written beside a heat map."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """The evaluations of one run.

    Attributes:
        path: the run directory.
        rows: rows of `metrics.csv`, at least one.
        criterion: the metric that judges the run.
        seed: the seed of the run.
    """

    path: str
    rows: list[dict[str, float]]
    criterion: Criterion
    seed: int

    @classmethod
    def read(cls, path: str) -> Curve:
        """Reads a run, which may still be training.

        Raises:
            RunError: if there is no run, it is damaged, or it has no evaluation yet.
        """
        directory = RunDirectory(path)
        status = directory.status()
        rows = directory.rows(status)
        if not rows:
            raise RunError(f"{path}: has no evaluation yet, so there is nothing to draw; try again later")
        config = directory.checked_config(status)
        return cls(path, rows, config.loss.criterion, config.seed)

    @property
    def layers(self) -> list[str]:
        """Names of the layers with an angle between W and B^T, in the order of the network."""
        return list(by_layer(self.rows[0]))

    def column(self, name: str) -> Array:
        """Returns a column, `(evaluations,)`; NaN where it is undefined or the run has no such column."""
        return np.array([row.get(name, np.nan) for row in self.rows])

    def matrix(self, prefix: str) -> Array:
        """Returns the columns of all layers with a prefix, `(layers, evaluations)`."""
        return np.array([self.column(f"{prefix}/{layer}") for layer in self.layers])

    def mean_angle(self) -> Array:
        """Returns the mean over the layers of the angle between W and B^T, `(evaluations,)`; NaN without layers."""
        if not self.layers:
            return np.full(len(self.rows), np.nan)
        return self.matrix("weight_angle").mean(axis=0)


def write(paths: Sequence[str], output: str | None = None) -> str:
    """Draws runs and writes the picture; returns its path.

    Args:
        paths: run directories, or folders with a run directory per seed.
        output: the picture; by default `SUMMARY` in the only run.

    Raises:
        RunError: as of `compare`.
        InputError: if `output` is missing and there are several runs, or a run is given twice.
    """
    found = list(itertools.chain.from_iterable(map(_runs_at, paths)))
    known: dict[str, str] = {}
    for path in found:
        if (place := real(path)) in known:
            raise InputError(f"RUN must be different; {path} is the same run as {known[place]}")
        known[place] = path
    if output is None:
        if len(found) > 1:
            raise InputError(f"{len(found)} runs need a name for their picture; give --output FILE.png")
        output = tf.io.gfile.join(found[0], SUMMARY)
    figure = summary(Curve.read(found[0])) if len(found) == 1 else compare(found)
    check_writable(os.path.dirname(output) or ".")
    files.write_whole(output, png(figure))
    return output


def summary(run: Curve) -> Figure:
    """Returns a figure of one run: J, the metric and R, and for each layer the angle and the norm ratio over time."""
    rows = 3 if run.layers else 1
    heights = [2.6] + [max(1.8, 0.6 + 0.16 * min(len(run.layers), _MOST_LABELS))] * (rows - 1)
    figure = new_figure(9, sum(heights))
    panels, epochs = _quantities(run.criterion), run.column("epoch")
    grid = figure.add_gridspec(rows, len(panels), height_ratios=heights)
    for place, (title, names) in enumerate(panels.items()):
        axis = figure.add_subplot(grid[0, place])
        for (name, label), line in zip(names.items(), ("-", "--"), strict=False):
            values = run.column(name)
            if not np.isnan(values).all():
                axis.plot(epochs, values, line, color="black", marker=".", label=label)
        _finish(axis, title)
        if len(axis.lines) > 1:
            axis.legend()
    if run.layers:
        _heat(figure.add_subplot(grid[1, :]), run, "weight_angle", "angle of W to B$^T$ (degrees)", (0, RIGHT_ANGLE))
        ratios = run.matrix("norm_ratio")
        logarithms = np.abs(np.log2(np.maximum(ratios, 1e-12)))
        spread = max(1.0, float(np.max(logarithms, initial=0.0, where=np.isfinite(logarithms))))
        _heat(figure.add_subplot(grid[2, :]), run, "norm_ratio", "norm of B over norm of W", spread)
    figure.suptitle(run.path, fontsize=9, parse_math=False)
    return figure


def _quantities(criterion: Criterion) -> dict[str, dict[str, str]]:
    """Returns title of a panel -> column -> label; J has one panel if it is the metric as well."""
    losses = {"J": _VALIDATION, "train_J": "training"}
    metric = {criterion.column: _VALIDATION, f"train_{criterion.column}": "training"}
    return {"J": losses, criterion.name: metric, "R": {"R": "training"}}


def _finish(axis: Axes, title: str) -> None:
    axis.set(xlabel="epoch", title=title)
    whole_ticks(axis)
    axis.grid(alpha=0.3)


def _heat(axis: Axes, run: Curve, prefix: str, label: str, limits: tuple[float, float] | float) -> None:
    """Draws a value of each layer over time.

    Args:
        axis: the axes.
        run: the run.
        prefix: prefix of the columns.
        label: the title, which names the value and its unit.
        limits: smallest and largest value; or a number n for ratios from 2^-n to 2^n in a logarithmic scale.
    """
    from matplotlib.colors import LogNorm, Normalize

    ratio = not isinstance(limits, tuple)
    norm = LogNorm(2.0**-limits, 2.0**limits) if ratio else Normalize(*limits)
    colors = "RdBu_r" if ratio else "cividis"
    image = axis.imshow(run.matrix(prefix), aspect="auto", interpolation="nearest", norm=norm, cmap=colors)
    bar = axis.figure.colorbar(image, ax=axis)
    if ratio:
        largest = int(limits)
        stride = 1 + largest // 4
        powers = range(-(largest // stride) * stride, largest + 1, stride)  # 1, which is equal norms, has a tick.
        bar.set_ticks([2.0**power for power in powers], labels=[f"{2.0**power:.3g}" for power in powers])
        bar.minorticks_off()
    epochs = [f"{epoch:g}" for epoch in run.column("epoch")]
    shown = range(0, len(epochs), 1 + len(epochs) // 12)
    axis.set_xticks(shown, [epochs[place] for place in shown])
    named = range(0, len(run.layers), 1 + (len(run.layers) - 1) // _MOST_LABELS)
    axis.set_yticks(named, [run.layers[place] for place in named], fontsize=7)
    axis.set(xlabel="epoch", title=label)


def compare(paths: Sequence[str]) -> Figure:
    """Returns a figure with several runs: J, the metric, R, and the mean angle between W and B^T.

    Runs in directories `seed0`, `seed1` and so on of one folder are one line, their mean, with a band from the smallest
    to the largest value.

    Args:
        paths: run directories.

    Raises:
        RunError: as of `Curve.read`; also if the runs have different metrics, or two runs of one line the same seed.
    """
    groups: dict[str, list[Curve]] = {}
    for path in paths:
        folder, name = os.path.split(path.rstrip("/"))
        folder = folder or os.getcwd()
        groups.setdefault(folder if re.fullmatch("seed[0-9]+", name) else path, []).append(Curve.read(path))
    for group in groups.values():
        check_different_seeds((run.path, run.seed) for run in group)
    runs = [run for group in groups.values() for run in group]
    first, *others = runs
    for other in others:
        if other.criterion != first.criterion:
            found = f"{other.criterion.name}, that of {first.path} by {first.criterion.name}"
            raise RunError(f"{other.path}: is judged by {found}; draw runs with one metric")
    name, split, column = first.criterion.name, _VALIDATION, first.criterion.column
    if column == "J":  # It has a panel already.
        split, column = "training", "train_J"
    quantities = [
        (f"J, {_VALIDATION}", lambda run: run.column("J")),
        (f"{name}, {split}", lambda run: run.column(column)),
        (_R, lambda run: run.column("R")),
        ("mean angle of W to B$^T$ (degrees)", Curve.mean_angle),
    ]
    figure = new_figure(9, 6.5)
    # A label that begins with an underscore would not be in the legend.
    shown = [f"./{name}" if name.startswith("_") else name for name in _short(list(groups))]
    names = dict(zip(groups, shown, strict=True))
    for axis, (title, values) in zip(figure.subplots(2, 2).flat, quantities, strict=True):
        for (folder, group), color, line in zip(
            groups.items(), itertools.cycle(_COLORS), _endless_lines(), strict=False
        ):
            label = names[folder] if len(group) == 1 else f"{names[folder]}, {len(group)} seeds"
            _draw(axis, group, values, label=label, color=color, linestyle=line)
        _finish(axis, title)
        if title == _R and np.abs(axis.get_ylim()).max() > _LARGE_R:
            axis.set_yscale("symlog", linthresh=1.0)
    handles, labels = axis.get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=min(3, len(labels)))
    for label in legend.get_texts():
        label.set_parse_math(False)
    return figure


def _endless_lines() -> Iterator[Any]:
    """Yields a line style for each colour, so that equal colours have different line styles."""
    for turn in itertools.count():
        yield from (_LINES[(place + turn) % len(_LINES)] for place in range(len(_COLORS)))


def _runs_at(path: str) -> list[str]:
    """Returns the run directories that a path stands for: the run itself, or the runs `seedN` in it."""
    if tf.io.gfile.isdir(path) and not tf.io.gfile.exists(RunDirectory(path).file("status.json")):
        names = [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
        seeds = sorted((name for name in names if re.fullmatch("seed[0-9]+", name)), key=lambda name: int(name[4:]))
        if seeds:
            return [tf.io.gfile.join(path, name) for name in seeds]
    return [path]


def _short(paths: Sequence[str]) -> list[str]:
    """Returns the paths without the folders that all of them have in common."""
    if len(paths) == 1:
        return [os.path.basename(paths[0].rstrip("/"))]
    parts = [path.rstrip("/").split("/") for path in paths]
    folders = zip(*(each[:-1] for each in parts), strict=False)
    common = len(list(itertools.takewhile(lambda names: len(set(names)) == 1, folders)))
    return ["/".join(each[common:]) for each in parts]


def _draw(axis: Axes, group: Sequence[Curve], values: Callable[[Curve], Array], **look: Any) -> None:
    """Draws the mean over the runs at each epoch, and a band from the smallest to the largest value."""
    by_epoch: dict[float, list[float]] = {}
    for run in group:
        for epoch, value in zip(run.column("epoch"), values(run), strict=True):
            if not np.isnan(value):
                by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    axis.plot(epochs, [np.mean(by_epoch[epoch]) for epoch in epochs], marker=".", **look)
    if len(group) > 1:
        low, high = ([choose(by_epoch[epoch]) for epoch in epochs] for choose in (min, max))
        axis.fill_between(epochs, low, high, color=look["color"], alpha=0.15, linewidth=0)
