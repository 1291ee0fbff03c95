"""Makes training steps on the batches of a data set, with exact control over their number."""

from __future__ import annotations

import concurrent.futures
import math
import threading
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from neural_alignment.training.model import AlignedModel

TRACING = "neural_alignment tracing"
"""First part of the name of the thread that traces the graph of a step."""


class Tracing:
    """Traces the graph of a training step in another thread.

    Args:
        model: a compiled model.
        batches: an iterator over batches, or its `tf.data.IteratorSpec` while the data are still being read.
        element_spec: the `tf.TensorSpec`s of a batch.
    """

    def __init__(self, model: AlignedModel, batches: Any, element_spec: Any):
        self.element_spec = element_spec
        model.make_train_function()
        model.train_function.build_metrics(batches, element_spec)  # In this thread, which may read the metrics next.
        executor = concurrent.futures.ThreadPoolExecutor(1, TRACING)
        self._traced = executor.submit(model.train_function.trace, batches)
        executor.shutdown(wait=False)

    def result(self) -> None:
        """Waits for the graph; raises the error of its code if there is one."""
        self._traced.result()


def is_tracing() -> bool:
    """Whether the graph of a step is being traced in another thread."""
    return bool(_tracing_threads())


def finish_tracing() -> None:
    """Waits until no graph of a step is being traced. Runs that fail early may leave such a thread."""
    for thread in _tracing_threads():
        thread.join()


def _tracing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(TRACING)]


class Stepper:
    """Makes training steps on consecutive batches.

    A run must end, evaluate and save at exact steps. `keras.Model.fit` rounds the steps of an epoch up to a multiple of
    `steps_per_execution`, restarts the input at each call, and resets the means. A stepper therefore calls the train
    function of the model, which accepts a limit.

    Args:
        model: a compiled model.
        batches: endless batches, distributed to the replicas if there are several.
        seconds: seconds after which a call begins no further step. Signals are checked between calls.
        tracing: traces the graph of a step; None if that has not begun.
    """

    def __init__(
        self,
        model: AlignedModel,
        batches: tf.data.Dataset | tf.distribute.DistributedDataset,
        seconds: float = math.inf,
        tracing: Tracing | None = None,
    ):
        self._model = model
        self._seconds = seconds
        self._batches = iter(batches)
        self._tracing = tracing
        self._made = False
        if tracing is not None and tracing.element_spec != self._batches.element_spec:
            tracing.result()
            model.make_train_function(force=True)  # Its graph is for other batches.

    def trace_in_background(self) -> None:
        """Begins to trace the graph of a step in another thread, unless that has begun already."""
        if self._tracing is None:
            self._tracing = Tracing(self._model, self._batches, self._batches.element_spec)

    def _make(self) -> None:
        """Builds the train function once, because each call makes the model check again whether W(0) is recorded."""
        if not self._made:
            self._model.make_train_function()
            self._made = True

    def __call__(self, limit: int) -> dict[str, float]:
        """Makes `steps_per_execution` steps, or fewer because of a limit. Returns the means so far.

        Args:
            limit: maximum number of steps.

        Raises:
            StopIteration: if no batch is left.
        """
        if self._tracing is not None:
            self._tracing.result()
            self._tracing = None
        self._make()
        results = self._model.train_function(self._batches, limit, self._seconds)
        return {name: float(value) for name, value in results.items()}


class BatchStepper:
    """Makes training steps with a function of one batch, such as `Lockstep.step`.

    Args:
        model: the compiled model whose means are returned.
        batches: endless batches of inputs and targets.
        train_on: makes one step on inputs and targets.
    """

    def __init__(self, model: AlignedModel, batches: tf.data.Dataset, train_on: Callable[[Any, Any], None]):
        self._model = model
        self._batches = iter(batches)
        self._train_on = train_on

    def __call__(self, limit: int) -> dict[str, float]:
        """Makes one step. Returns the means so far."""
        del limit
        self._train_on(*next(self._batches))
        return {name: float(value) for name, value in self._model.get_metrics_result().items()}
