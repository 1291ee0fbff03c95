"""Momentum as TensorFlow 1 has it."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from optimizers.keras_internals import index_of


@keras.saving.register_keras_serializable(package="optimizers")
class Momentum(keras.optimizers.Optimizer):
    """Gradient descent with momentum, the current rate times the accumulated gradient.

    a <- m a + g; w <- w - rate (g + m a) with Nesterov's look-ahead, w <- w - rate a without.

    `keras.optimizers.SGD` keeps rate times gradient in its velocity. The two agree at a constant rate and part whenever
    the rate changes, as under a warm-up or a drop; the runs of Kunin et al. 2020 are of this form.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: m, from 0 up to but not 1.
        nesterov: whether to look ahead.
        **kwargs: `clipvalue`, `global_clipnorm` and the others of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if `momentum` is out of its range.
    """

    def __init__(self, learning_rate: Any = 0.1, momentum: float = 0.9, nesterov: bool = True, **kwargs: Any):
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"`momentum` must be in [0, 1). Received {momentum!r}. Example: momentum=0.9.")
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables: list[Any]) -> None:
        """Creates one accumulator per variable."""
        if self.built:
            return
        super().build(variables)
        self._accumulators = self.add_optimizer_variables(variables, "accumulator")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Moves one variable, in one pass over memory."""
        accumulator = self._accumulators[index_of(self, variable)]
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=accumulator.handle,
            lr=tf.cast(learning_rate, variable.dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
            momentum=tf.constant(self.momentum, variable.dtype),
            use_nesterov=self.nesterov,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}
