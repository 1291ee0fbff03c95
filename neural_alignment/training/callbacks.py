"""Listeners that receive every row of `metrics.csv`: kernel files and the progress bar."""

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
from neural_alignment.errors import ConfigError
from neural_alignment.files import write_whole
from neural_alignment.layers import Connection
from neural_alignment.training import stages
from neural_alignment.training.metrics import MetricsRow, by_layer
from neural_alignment.training.model import AlignedModel, connections

Listener = Callable[[MetricsRow], None]
"""Receives every row of `metrics.csv` after it is written."""


def kernels(connection: Connection, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns W and B of a connection at a global step, both in the layout of W."""
    with forward_pass(step=step):
        backward = connection.linear_map.transpose(keras.ops.convert_to_tensor(connection.backward_kernel))
    return keras.ops.convert_to_numpy(connection.kernel), backward.numpy()


def kernel_layers(model: AlignedModel, patterns: Sequence[str]) -> list[Connection]:
    """Returns the aligned layers whose names match one of some shell patterns.

    Args:
        model: the model of a run.
        patterns: the value of `logging.kernels`. Patterns have no effect in a network without aligned layers.

    Raises:
        ConfigError: if a pattern matches none of the aligned layers.
    """
    layers = connections(model)
    for pattern in patterns:
        if layers and not fnmatch.filter([layer.name for layer in layers], pattern):
            names = ", ".join(layer.name for layer in layers)
            raise ConfigError(f"logging.kernels: {pattern!r} matches no aligned layer; the layers are: {names}")
    return [layer for layer in layers if any(fnmatch.fnmatchcase(layer.name, name) for name in patterns)]


class Kernels:
    """Writes W and B of some layers at every evaluation: `STEP.npz` with the arrays LAYER/forward and LAYER/backward.

    Both have the layout of W: `(inputs, outputs)` or `(height, width, inputs, outputs)`. The content of a file depends
    only on its step, so a resumed run may write it again.

    Args:
        layers: the layers, from `kernel_layers`.
        path: the directory, created with the first file.
    """

    def __init__(self, layers: Sequence[Connection], path: str):
        self._layers = layers
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


class Progress:
    """Shows a progress bar over all steps of the run with the remaining time, and some lines per evaluation.

    Args:
        write_line: prints a line, such as `tqdm.write`, which keeps the bar at the bottom.
        bar: creates the bar from the total number of steps and the number of finished steps, such as `tqdm.tqdm`.
        lines: returns the lines of an evaluation: `single_line`, or `lines_by_stage` for a narrow terminal.
    """

    def __init__(
        self,
        write_line: Callable[[str], None],
        bar: Callable[..., Any],
        lines: Callable[[MetricsRow], list[str]] | None = None,
    ):
        self.write_line = write_line
        self._make_bar = bar
        self._lines = lines or single_line
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
        """Prints the lines of one evaluation."""
        for line in self._lines(row):
            self.write_line(line)


def single_line(row: MetricsRow) -> list[str]:
    """Returns one line with the metrics of an evaluation, and the smallest and the largest angle of W to B^T."""
    angles = list(_angles(row).values())
    span = [f"angle of W to B^T {min(angles):.1f} to {max(angles):.1f} degrees"] if angles else []
    return ["  ".join([*_metrics(row), *span])]


def lines_by_stage(row: MetricsRow) -> list[str]:
    """Returns a line with the metrics of an evaluation, and one with the angles of W to B^T in each stage."""
    lines = ["  ".join(_metrics(row))]
    if angles := _angles(row):
        parts = [
            f"{stage.name} {low:.0f}" + (f"/{middle:.0f}/{high:.0f}" if len(stage.layers) > 1 else "")
            for stage, low, middle, high in stages.spans(angles)
        ]
        lines.append("  ".join(["  angles", *parts]))
    return lines


def _metrics(row: MetricsRow) -> list[str]:
    """Returns the metrics of an evaluation that are defined, each with its name."""
    parts = [f"step {int(row['step'])}", f"epoch {row['epoch']:g}"]
    if not math.isnan(row["J"]):
        parts.append(f"J {row['J']:.4f}")
    if not math.isnan(row.get("top1", math.nan)):
        parts.append(f"top-1 {100 * row['top1']:.2f} %")
    if not math.isnan(row["R"]):
        parts.append(f"R {row['R']:.4g}")
    return parts


def _angles(row: MetricsRow) -> dict[str, float]:
    """Returns the angle of W to B^T of each layer where it is defined."""
    return {layer: angle for layer, angle in by_layer(row).items() if not math.isnan(angle)}
