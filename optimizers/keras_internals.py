"""All uses of Keras' private API in this package.

Keras has no public name for these. `tests/test_keras_internals.py` tests each of them; it passes on the oldest and the
newest supported Keras.
"""

from __future__ import annotations

from typing import Any

import keras


def trainable_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the variables that a built optimizer moves, in the order in which it was built on them."""
    return optimizer._trainable_variables


def index_of(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Returns the position of a variable among `trainable_variables`."""
    return optimizer._get_variable_index(variable)


def call_count(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the variable that counts the calls of `apply`.

    The public `iterations` counts updates: with `gradient_accumulation_steps` these are fewer, and it is no variable.
    """
    return optimizer._iterations


def schedule_of(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.schedules.LearningRateSchedule | None:
    """Returns the learning-rate schedule of an optimizer; None if its learning rate is a number."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def leave_sum_to_caller(optimizer: keras.optimizers.Optimizer) -> None:
    """Stops an optimizer from summing gradients over the replicas; the caller passes the sums.

    Keras would sum them after clipping.
    """
    optimizer._all_reduce_sum_gradients = list


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the moving averages of `trainable_variables` that an optimizer with `use_ema=True` keeps."""
    return optimizer._model_variables_moving_average


class AveragingOptimizer(keras.optimizers.Optimizer):
    """An optimizer that computes its list of moving averages, for `keras.callbacks.SwapEMAWeights`."""

    def averages_of_variables(self) -> list[Any]:
        """Returns the moving averages, in the order of `trainable_variables`.

        Raises:
            AttributeError: if there are none.
        """
        raise NotImplementedError

    @property
    def _model_variables_moving_average(self) -> list[Any]:
        return self.averages_of_variables()
