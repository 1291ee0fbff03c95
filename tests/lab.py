"""Common parts of the tests of the papers' figures."""

import csv
import functools
import json
import statistics
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from neural_alignment import config as configuration
from neural_alignment.papers import claims
from neural_alignment.papers.tables import chosen
from neural_alignment.papers.two_routes import figures

ROOT = Path(__file__).parent.parent
CONFIGS = str(ROOT / "configs")


def computed_once(compute):
    """Returns a stand-in for the computation of a piece; both are stored under the same name.

    The first call computes. Each later one returns these arrays, with all real numbers changed by up to 1 %: a table or
    figure of many pieces needs different values of the correct shapes.
    """
    first, generator = {}, np.random.default_rng(0)

    @functools.wraps(compute)
    def stand_in(tell, *configs, **arguments):
        if not first:
            first.update(compute(tell, *configs, **arguments))
            return dict(first)
        return {
            name: array * generator.uniform(0.99, 1.01, array.shape) if array.dtype.kind == "f" else array
            for name, array in first.items()
        }

    return stand_in


def grey(figure):
    """Whether a figure is drawn without colour."""
    figure.set_layout_engine("none")  # Colours do not depend on the layout or the resolution, but the time does.
    figure.set_dpi(50)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    return np.ptp(pixels, axis=-1).max() <= 3 and np.ptp(pixels) > 200


@functools.cache
def configuration_of(file, overrides):
    """Returns a configuration of this repository, read once."""
    return configuration.load(f"{CONFIGS}/{file}", overrides)


def write_run(folder, cell, seed, top1, top5=0.9, state="finished", **overrides):
    """Writes a run directory as `train` leaves it."""
    path = Path(folder) / cell.name / f"seed{seed}"
    path.mkdir(parents=True)
    extra = [f"{key}={value}" for key, value in overrides.items()]
    config = configuration_of(cell.config, (*cell.overrides, *extra))
    if "seed" not in overrides:
        config = config.model_copy(update={"seed": seed})
    (path / "config.yaml").write_text(configuration.dump(config))
    (path / "status.json").write_text(json.dumps({"state": state, "versions": {}}))
    rows = [{"step": 0, "epoch": 0, "seconds": 1, "top1": "", "top5": ""}]
    if state == "finished":
        rows.append({"step": 9, "epoch": config.epochs, "seconds": 12.5, "top1": top1, "top5": top5})
    layers = ("stem", "dense")
    for number, row in enumerate(rows):
        row |= {f"{measure}/{layer}": 80.0 - 30 * number for measure in figures.METRICS for layer in layers}
    with open(path / "metrics.csv", "w") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if config.alignment is not None:
        (path / "kernels").mkdir()
        names = [*figures.SCATTERED, figures.SYMMETRY_LAYER]
        arrays = {f"{name}/forward": np.linspace(-1, 1, 8).reshape(2, 4) for name in names}
        arrays |= {f"{name}/backward": 3 * arrays[f"{name}/forward"] for name in names}
        for step in (0, 9):
            np.savez(path / "kernels" / f"{step}.npz", **arrays)
    return path


LABELS = {
    *("kind", "layer", "order", "lag", "moment", "iteration", "epoch", "epochs", "step", "run", "seed", "round"),
    *("width", "number", "rate", "fraction", "gamma", "label_smoothing", "degree", "subset", "train_images"),
    *("draws", "part", "shuffled"),
}
"""Columns with numbers that are not measured."""


def of_measured(function):
    """Returns a change of rows: a function of each measured value."""

    def change(file, row):
        measured = {key for key, value in row.items() if isinstance(value, int | float) and key not in LABELS}
        return {key: function(value) if key in measured else value for key, value in row.items()}

    return change


class ChangedFiles(claims.ResultFiles):
    """The CSV files in a folder of results, with other rows.

    Args:
        folder: the folder.
        change: name of a file, row -> row in its place.
        copies: number of seeds in place of each seed, with the same values.
    """

    def __init__(self, folder, change=lambda file, row: row, copies=1):
        super().__init__(str(folder))
        self._change, self._copies, self._changed = change, copies, {}

    def rows(self, name, **labels):
        if name not in self._changed:
            own = [self._change(name, row) for row in super().rows(name)]
            keys = {"seed", "subset"} & set(own[0])
            more = [
                {**row, **{key: (row[key], copy) for key in keys}} for copy in range(1, self._copies) for row in own
            ]
            self._changed[name] = own + more
        if found := chosen(self._changed[name], **labels):
            return found
        raise claims.NotYetRunError


OPPOSITES = {"negated": of_measured(lambda value: -value), "without any difference": of_measured(lambda value: 90.0)}
"""Changes of all measured values, after which no effect is left, and no angle is below 90 degrees."""


def holding(every, files):
    """Returns figure and text of the claims that hold in some case."""
    return {(each.figure, each.text) for each in every if any(row.get("holds") for row in _judged(each, files))}


def _judged(claim, files):
    try:
        return claim.judged(files)
    except (ZeroDivisionError, statistics.StatisticsError):  # A ratio or correlation of values without a difference.
        return [{"holds": True}]


def surviving(every, folder, copies=1):
    """Returns figure and text of the claims that hold in some case, and in some case after each of `OPPOSITES`."""
    changed = [holding(every, ChangedFiles(folder, change, copies)) for change in OPPOSITES.values()]
    return holding(every, ChangedFiles(folder, copies=copies)).intersection(*changed)
