"""SWATS: starts as Adam and switches to gradient descent."""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from optimizers.arguments import flag
from optimizers.keras_internals import index_of
from optimizers.moments import MomentOptimizer, averaged_steps, rectification, slot


@keras.saving.register_keras_serializable(package="optimizers")
class SWATS(MomentOptimizer):
    """Switches each variable from Adam to gradient descent (Keskar and Socher 2017).

    In the first phase a variable is updated by Adam's step p = -rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) +
    epsilon). Meanwhile the optimizer computes, per variable, the learning rate gamma at which the projection of the
    gradient-descent step onto p equals p, and its running average Lambda. With the gradient g:

        gamma = -(p . p) / (p . g);  Lambda <- beta_2 Lambda + (1 - beta_2) gamma

    If p . g is 0, Lambda does not change. When t > 1 and |Lambda / (1 - beta_2^t) - gamma| < epsilon, the variable
    enters the second phase at the next step: a <- beta_1 a + g; w <- w - (1 - beta_1) Lambda / (1 - beta_2^t) a, where
    Lambda and t keep their values at the switch. In this phase `learning_rate` has no effect on the step, but still
    scales `weight_decay`, and the moments do not change.

    With `rectified`, p is the step of `RAdam`, with the condition rho_t > 5 (named SWRATS in the published code of
    Kunin et al. 2020).

    t is the number of the current step, counted from 1. Inside `MultiOptimizer` it counts all global steps, including
    those in which this optimizer is skipped (see `follow`).

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`, for the first phase.
        beta_1: decay of the first moment and of a, in [0, 1).
        beta_2: decay of the second moment and of Lambda, in [0, 1).
        epsilon: added to the square root of the second moment; also the tolerance for the switch to the second phase.
            The default is that of the published code of Kunin et al. 2020.
        rectified: whether the first phase uses the steps of RAdam.
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
        rectified: bool = False,
        **kwargs: Any,
    ):
        rectified = flag("rectified", rectified)
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)
        self.rectified = rectified

    def build(self, variables: list[Any]) -> None:
        """Creates two moments, an accumulator and two scalars per variable."""
        if self.built:
            return
        super().build(variables)
        self._accumulators = [slot(self, variable, "accumulator") for variable in variables]
        # Lambda in the first phase, and Lambda / (1 - beta_2^t) at the switch in the second phase.
        self._rates = [self._scalar(variable, "descent_rate", "float64") for variable in variables]
        self._phases = [self._scalar(variable, "phase", "int64") for variable in variables]

    def _scalar(self, variable: Any, name: str, dtype: str) -> Any:
        return self.add_variable((), "zeros", dtype, name=f"{variable.path.replace('/', '_')}_{name}")

    def descent_rate(self, variable: Any) -> float | None:
        """Returns the learning rate of a variable's gradient descent, or None if it is still in the first phase."""
        index = index_of(self, variable)
        return float(self._rates[index].numpy()) if int(self._phases[index].numpy()) else None

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Updates one variable."""
        index = index_of(self, variable)
        gradient = self._gradient(gradient, index)
        rates = self._step_rates(learning_rate)  # Outside of the branches, so TensorFlow computes them only once.

        def by_adam() -> tf.Tensor:
            self._adam_step(variable, index, gradient, rates)
            return tf.constant(True)

        def by_descent() -> tf.Tensor:
            self._descent_step(variable, index, gradient)
            return tf.constant(False)

        tf.cond(tf.equal(self._phases[index].value, 0), by_adam, by_descent)

    def _step_rates(self, learning_rate: Any) -> _Rates:
        """Returns the scalars of a step of the first phase that do not depend on the variable."""
        steps = self.steps()
        correction = 1.0 - self.beta_2**steps
        plain = tf.cast(learning_rate, tf.float64) / (1.0 - self.beta_1**steps)
        adaptive, usable = plain * tf.sqrt(correction), tf.constant(True)
        if self.rectified:
            length = averaged_steps(steps, self.beta_2)
            usable = length > 5.0
            adaptive *= rectification(length, self.beta_2, usable)
        return _Rates(adaptive, plain, usable, correction, steps > 1.0)

    def _adam_step(self, variable: Any, index: int, gradient: tf.Tensor, rates: _Rates) -> None:
        """Makes a step of the first phase, and enters the second phase if its condition is met."""

        # p = -rate q, so the products of q suffice. They are summed in the gradient's dtype.
        def adaptively() -> tuple[tf.Tensor, ...]:
            self._update_moments(variable, index, gradient, rates.adaptive)
            q = self._momentums[index].value / (tf.sqrt(self._velocities[index].value) + self.epsilon)
            return rates.adaptive, *_products(q, gradient)

        def plainly() -> tuple[tf.Tensor, ...]:
            self._update_moments(variable, index, gradient, tf.zeros([], tf.float64))
            self._move_along_momentum(variable, index, rates.plain)
            return rates.plain, *_products(self._momentums[index].value, gradient)

        rate, qq, qg = tf.cond(rates.usable, adaptively, plainly) if self.rectified else adaptively()

        known = tf.not_equal(rate * qg, 0.0)  # p . g
        gamma = rate * qq / tf.where(known, qg, 1.0)
        average = self._rates[index].value
        average = tf.where(known, self.beta_2 * average + (1.0 - self.beta_2) * gamma, average)
        corrected = average / rates.correction
        changes = known & rates.later & (tf.abs(corrected - gamma) < self.epsilon)
        self.assign(self._rates[index], tf.where(changes, corrected, average))
        self.assign(self._phases[index], tf.cast(changes, tf.int64))

    def _descent_step(self, variable: Any, index: int, gradient: tf.Tensor) -> None:
        """Makes a step of the second phase, with a fused operation if possible."""
        accumulator, dtype = self._accumulators[index], gradient.dtype
        rate = tf.cast((1.0 - self.beta_1) * self._rates[index].value, dtype)
        if dtype == variable.dtype:
            tf.raw_ops.ResourceApplyMomentum(
                var=variable.handle,
                accum=accumulator.handle,
                lr=rate,
                grad=gradient,
                momentum=tf.constant(self.beta_1, dtype),
                use_nesterov=False,
            )
            return
        self.assign(accumulator, self.beta_1 * accumulator.value + gradient)
        self.assign_sub(variable, rate * accumulator.value)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "rectified": self.rectified}


class _Rates(NamedTuple):
    """The scalars of a step of the first phase.

    Attributes:
        adaptive: the learning rate with both bias corrections, times r_t if rectified; see `RAdam`.
        plain: the learning rate with the bias correction of the first moment only.
        usable: whether the step uses the second moment.
        correction: 1 - beta_2^t.
        later: whether t > 1.
    """

    adaptive: tf.Tensor
    plain: tf.Tensor
    usable: tf.Tensor
    correction: tf.Tensor
    later: tf.Tensor


def _products(q: tf.Tensor, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns q . q and q . gradient over all entries, float64 scalars."""
    # Not with `tensordot`, because TPUs and GPUs may multiply matrices in less than single precision.
    qq, qg = 2.0 * tf.nn.l2_loss(q), tf.reduce_sum(q * gradient)
    return tf.cast(qq, tf.float64), tf.cast(qg, tf.float64)
