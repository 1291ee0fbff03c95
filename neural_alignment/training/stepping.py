"""Steps of a run, exactly as many as planned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from neural_alignment.training.model import AlignedModel


class Stepper:
    """Makes training steps on batches that follow each other.

    `keras.Model.fit` rounds the steps of an epoch up to a multiple of `steps_per_execution`, restarts the input at
    each call and resets the means; a run must end, evaluate and save at exact steps. This drives the model's own
    compiled step instead: `steps_per_execution` steps at a time where as many are left, else one.

    Args:
        model: a compiled model.
        batches: endless; shared out to the replicas where there are several.
    """

    def __init__(self, model: AlignedModel, batches: tf.data.Dataset | tf.distribute.DistributedDataset):
        self._model = model
        self._batches = iter(batches)
        self._functions: dict[int, Callable[[Any], dict[str, Any]]] = {}

    def __call__(self, limit: int) -> dict[str, float]:
        """Makes at least one step and at most `limit`; returns the means so far."""
        model = self._model
        together = model.steps_per_execution
        count = together if limit >= together else 1
        # Read by Keras where it makes the function, and again where it traces it.
        model.steps_per_execution = count
        try:
            if count not in self._functions:
                model.make_train_function(force=True)
                self._functions[count] = model.train_function
            results = self._functions[count](self._batches)
        finally:
            model.steps_per_execution = together
        return {name: float(value) for name, value in results.items()}
