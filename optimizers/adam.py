"""Adam with a fused update."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from optimizers.arguments import keras_arguments, number
from optimizers.keras_internals import keep_moments, moments
from optimizers.moments import slot


@keras.saving.register_keras_serializable(package="optimizers")
class Adam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` with TensorFlow's fused update operation.

    The formula is that of Keras (Kingma and Ba 2015, the variant before section 2.1). With gradient g and step t:

        m <- beta_1 m + (1 - beta_1) g;  v <- beta_2 v + (1 - beta_2) g^2
        w <- w - learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon)

    Keras computes it in a dozen operations, each with a result of the size of the kernel. This takes three times as
    long, and more memory. The moments of half-precision variables are float32, because half precision can represent
    neither 1 - 0.999 nor the epsilon; their update is not fused.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        beta_1: decay of the first moment m, in [0, 1).
        beta_2: decay of the second moment v, in [0, 1).
        epsilon: added to the square root of the second moment; at least 0. The default is that of TensorFlow 1 and of
            Kunin et al. 2020; the default of Keras is 1e-7.
        **kwargs: as in `keras.optimizers.Adam`.

    Raises:
        ValueError: if `amsgrad` is True, or an argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ):
        beta_1 = number("beta_1", beta_1, 0.9, least=0, below=1)
        beta_2 = number("beta_2", beta_2, 0.999, least=0, below=1)
        epsilon = number("epsilon", epsilon, 1e-8, least=0)  # Keras allows 0.
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **keras_arguments(learning_rate, kwargs))
        if self.amsgrad:
            raise ValueError(
                "`amsgrad` must be False. Received amsgrad=True. Example: keras.optimizers.Adam(amsgrad=True)."
            )

    def build(self, variables: list[Any]) -> None:
        """Creates two moments per variable."""
        if self.built:
            return
        keras.optimizers.Optimizer.build(self, variables)
        pairs = [[slot(self, variable, name) for name in ("momentum", "velocity")] for variable in variables]
        keep_moments(self, *([list(column) for column in zip(*pairs, strict=True)] or ([], [])))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        (first, second), dtype = moments(self, variable), variable.dtype
        if first.dtype != dtype:
            self._update_unfused(gradient, variable, learning_rate)
            return
        updates = tf.cast(self.iterations + 1, dtype)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=first.handle,
            v=second.handle,
            beta1_power=tf.constant(self.beta_1, dtype) ** updates,
            beta2_power=tf.constant(self.beta_2, dtype) ** updates,
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.constant(self.beta_1, dtype),
            beta2=tf.constant(self.beta_2, dtype),
            epsilon=tf.constant(self.epsilon, dtype),
            grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        )

    def _update_unfused(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates a variable whose moments are of another dtype."""
        m, v = moments(self, variable)
        g = tf.cast(tf.convert_to_tensor(gradient), m.dtype)
        beta_1, beta_2 = (tf.constant(beta, m.dtype) for beta in (self.beta_1, self.beta_2))
        updates = tf.cast(self.iterations + 1, m.dtype)
        rate = tf.cast(learning_rate, m.dtype) * tf.sqrt(1.0 - beta_2**updates) / (1.0 - beta_1**updates)
        self.assign_add(m, (g - m) * (1.0 - beta_1))
        self.assign_add(v, (tf.square(g) - v) * (1.0 - beta_2))
        self.assign_sub(variable, rate * m / (tf.sqrt(v) + self.epsilon))
