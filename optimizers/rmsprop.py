"""RMSprop whose mean square may start as in TensorFlow 1."""

from __future__ import annotations

from typing import Any

import keras

from optimizers.arguments import keras_arguments, number
from optimizers.keras_internals import mean_squares


@keras.saving.register_keras_serializable(package="optimizers")
class RMSprop(keras.optimizers.RMSprop):
    """RMSprop of Keras, with another start of the moving average of the squared gradients.

    Keras starts this average at 0, TensorFlow 1 at 1. From 1 the first steps are short where gradients are small: the
    average falls to the mean square of the gradients within about 1 / (1 - rho) steps. With `initial_mean_square=1` and
    `epsilon=1e-10` the steps are those of TensorFlow 1, which the published code of Kunin et al. 2020 uses.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`.
        rho: decay of the moving average of the squared gradients, in [0, 1).
        momentum: fraction of the accumulated step that is kept at each step, in [0, 1].
        epsilon: added to the mean square before its root is taken; at least 0.
        centered: whether the squared moving average of the gradients is subtracted from the mean square.
        initial_mean_square: start of the moving average of the squared gradients; at least 0.
        **kwargs: `weight_decay`, `clipvalue` and the other arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        initial_mean_square: float = 0.0,
        **kwargs: Any,
    ):
        rho = number("rho", rho, 0.9, least=0, below=1)
        momentum = number("momentum", momentum, 0.9, least=0, most=1)
        epsilon = number("epsilon", epsilon, 1e-7, least=0)  # Keras allows 0.
        initial_mean_square = number("initial_mean_square", initial_mean_square, 1.0, least=0)
        super().__init__(learning_rate, rho, momentum, epsilon, centered, **keras_arguments(learning_rate, kwargs))
        self.initial_mean_square = initial_mean_square

    def build(self, variables: list[Any]) -> None:
        """Creates the averages, and sets those of the squared gradients to their start."""
        if self.built:
            return
        super().build(variables)
        for average in mean_squares(self):
            average.assign(keras.ops.full_like(average, self.initial_mean_square))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "initial_mean_square": self.initial_mean_square}
