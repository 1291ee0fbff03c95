"""Writes the rows of a run for TensorBoard, with a layout of charts that show all layers or all data splits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar_summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.image import metadata as image_metadata

from neural_alignment.config import Logging
from neural_alignment.training.callbacks import kernels
from neural_alignment.training.event_files import EventFile, Summary, converted, scalar
from neural_alignment.training.metrics import MetricsRow
from neural_alignment.training.model import AlignedModel, connections
from neural_alignment.training.probes import MEASURES

_LOSSES = ("J", "R")

_RATES = ("learning_rate_J", "learning_rate_R", "loss_rate_J", "loss_rate_R")

_ABOUT_THE_RUN = ("step", "epoch", "seconds", "corrupt_records")

_TITLES = {
    "weight_angle": "angle of W to B^T (degrees)",
    "norm_ratio": "norm of B over norm of W",
    "projection_angle": "angle of W^T x to B^T x (degrees)",
    "local_gradient_angle": "angle of the error through B to the error through W (degrees)",
    "pseudogradient_angle": "angle of the update of W to the gradient of J (degrees)",
}
"""Measure -> title of the chart that has all layers."""


def tag_of(column: str) -> str:
    """Returns the tag of a column of `metrics.csv`: GROUP/NAME.

    TensorBoard sorts groups by name, so the angle of W to B^T comes first and the time last.
    """
    name, _, rest = column.partition("/")
    if rest and name == "weight":
        return f"rule_weight/{rest}"
    if rest and name == "weight_angle":
        return f"angle/{rest}"
    if rest:
        return f"angle_{name.removesuffix('_angle')}/{rest}" if name.endswith("_angle") else column
    if column in _RATES:
        return f"rate/{column}"
    if column in _ABOUT_THE_RUN:
        return f"run/{column}"
    return f"{'loss' if column.rpartition('_')[2] in _LOSSES else 'metric'}/{column}"


class TensorBoard:
    """Writes every row for TensorBoard: scalars, and optionally histograms and images of W against B.

    Args:
        model: the model of the run.
        path: the folder of the event files.
        options: whether histograms and images are written.
        earlier: the rows that the run already has.
    """

    POINTS = 2000
    """Number of weights per layer in an image, evenly spaced through the kernel."""

    def __init__(self, model: AlignedModel, path: str, options: Logging, earlier: Sequence[MetricsRow] = ()):
        self._model = model
        self._file = EventFile(path)
        self._options = options
        self._first = earlier[0]["step"] if earlier else None
        self._plot: _Scatter | None = None

    def __call__(self, row: MetricsRow) -> None:
        """Writes the row of the current step."""
        self.write(row)

    def write(self, row: MetricsRow, has_kernels: bool = True) -> None:
        """Writes one row; with the first row also the layout of the charts.

        Args:
            row: the row.
            has_kernels: whether the model has the kernels of its step, for histograms and images.
        """
        step = int(row["step"])
        values = [scalar(tag_of(key), value) for key, value in row.items() if key != "step" and not math.isnan(value)]
        if has_kernels and (self._options.histograms or self._options.scatter):
            for layer in connections(self._model):
                values += self._pictures(layer.name, *kernels(layer, step))
        if self._first in (None, step):
            self._first = step
            values += layout_summary(row).value
        self._file.write(step, values)

    def close(self) -> None:
        """Closes the event file."""
        self._file.close()

    def _pictures(self, name: str, forward: np.ndarray, backward: np.ndarray) -> list[Any]:
        """Returns the histograms and the image of one layer."""
        values = []
        if self._options.histograms:
            values += [_histogram(f"forward_kernel/{name}", forward), _histogram(f"backward_kernel/{name}", backward)]
        if self._options.scatter:
            chosen = np.linspace(0, forward.size - 1, min(self.POINTS, forward.size)).astype(int)
            self._plot = self._plot or _Scatter()
            image = self._plot.image(name, forward.ravel()[chosen], backward.ravel()[chosen])
            values.append(_image(f"weights/{name}", image))
        return values


def layout_summary(columns: Iterable[str]) -> Any:
    """Returns the layout of the dashboard CUSTOM SCALARS for some columns of `metrics.csv`, `tf.compat.v1.Summary`.

    One chart has the angles of all layers, one the norm ratios, one J and R, and one each metric on all data splits.
    """
    columns = list(columns)
    measured = {column.partition("/")[0] for column in columns if "/" in column}
    alignment = [
        _chart(f"{_TITLES[measure]}, all layers", [tag_of(f"{measure}/.*")])
        for measure in MEASURES
        if measure in measured
    ]
    metrics = [column for column in columns if "/" not in column and tag_of(column).startswith("metric/")]
    names = [name for name in metrics if not name.startswith(("train_", "test_"))]
    splits = [_chart(name, [f"{tag_of(f'{split}{name}')}$" for split in _SPLITS]) for name in ("J", *names)]
    losses = [_chart("J and R in training", ["loss/train_J$", "loss/R$"])]
    charts = {"alignment of W and B": alignment, "training and validation": splits, "J and R": losses}
    categories = [layout_pb2.Category(title=title, chart=own) for title, own in charts.items() if own]
    return custom_scalar_summary.pb(layout_pb2.Layout(category=categories))


_SPLITS = ("", "train_", "test_")
"""Prefixes of the columns of a metric: on the validation split, the training data and the test split."""


def _chart(title: str, tags: Sequence[str]) -> Any:
    """Returns a chart with a line for each tag that matches one of some regular expressions."""
    return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))


def _histogram(tag: str, values: np.ndarray) -> Any:
    [found] = Summary.FromString(histogram_pb(tag, values).SerializeToString()).value
    return found


def _image(tag: str, image: np.ndarray) -> Any:
    """Returns an image `(height, width, channels)`, uint8, as a PNG file."""
    height, width, _ = image.shape
    content = [str(width).encode(), str(height).encode(), tf.io.encode_png(image).numpy()]
    metadata = converted(image_metadata.create_summary_metadata("", ""))
    return Summary.Value(tag=tag, tensor=tf.make_tensor_proto(content, tf.string), metadata=metadata)


class _Scatter:
    """Draws B^T against W. All layers and rows share one figure, because its layout takes longer than drawing."""

    def __init__(self):
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # Imported here because it takes half a second.
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.2, 3.2), dpi=100)
        self._canvas = FigureCanvasAgg(figure)
        self._axes = figure.add_axes((0.22, 0.15, 0.74, 0.75))
        (self._points,) = self._axes.plot([], [], ".", markersize=2, color="0.2")
        self._axes.axline((0, 0), slope=1, linestyle=":", color="0.5")
        self._axes.set(xlabel="forward weight", ylabel="backward weight")

    def image(self, title: str, forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
        """Returns an image `(height, width, 4)`, uint8.

        Args:
            title: the title of the image.
            forward: forward weights `(points,)`, on the horizontal axis.
            backward: their backward weights, `(points,)`.
        """
        self._points.set_data(forward, backward)
        self._axes.set_title(title)
        self._axes.relim()
        self._axes.autoscale_view()
        self._canvas.draw()
        return np.array(self._canvas.buffer_rgba())
