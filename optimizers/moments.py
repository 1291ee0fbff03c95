"""Common parts of RAdam and SWATS: the moments of Adam, and a clock that counts every global step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from optimizers.keras_internals import call_count


class MomentOptimizer(keras.optimizers.Optimizer):
    """The base of optimizers that keep Adam's two moments and whose step count is the global one.

    In the published code of Kunin et al. 2020 the step count t of these optimizers is the global step + 1: it includes
    the steps in which the other loss was optimised. Alone, such an optimizer counts its own `iterations`.
    `MultiOptimizer` calls `follow` with its own `iterations`, which count every step.

    The scalars of a step are float64, whatever the dtype of the variables; Keras keeps a constant learning rate in
    float32. Moments have the dtype of their variable, but are float32 for half-precision variables, in which 1 - 0.999
    would be lost.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        beta_1: decay of the first moment, from 0 up to but not 1.
        beta_2: decay of the second moment, from 0 up to but not 1.
        epsilon: added to the root of the second moment.
        **kwargs: `weight_decay`, `clipvalue` and the others of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-9,
        **kwargs: Any,
    ):
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"`{name}` must be in [0, 1). Received {beta!r}. Example: {name}=0.9.")
        if not epsilon > 0.0:
            raise ValueError(f"`epsilon` must be positive. Received {epsilon!r}. Example: epsilon=1e-9.")
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self._clock: Callable[[], Any] = lambda: call_count(self).value

    def follow(self, iterations: keras.Variable) -> None:
        """Makes the step count t go by another counter of global steps than the optimizer's own `iterations`."""
        self._clock = lambda: iterations.value

    def build(self, variables: list[Any]) -> None:
        """Creates two moments per variable."""
        if self.built:
            return
        super().build(variables)
        self._momentums = [self._slot(variable, "momentum") for variable in variables]
        self._velocities = [self._slot(variable, "velocity") for variable in variables]

    def _slot(self, variable: Any, name: str) -> Any:
        """Returns a new variable of the shape of another one, of single precision or better."""
        if tf.as_dtype(variable.dtype).size >= 4:
            return self.add_variable_from_reference(variable, name=name)
        return self.add_variable(
            variable.shape, dtype="float32", name=f"{variable.path.replace('/', '_')}_{name}", initializer="zeros"
        )

    def steps(self) -> tf.Tensor:
        """Returns t, a float64 scalar: the number of the present step, from 1."""
        # Keras divides `iterations` in the same way.
        elapsed = self._clock() // (self.gradient_accumulation_steps or 1)
        return tf.cast(elapsed, tf.float64) + 1.0

    def _update_moments(self, variable: Any, index: int, gradient: tf.Tensor, rate: tf.Tensor) -> None:
        """Updates both moments; then w <- w - rate m / (sqrt(v) + epsilon), `rate` with its bias corrections."""
        m, v = self._momentums[index], self._velocities[index]
        dtype = gradient.dtype
        rate = tf.cast(rate, dtype)
        if dtype == variable.dtype:  # In one pass over memory.
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
        """W <- w - rate m."""
        m = self._momentums[index]
        self.assign_sub(variable, tf.cast(rate, m.dtype) * m)

    def _gradient(self, gradient: Any, index: int) -> tf.Tensor:
        """Returns a gradient as a dense tensor of the dtype of the moments."""
        return tf.cast(tf.convert_to_tensor(gradient), self._momentums[index].dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "beta_1": self.beta_1, "beta_2": self.beta_2, "epsilon": self.epsilon}


def averaged_steps(steps: tf.Tensor, beta_2: float) -> tf.Tensor:
    """Returns rho_t = rho_inf - 2 t beta_2^t / (1 - beta_2^t), the length of an equal simple moving average.

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
    """Returns r_t = sqrt((rho_t - 4)(rho_t - 2) rho_inf / ((rho_inf - 4)(rho_inf - 2) rho_t)), 0 where not usable.

    Args:
        length: rho_t, of `averaged_steps`.
        beta_2: decay of the second moment.
        usable: whether rho_t is large enough, a boolean scalar; then rho_inf is too.
    """
    longest = longest_average(beta_2)
    if longest <= 4.0:  # No rho_t is above it.
        return tf.zeros([], tf.float64)
    length = tf.where(usable, length, longest)
    squared = (length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length)
    return tf.where(usable, tf.sqrt(squared), 0.0)
