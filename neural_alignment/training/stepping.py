"""Steps of a run, exactly as many as planned."""

from __future__ import annotations

import concurrent.futures
import math

import tensorflow as tf

from neural_alignment.training.model import AlignedModel

TRACING = "neural_alignment tracing"
"""Begins the name of the thread that makes the graph of a step."""


class Stepper:
    """Makes training steps on batches that follow each other.

    `keras.Model.fit` rounds the steps of an epoch up to a multiple of `steps_per_execution`, restarts the input at
    each call and resets the means; a run must end, evaluate and save at exact steps. This calls the model's own train
    function instead, which takes a limit.

    Args:
        model: a compiled model.
        batches: endless; shared out to the replicas where there are several.
        seconds: begin no step, but the first, when so much time has passed since the call: signals are heeded where a
            call returns.
    """

    def __init__(
        self,
        model: AlignedModel,
        batches: tf.data.Dataset | tf.distribute.DistributedDataset,
        seconds: float = math.inf,
    ):
        self._model = model
        self._seconds = seconds
        self._batches = iter(batches)
        self._tracing: concurrent.futures.Future | None = None
        self._made = False

    def trace_aside(self) -> None:
        """Begins to make the graph of a step in another thread, to use the time in which this one waits for devices."""
        self._make()
        self._model.train_function.build_metrics(self._batches)  # Here, as others may look at the metrics meanwhile.
        executor = concurrent.futures.ThreadPoolExecutor(1, TRACING)
        self._tracing = executor.submit(self._model.train_function.trace, self._batches)
        executor.shutdown(wait=False)

    def _make(self) -> None:
        """Builds the train function, once: each time the model would look whether W(0) is taken."""
        if not self._made:
            self._model.make_train_function()
            self._made = True

    def __call__(self, limit: int) -> dict[str, float]:
        """Makes `steps_per_execution` steps, at most `limit` and as many as its time allows; returns the means so far.

        Raises:
            StopIteration: if no batch is left.
        """
        if self._tracing is not None:
            self._tracing.result()
            self._tracing = None
        self._make()
        results = self._model.train_function(self._batches, limit, self._seconds)
        return {name: float(value) for name, value in results.items()}
