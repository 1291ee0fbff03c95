"""The base class of RAdam and SWATS: Adam's moments and a count of all global steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from optimizers.arguments import keras_arguments, number
from optimizers.keras_internals import call_count


def slot(optimizer: keras.optimizers.Optimizer, variable: Any, name: str) -> Any:
    """Adds to an optimizer a variable with the shape of `variable`, in at least single precision; returns it."""
    if tf.as_dtype(variable.dtype).size >= 4:
        return optimizer.add_variable_from_reference(variable, name=name)
    return optimizer.add_variable(
        variable.shape, dtype="float32", name=f"{variable.path.replace('/', '_')}_{name}", initializer="zeros"
    )


class MomentOptimizer(keras.optimizers.Optimizer):
    """Base class of optimizers that keep Adam's two moments and use the global step count.

    In the published code of Kunin et al. 2020 the step count t of these optimizers is the global step + 1, which
    includes the steps in which the other loss was trained. `MultiOptimizer` therefore calls `follow` with its counter
    of all steps. Outside of `MultiOptimizer` t is the optimizer's own `iterations` + 1.

    The scalars of a step are float64 for variables of any dtype, although Keras stores a constant learning rate in
    float32. Moments have the dtype of their variable, except that those of half-precision variables are float32,
    because half precision cannot represent 1 - 0.999 accurately.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        beta_1: decay of the first moment, in [0, 1).
        beta_2: decay of the second moment, in [0, 1).
        epsilon: added to the square root of the second moment.
        **kwargs: `weight_decay`, `clipvalue` and the other arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-9,
        **kwargs: Any,
    ):
        beta_1 = number("beta_1", beta_1, 0.9, least=0, below=1)
        beta_2 = number("beta_2", beta_2, 0.999, least=0, below=1)
        epsilon = number("epsilon", epsilon, 1e-9, above=0)
        super().__init__(learning_rate=learning_rate, **keras_arguments(learning_rate, kwargs))
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self._clock: Callable[[], Any] = lambda: call_count(self).value

    def follow(self, iterations: keras.Variable) -> None:
        """Makes the step count t follow `iterations` in place of the optimizer's own counter."""
        self._clock = lambda: iterations.value

    def build(self, variables: list[Any]) -> None:
        """Creates two moments per variable."""
        if self.built:
            return
        super().build(variables)
        self._momentums = [slot(self, variable, "momentum") for variable in variables]
        self._velocities = [slot(self, variable, "velocity") for variable in variables]

    def steps(self) -> tf.Tensor:
        """Returns t, the number of the current step, counted from 1: a float64 scalar."""
        # Keras divides `iterations` in the same way when it accumulates gradients.
        elapsed = self._clock() // (self.gradient_accumulation_steps or 1)
        return tf.cast(elapsed, tf.float64) + 1.0

    def _update_moments(self, variable: Any, index: int, gradient: tf.Tensor, rate: tf.Tensor) -> None:
        """Updates both moments, then w <- w - rate m / (sqrt(v) + epsilon). `rate` includes the bias correction."""
        m, v = self._momentums[index], self._velocities[index]
        dtype = gradient.dtype
        rate = tf.cast(rate, dtype)
        if dtype == variable.dtype:  # The fused operation needs one dtype.
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=m.handle,
                v=v.handle,
                beta1_power=tf.zeros([], dtype),
                beta2_power=tf.zeros([], dtype),
                lr=rate,
                beta1=tf.constant(self.beta_1, dtype),
                beta2=tf.constant(self.beta_2, dtype),
                epsilon=tf.constant(self.epsilon, dtype),
                grad=gradient,
            )
            return
        self.assign_add(m, (gradient - m) * (1.0 - self.beta_1))
        self.assign_add(v, (tf.square(gradient) - v) * (1.0 - self.beta_2))
        self.assign_sub(variable, rate * m / (tf.sqrt(v) + self.epsilon))

    def _move_along_momentum(self, variable: Any, index: int, rate: tf.Tensor) -> None:
        """Updates the variable: w <- w - rate m."""
        m = self._momentums[index]
        self.assign_sub(variable, tf.cast(rate, m.dtype) * m)

    def _gradient(self, gradient: Any, index: int) -> tf.Tensor:
        """Returns the gradient as a dense tensor in the dtype of the moments."""
        return tf.cast(tf.convert_to_tensor(gradient), self._momentums[index].dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


def averaged_steps(steps: tf.Tensor, beta_2: float) -> tf.Tensor:
    """Returns rho_t = rho_inf - 2 t beta_2^t / (1 - beta_2^t), the length of the equivalent simple moving average.

    Args:
        steps: t, a float64 scalar.
        beta_2: decay of the second moment.
    """
    power = tf.constant(beta_2, tf.float64) ** steps
    return longest_average(beta_2) - 2.0 * steps * power / (1.0 - power)


def longest_average(beta_2: float) -> float:
    """Returns rho_inf = 2 / (1 - beta_2) - 1, the limit of rho_t."""
    return 2.0 / (1.0 - beta_2) - 1.0


def rectification(length: tf.Tensor, beta_2: float, usable: tf.Tensor) -> tf.Tensor:
    """Returns r_t = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t)), or 0 if not `usable`.

    Args:
        length: rho_t, from `averaged_steps`.
        beta_2: decay of the second moment.
        usable: whether rho_t is large enough for the formula, a boolean scalar.
    """
    longest = longest_average(beta_2)
    if longest <= 4.0:  # rho_t is never larger, so it is never usable.
        return tf.zeros([], tf.float64)
    length = tf.where(usable, length, longest)
    squared = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    return tf.where(usable, tf.sqrt(squared), 0.0)
