"""RAdam: Adam with a rectified step."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from optimizers.keras_internals import index_of
from optimizers.moments import MomentOptimizer, averaged_steps, rectification


@keras.saving.register_keras_serializable(package="optimizers")
class RAdam(MomentOptimizer):
    """Rectified Adam (Liu et al. 2019, Algorithm 2), with a fused update.

    m and v are the moments of Adam. With rho_inf = 2 / (1 - beta_2) - 1 and
    rho_t = rho_inf - 2 t beta_2^t / (1 - beta_2^t),

    - if rho_t >= 5: w <- w - rate r_t sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon), with
      r_t^2 = (rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t);
    - otherwise, as in the first steps: w <- w - rate m / (1 - beta_1^t).

    t is the number of the current step, counted from 1. Inside `MultiOptimizer` it counts all global steps, including
    those in which this optimizer is skipped (see `follow`).

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        beta_1: decay of the first moment, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).
        epsilon: added to the square root of the second moment. The default is that of the published code of Kunin et
            al. 2020.
        **kwargs: `weight_decay`, `clipvalue` and the other arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        index, steps = index_of(self, variable), self.steps()
        length = averaged_steps(steps, self.beta_2)
        rectified = length >= 5.0
        plain = tf.cast(learning_rate, tf.float64) / (1.0 - self.beta_1**steps)
        adaptive = plain * rectification(length, self.beta_2, rectified) * tf.sqrt(1.0 - self.beta_2**steps)
        # At rate 0 this updates only the moments.
        self._update_moments(variable, index, self._gradient(gradient, index), adaptive)

        def move() -> tf.Tensor:
            self._move_along_momentum(variable, index, plain)
            return tf.constant(True)

        tf.cond(rectified, lambda: tf.constant(False), move)
