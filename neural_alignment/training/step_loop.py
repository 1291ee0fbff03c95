"""Makes the steps of a model on the batches of an iterator, several in one graph."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Tensor = tf.Tensor


class StepLoop:
    """Makes steps on the batches of an iterator in one graph.

    Keras calls it like its own train and test functions, with `steps_per_execution` steps in a call. `steps` makes a
    given number of steps. Both read the metrics once, at the end.

    Args:
        model: a compiled `AlignedModel`.
        name: identifies the step among those of the model.
        step: makes one step on one batch, on all replicas.
        results: reads the metrics.
        prepare: called before every execution, outside of the graph.
    """

    def __init__(
        self,
        model: keras.Model,
        name: str,
        step: Callable[[Any], None],
        results: Callable[[], dict[str, Tensor]],
        prepare: Callable[[], None] = lambda: None,
    ):
        self._model = model
        self._results = results
        self._prepare = prepare
        if model.jit_compile and not model.run_eagerly and not compiles_by_itself(model.distribute_strategy):
            step = tf.function(step, reduce_retracing=True, jit_compile=True, autograph=False)
        self._step = lambda data: step(_without_optionals(data))
        self._on_data, self._on_next, self._on_several = (
            function if model.run_eagerly else tf.function(function, reduce_retracing=True, autograph=False)
            for function in (self._step, self._step_on_next, self._step_on_several)
        )
        if model.graphs is not None:
            self._on_next = model.graphs.reusable(f"{name} on next", self._on_next)
            self._on_several = model.graphs.reusable(f"{name} on several", self._on_several)

    def __call__(self, iterator: Any, limit: int | None = None, seconds: float = math.inf) -> dict[str, Tensor]:
        """Makes `steps_per_execution` steps, or fewer if fewer batches are left. Returns the metrics so far.

        Args:
            iterator: the batches.
            limit: maximum number of steps.
            seconds: as in `steps`.

        Raises:
            StopIteration: if no batch is left.
            tf.errors.OutOfRangeError: if no batch is left and `steps_per_execution` is 1.
        """
        steps = self._model.steps_per_execution
        self._prepare()
        self.build_metrics(iterator, getattr(iterator, "element_spec", None))
        if not isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            for _, data in zip(range(steps), iterator, strict=False):  # From `train_on_batch`, `test_on_batch`.
                self._on_data(data)
            return self._results()
        if steps == 1:  # A single step needs no loop and no optional batches.
            return self._on_next(iterator)
        made, results = self.steps(iterator, steps if limit is None else min(limit, steps), seconds)
        if not made:
            raise StopIteration
        return results

    def steps(self, iterator: Any, limit: int, seconds: float = math.inf) -> tuple[int, dict[str, Tensor]]:
        """Makes steps until the batches end or a limit is reached. The graph does not depend on the limits.

        Args:
            iterator: the batches, a `tf.data.Iterator` or `tf.distribute.DistributedIterator`.
            limit: maximum number of steps; at least one step is made.
            seconds: time after which no further step begins.

        Returns:
            The number of steps made, and the metrics so far.
        """
        self._prepare()
        made, results = self._on_several(iterator, *_limits(limit, seconds))
        return int(made), results

    def build_metrics(self, iterator: Any, element_spec: Any) -> None:
        """Creates the metrics for an iterator or its `tf.data.IteratorSpec`. With a strategy, Keras does this."""
        if isinstance(iterator, (tf.data.Iterator, tf.data.IteratorSpec)):
            self._model.build_metrics(element_spec)

    def trace(self, iterator: Any) -> None:
        """Traces the graph of `__call__` for an iterator or its `tf.data.IteratorSpec`, without making a step."""
        if self._model.run_eagerly:
            return
        if self._model.steps_per_execution == 1:
            self._on_next.get_concrete_function(iterator)
        else:
            self._on_several.get_concrete_function(iterator, *_limits(1, math.inf))

    def _step_on_next(self, iterator: Any) -> dict[str, Tensor]:
        self._step(iterator.get_next())
        return self._results()

    def _step_on_several(self, iterator: Any, limit: Tensor, seconds: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        begun = tf.timestamp()  # In the graph, so that the time of tracing does not count.
        until = begun + seconds

        def body(made, _, batch):
            self._step(batch.get_value())
            made += 1
            # Evaluated once, because a batch that is fetched must be used.
            continues = tf.logical_and(made < limit, tf.timestamp() < until)
            return made, continues, tf.cond(continues, iterator.get_next_as_optional, lambda: batch)

        made, *_ = tf.while_loop(
            lambda made, continues, batch: tf.logical_and(continues, batch.has_value()),
            body,
            # The condition depends on the clock. Otherwise the first step could begin before the clock is read.
            (tf.constant(0), until >= begun, iterator.get_next_as_optional()),
            parallel_iterations=1,
        )
        return made, self._results()


def _limits(steps: int, seconds: float) -> tuple[Tensor, Tensor]:
    return tf.constant(steps), tf.constant(seconds, tf.float64)


def _without_optionals(data: Any) -> Any:
    """Returns a batch with None in place of the empty optionals by which Keras passes None from a generator."""
    return tf.nest.map_structure(lambda leaf: None if isinstance(leaf, tf.experimental.Optional) else leaf, data)


def compiles_by_itself(strategy: tf.distribute.Strategy) -> bool:
    """Whether the strategy itself compiles the functions that it runs."""
    return isinstance(strategy, tf.distribute.TPUStrategy)
