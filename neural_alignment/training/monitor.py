"""A Keras callback that measures the alignment of a model during `fit`."""

from __future__ import annotations

import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from neural_alignment.errors import ArgumentError
from neural_alignment.keras_internals import all_layers
from neural_alignment.layers import AlignedLayer
from neural_alignment.training import probes
from neural_alignment.training.model import connections

Tensor = tf.Tensor


class AlignmentMonitor(keras.callbacks.Callback):
    """Adds measures of alignment to the `logs` of every epoch, of any built Keras model with aligned layers.

    The keys are MEASURE/LAYER, such as `weight_angle/dense`; layers with several kernels have LAYER.KERNEL. Angles are
    in degrees. Callbacks that come later in the list, such as `CSVLogger` and `TensorBoard`, get these logs too, and
    `fit` returns them in its history. The attribute `start` has the measures before training, when independent kernels
    are near 90 degrees.

    The measures and their cost:

    - without `x`: `weight_angle` (between W and B^T) and `norm_ratio` (||B|| / ||W||), read from the kernels;
    - with `x`: also `projection_angle` (between W^T x and B^T x), one forward pass over `x` and one more product per
      kernel;
    - with `x` and `y`: also `local_gradient_angle` and `pseudogradient_angle` (see `training.probes.MEASURES`), two
      forward and two backward passes.

    Args:
        x: inputs on which signals are measured, arrays or tensors `(examples, ...)`; a few hundred suffice.
        y: their targets.
        every: number of epochs between two measurements, from the first epoch on. The last planned epoch is measured as
            well. In other epochs the measures are NaN.

    Raises:
        ValueError: if `y` is given without `x`, or `every` is not a positive integer; in `fit`, if the model has no
            aligned layer, or is not built, such as a `Sequential` model without a `keras.Input`.
    """

    def __init__(self, x: Any = None, y: Any = None, every: int = 1):
        super().__init__()
        if x is None and y is not None:
            raise ArgumentError("y", "must be given together with `x`", "y without x", "AlignmentMonitor(x, y)")
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise ArgumentError("every", "must be a positive integer", every, "every=1")
        self._x, self._y, self._every = x, y, every
        self._measure: Any = None
        self.start: dict[str, float] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Measures the model before training."""
        for layer in all_layers(self.model):
            if isinstance(layer, AlignedLayer) and not layer.built:
                requirement = "may contain AlignmentMonitor only for a model whose layers are built"
                raise ArgumentError("callbacks", requirement, layer.name, "model.build((None, 784))")
        if not connections(self.model):
            raise ArgumentError(
                "callbacks",
                "may contain AlignmentMonitor only for a model with backward kernels",
                self.model.name,
                "neural_alignment.layers.Dense(10, alignment=Feedback())",
            )
        names = [connection.name for connection in connections(self.model)]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ArgumentError("callbacks", "need layers with different names", repeated[0], "name='dense_2'")
        self._measure = tf.function(self._measures, autograph=False)
        self.start = self._row()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the measures to the logs."""
        epochs = (self.params or {}).get("epochs")
        if logs is None:
            return
        measured = epoch % self._every == 0 or epoch + 1 == epochs
        # Callbacks such as `CSVLogger` need the same keys in every epoch.
        logs.update(self._row() if measured else dict.fromkeys(self.start, math.nan))

    def _row(self) -> dict[str, float]:
        """Returns MEASURE/LAYER -> value."""
        with self.model.distribute_strategy.scope():
            signals = [] if self._x is None else [tf.nest.map_structure(tf.convert_to_tensor, self._x)]
            if self._y is not None:
                signals.append(tf.nest.map_structure(tf.convert_to_tensor, self._y))
            measures = self._measure(*signals)
        return {
            f"{measure}/{name}": float(np.asarray(value))
            for measure, values in measures.items()
            for name, value in values.items()
        }

    def _measures(self, *signals: Tensor) -> dict[str, dict[str, Tensor]]:
        """Returns measure -> connection -> scalar, from one replica if there are several."""
        strategy = self.model.distribute_strategy
        functions = (probes.measure_kernels, probes.measure_projections, probes.measure)
        if not signals:
            return functions[0](self.model)
        # The model is not an argument: `TPUStrategy` converts all arguments to tensors.
        measured = strategy.run(functools.partial(functions[len(signals)], self.model), args=signals)
        return tf.nest.map_structure(lambda value: strategy.experimental_local_results(value)[0], measured)
