"""Momentum as in TensorFlow 1."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from optimizers.arguments import flag, keras_arguments, number
from optimizers.keras_internals import index_of


@keras.saving.register_keras_serializable(package="optimizers")
class Momentum(keras.optimizers.Optimizer):
    """Gradient descent with momentum: the step is the current rate times the accumulated gradient.

    With the gradient g, a <- m a + g; then w <- w - rate (g + m a) with Nesterov momentum, or w <- w - rate a without.

    `keras.optimizers.SGD` accumulates rate times gradient instead. Both are equal at a constant rate, but differ when
    the rate changes, as in a warm-up or at a drop. Kunin et al. 2020 use the form of this class.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        momentum: m, in [0, 1).
        nesterov: whether to use Nesterov momentum.
        **kwargs: `clipvalue`, `global_clipnorm` and the other arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def __init__(self, learning_rate: Any = 0.1, momentum: float = 0.9, nesterov: bool = True, **kwargs: Any):
        momentum = number("momentum", momentum, 0.9, least=0, below=1)
        nesterov = flag("nesterov", nesterov)
        super().__init__(learning_rate=learning_rate, **keras_arguments(learning_rate, kwargs))
        self.momentum = momentum
        self.nesterov = nesterov

    def build(self, variables: list[Any]) -> None:
        """Creates one accumulator per variable."""
        if self.built:
            return
        super().build(variables)
        self._accumulators = self.add_optimizer_variables(variables, "accumulator")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable with a fused operation."""
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
