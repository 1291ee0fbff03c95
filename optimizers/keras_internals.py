"""All uses of Keras' private API in this package.

Keras offers no public API for them. `tests/test_keras_internals.py` tests each of them with the oldest and the newest
supported Keras.
"""

from __future__ import annotations

from typing import Any

import keras


def trainable_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the variables that a built optimizer updates, in the order in which they were passed to `build`."""
    return optimizer._trainable_variables


def index_of(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Returns the position of a variable among `trainable_variables`."""
    return optimizer._get_variable_index(variable)


def moments(optimizer: keras.optimizers.Adam, variable: Any) -> tuple[Any, Any]:
    """Returns the moving averages of a variable's gradient and of its square."""
    index = index_of(optimizer, variable)
    return optimizer._momentums[index], optimizer._velocities[index]


def keep_moments(optimizer: keras.optimizers.Adam, first: list[Any], second: list[Any]) -> None:
    """Sets the moments of all variables, in the order of the variables, in place of those that Keras would create."""
    optimizer._momentums, optimizer._velocities = first, second


def mean_squares(optimizer: keras.optimizers.RMSprop) -> list[Any]:
    """Returns the moving averages of the squared gradients, in the order of the variables."""
    return optimizer._velocities


def call_count(optimizer: keras.optimizers.Optimizer) -> Any:
    """Returns the variable that counts the calls of `apply`.

    The public `iterations` counts updates. With `gradient_accumulation_steps` there are fewer updates than calls, and
    `iterations` is then a computed value instead of a variable.
    """
    return optimizer._iterations


def is_call_count(key: str) -> bool:
    """Returns whether a key of a checkpoint with an object `optimizer` is that of its `call_count`."""
    return key.startswith("optimizer/_iterations/")


def is_trained(key: str) -> bool:
    """Returns whether a key of a checkpoint with an object `optimizer` is that of one of its `trainable_variables`."""
    return key.startswith("optimizer/") and "/_trainable_variables/" in key


def reads_paths(kind: type[keras.optimizers.Optimizer]) -> bool:
    """Returns whether an optimizer reads the `path` of a TensorFlow variable, which has none: Muon of Keras 3.14."""
    return "_should_use_adamw" in kind.update_step.__code__.co_names


def schedule_of(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.schedules.LearningRateSchedule | None:
    """Returns the learning-rate schedule of an optimizer; None if its learning rate is a number."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def leave_sum_to_caller(optimizer: keras.optimizers.Optimizer) -> None:
    """Stops an optimizer from summing gradients over the replicas, because the caller passes the sums.

    Keras would sum the gradients only after clipping them.
    """
    optimizer._all_reduce_sum_gradients = list


def copies_weights(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer copies the weights when it is built.

    Keras does not tell. Other optimizers of this kind have an attribute `copies_weights`, which is true.
    """
    kind = getattr(keras.optimizers, "ScheduleFreeAdamW", ())  # Keras has it since 3.14.
    return isinstance(optimizer, kind) or getattr(optimizer, "copies_weights", False)


def scales_by_weights(kind: type[keras.optimizers.Optimizer]) -> bool:
    """Returns whether a class of optimizers scales the step of a variable by the norm of the variable.

    Keras does not tell. Other optimizers of this kind have an attribute `scales_by_weights`, which is true.
    """
    known = (keras.optimizers.Adafactor, keras.optimizers.Lamb)
    return issubclass(kind, known) or getattr(kind, "scales_by_weights", False)


def moving_averages(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """Returns the moving averages of `trainable_variables` that an optimizer with `use_ema=True` keeps."""
    return optimizer._model_variables_moving_average


class AveragingOptimizer(keras.optimizers.Optimizer):
    """Base of optimizers that compute their list of moving averages, for `keras.callbacks.SwapEMAWeights`."""

    def averages_of_variables(self) -> list[Any]:
        """Returns the moving averages, in the order of `trainable_variables`.

        Raises:
            AttributeError: if there are none.
        """
        raise NotImplementedError

    @property
    def _model_variables_moving_average(self) -> list[Any]:
        return self.averages_of_variables()
