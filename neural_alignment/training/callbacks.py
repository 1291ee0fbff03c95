"""Listeners that receive every row of `metrics.csv`: kernel files, TensorBoard, and the progress bar."""

from __future__ import annotations

import fnmatch
import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.alignments import forward_pass
from neural_alignment.config import Logging
from neural_alignment.errors import ConfigError
from neural_alignment.layers import Connection
from neural_alignment.training.files import write_whole
from neural_alignment.training.metrics import MetricsRow
from neural_alignment.training.model import AlignedModel, connections

Listener = Callable[[MetricsRow], None]
"""Receives every row of `metrics.csv` after it is written."""


def kernels(connection: Connection, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns W and B of a connection at a global step, both in the layout of W."""
    with forward_pass(step=step):
        backward = connection.linear_map.transpose(keras.ops.convert_to_tensor(connection.backward_kernel))
    return keras.ops.convert_to_numpy(connection.kernel), backward.numpy()


class Kernels:
    """Writes W and B of some layers at every evaluation: `STEP.npz` with the arrays LAYER/forward and LAYER/backward.

    Both have the layout of W: `(inputs, outputs)` or `(height, width, inputs, outputs)`. The content of a file depends
    only on its step, so a resumed run may write it again.

    Args:
        model: the model of the run.
        path: the directory, created with the first file.
        patterns: shell patterns of layer names. They have no effect in a network without aligned layers.

    Raises:
        ConfigError: if a pattern matches none of the aligned layers.
    """

    def __init__(self, model: AlignedModel, path: str, patterns: Sequence[str]):
        layers = connections(model)
        for pattern in patterns:
            if layers and not fnmatch.filter([layer.name for layer in layers], pattern):
                names = ", ".join(layer.name for layer in layers)
                raise ConfigError(f"logging.kernels: {pattern!r} matches no aligned layer; the layers are: {names}")
        self._layers = [layer for layer in layers if any(fnmatch.fnmatchcase(layer.name, name) for name in patterns)]
        self._path = path

    def __call__(self, row: MetricsRow) -> None:
        """Writes the kernels of one row."""
        if not self._layers:
            return
        arrays, step = {}, int(row["step"])
        for layer in self._layers:
            arrays[f"{layer.name}/forward"], arrays[f"{layer.name}/backward"] = kernels(layer, step)
        content = io.BytesIO()
        np.savez(content, **arrays)
        tf.io.gfile.makedirs(self._path)
        write_whole(tf.io.gfile.join(self._path, f"{step}.npz"), content.getvalue())


class TensorBoard:
    """Writes every row for TensorBoard: scalars, and optionally histograms and images of W against B.

    Args:
        model: the model of the run.
        path: the directory of the event files.
        options: whether histograms and images are written.
    """

    POINTS = 2000
    """Number of weights per layer in an image, evenly spaced through the kernel."""

    def __init__(self, model: AlignedModel, path: str, options: Logging):
        self._model = model
        self._writer = tf.summary.create_file_writer(path)
        self._options = options
        self._plot: _Scatter | None = None

    def __call__(self, row: MetricsRow) -> None:
        """Writes one row."""
        step = int(row["step"])
        with self._writer.as_default(step=step):
            for key, value in row.items():
                if key != "step" and not math.isnan(value):
                    tf.summary.scalar(key, value)
            for layer in connections(self._model):
                forward, backward = kernels(layer, step)
                if self._options.histograms:
                    tf.summary.histogram(f"forward_kernel/{layer.name}", forward)
                    tf.summary.histogram(f"backward_kernel/{layer.name}", backward)
                if self._options.scatter:
                    chosen = np.linspace(0, forward.size - 1, min(self.POINTS, forward.size)).astype(int)
                    self._plot = self._plot or _Scatter()
                    image = self._plot.image(layer.name, forward.ravel()[chosen], backward.ravel()[chosen])
                    tf.summary.image(f"weights/{layer.name}", image[None])
        self._writer.flush()


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


class Progress:
    """Shows a progress bar over all steps of the run with the remaining time, and one line per evaluation.

    Args:
        write_line: prints a line, such as `tqdm.write`, which keeps the bar at the bottom.
        bar: creates the bar from the total number of steps and the number of finished steps, such as `tqdm.tqdm`.
    """

    def __init__(self, write_line: Callable[[str], None], bar: Callable[..., Any]):
        self.write_line = write_line
        self._make_bar = bar
        self._bar: Any = None

    def plan(self, start: int, total: int) -> None:
        """Opens the bar of a run from step `start` to step `total`."""
        self._bar = self._make_bar(total=total, initial=start, unit="step", desc="training")

    def close(self) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, steps: int) -> None:
        """Advances the bar by some steps."""
        self._bar.update(steps)

    def __call__(self, row: MetricsRow) -> None:
        """Prints the line of one evaluation."""
        angles = [v for key, v in row.items() if key.startswith("weight_angle/") and not math.isnan(v)]
        parts = [f"step {int(row['step'])}", f"epoch {row['epoch']:g}"]
        if not math.isnan(row["J"]):
            parts.append(f"J {row['J']:.4f}")
        if not math.isnan(row.get("top1", math.nan)):
            parts.append(f"top-1 {100 * row['top1']:.2f} %")
        if not math.isnan(row["R"]):
            parts.append(f"R {row['R']:.4g}")
        if angles:
            parts.append(f"angle of W to B^T {min(angles):.1f} to {max(angles):.1f} degrees")
        self.write_line("  ".join(parts))
