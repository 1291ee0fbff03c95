"""Learning-rate schedules that count the epochs of the task loss J."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from optimizers.arguments import base_rate, integer, is_number, number, plain

Schedule = keras.optimizers.schedules.LearningRateSchedule


_TOLERANCE = 1e-6
"""Steps by which a boundary may differ from a whole step because of floating-point errors."""


def whole_if_near(steps: Any) -> tf.Tensor:
    """Returns a number of steps, rounded if it is almost an integer, as a float64 scalar.

    For example, epoch 1.1 of 50 steps begins at step 55, but 1.1 * 50 is 55.00000000000001.
    """
    steps = tf.convert_to_tensor(steps, tf.float64)  # `tf.cast` would make a float32 of a Python float first.
    nearest = tf.round(steps)
    return tf.where(tf.abs(steps - nearest) < _TOLERANCE, nearest, steps)


class _ByEpochsOfJ(Schedule):
    """Base class of schedules that count epochs of J and begin with a linear warm-up from 0.

    With alternation k an epoch of J takes (k + 1) * `steps_per_epoch` global steps. Epochs are counted from the end of
    the delay, which takes `delay_epochs` * `steps_per_epoch` global steps.
    """

    def __init__(self, steps_per_epoch: int, warmup_epochs: float, delay_epochs: float, alternation: int | None):
        self.steps_per_epoch = integer("steps_per_epoch", steps_per_epoch, 5004, 1)
        self.warmup_epochs = number("warmup_epochs", warmup_epochs, 5, least=0)
        self.delay_epochs = number("delay_epochs", delay_epochs, 1, least=0)
        self.alternation = integer("alternation", alternation, 1, 1, optional=True)

    @property
    def _stretch(self) -> int:
        """Factor by which alternation makes an epoch longer: k + 1, of which J is trained at k steps."""
        return (self.alternation or 0) + 1

    @property
    def _delay(self) -> float:
        """Global steps of the delay."""
        return self.delay_epochs * self.steps_per_epoch

    def _unstretched(self, step: Any) -> tf.Tensor:
        """Returns the global steps since the end of the delay, divided by `_stretch`; a float64 scalar."""
        # float32 is not exact enough to place the drops in a long run.
        return tf.maximum(tf.cast(step, tf.float64) - whole_if_near(self._delay), 0.0) / self._stretch

    def _epoch(self, step: Any) -> tf.Tensor:
        """Returns the fractional epoch of J at a global step, a float64 scalar."""
        return self._unstretched(step) / self.steps_per_epoch

    def _warmup(self, epoch: tf.Tensor) -> tf.Tensor:
        """Returns the warm-up factor, a float64 scalar from 0 to 1."""
        if not self.warmup_epochs:
            return tf.ones([], tf.float64)
        return tf.minimum(epoch / self.warmup_epochs, 1.0)

    @property
    def reaches_zero(self) -> bool:
        """Whether the value may be 0 at some step."""
        return bool(self.warmup_epochs)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments shared by all constructors."""
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "warmup_epochs": self.warmup_epochs,
            "delay_epochs": self.delay_epochs,
            "alternation": self.alternation,
        }


@keras.saving.register_keras_serializable(package="optimizers")
class WarmupAndDrops(_ByEpochsOfJ):
    """Linear warm-up from 0, then a drop at each of the given epochs (Kunin et al. 2020, Appendices B.1.2 and B.2).

    Epochs are epochs of J. With alternation k an epoch of J takes (k + 1) * `steps_per_epoch` global steps. Epochs are
    counted from the end of the delay, which takes `delay_epochs` * `steps_per_epoch` global steps. The warm-up begins
    after the delay. For R use the same delay with `warmup_epochs=0`: the rate is then constant from step 0 and drops at
    the same steps as that of J.

    Args:
        learning_rate: the rate after the warm-up.
        steps_per_epoch: global steps in an epoch, without alternation.
        warmup_epochs: length of the warm-up, in epochs.
        drop_epochs: epochs at which the rate is multiplied by `drop_factor`, in ascending order.
        drop_factor: factor on the rate at each drop.
        delay_epochs: length of the delay before the first epoch of J, in epochs.
        alternation: k, the number of steps of J between two steps of R; None if both are trained at every step.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        learning_rate: float,
        steps_per_epoch: int,
        warmup_epochs: float = 5,
        drop_epochs: Sequence[float] = (30, 60, 80),
        drop_factor: float = 0.1,
        delay_epochs: float = 0,
        alternation: int | None = None,
    ):
        super().__init__(steps_per_epoch, warmup_epochs, delay_epochs, alternation)
        self.learning_rate = base_rate(learning_rate)
        self.drop_epochs = _ascending(drop_epochs, self.warmup_epochs)
        self.drop_factor = number("drop_factor", drop_factor, 0.1, least=0)

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at the global step `step`, a float32 scalar."""
        factor = self._warmup(self._epoch(step))
        for epoch in self.drop_epochs:
            drop = whole_if_near(self._delay + epoch * self.steps_per_epoch * self._stretch)
            factor = tf.where(tf.cast(step, tf.float64) < drop, factor, factor * self.drop_factor)
        return tf.cast(self.learning_rate * factor, tf.float32)

    @property
    def reaches_zero(self) -> bool:
        """Whether the rate may be 0 at some step."""
        levels = [self.learning_rate * self.drop_factor**drops for drops in (0, len(self.drop_epochs))]
        return super().reaches_zero or any(map(_vanishes, levels))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "drop_epochs": list(self.drop_epochs),
            "drop_factor": self.drop_factor,
            **super().get_config(),
        }


@keras.saving.register_keras_serializable(package="optimizers")
class WarmupAndSchedule(_ByEpochsOfJ):
    """Linear warm-up from 0, followed by a Keras schedule that counts epochs of J.

    The rate rises from 0 to the value of `schedule` at step 0. After the warm-up `schedule` is called with
    `steps_per_epoch` times the epochs of J since the end of the warm-up. Delay and alternation are as in
    `WarmupAndDrops`. Keras' own schedules are computed in float64.

    Example: a cosine from 0.1 to 0.001 over epochs 5 to 90 is
    `WarmupAndSchedule(keras.optimizers.schedules.CosineDecay(0.1, 85 * 5004, alpha=0.01), 5004, warmup_epochs=5)`.

    Args:
        schedule: a `keras.optimizers.schedules.LearningRateSchedule`, or a float for a constant rate.
        steps_per_epoch: global steps in an epoch, without alternation.
        warmup_epochs: length of the warm-up, in epochs.
        delay_epochs: length of the delay before the first epoch of J, in epochs.
        alternation: k, the number of steps of J between two steps of R; None if both are trained at every step.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        schedule: Schedule | float,
        steps_per_epoch: int,
        warmup_epochs: float = 0,
        delay_epochs: float = 0,
        alternation: int | None = None,
    ):
        super().__init__(steps_per_epoch, warmup_epochs, delay_epochs, alternation)
        if not isinstance(schedule, Schedule) and not is_number(schedule):
            raise ValueError(
                "`schedule` must be a learning-rate schedule of Keras or a finite number. "
                f"Received {schedule!r}. Example: keras.optimizers.schedules.CosineDecay(0.1, 1000)."
            )
        self.schedule = schedule if isinstance(schedule, Schedule) else plain(schedule)
        self._precise = _in_float64(self.schedule)

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at the global step `step`, a float32 scalar."""
        rate = self._precise
        if isinstance(rate, Schedule):
            after_warmup = self._unstretched(step) - self.warmup_epochs * self.steps_per_epoch
            rate = rate(whole_if_near(tf.maximum(after_warmup, 0.0)) + (_TOLERANCE if _has_periods(rate) else 0.0))
        return tf.cast(tf.cast(rate, tf.float64) * self._warmup(self._epoch(step)), tf.float32)

    @property
    def reaches_zero(self) -> bool:
        """Whether the rate may be 0 at some step."""
        if super().reaches_zero:
            return True
        if isinstance(self.schedule, keras.optimizers.schedules.CosineDecay):
            return _vanishes(self.schedule.initial_learning_rate * self.schedule.alpha)
        if isinstance(self.schedule, keras.optimizers.schedules.PolynomialDecay):
            return _vanishes(self.schedule.initial_learning_rate) or _vanishes(self.schedule.end_learning_rate)
        return True if isinstance(self.schedule, Schedule) else _vanishes(self.schedule)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        is_schedule = isinstance(self.schedule, Schedule)
        return {
            "schedule": keras.saving.serialize_keras_object(self.schedule) if is_schedule else self.schedule,
            **super().get_config(),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> WarmupAndSchedule:
        """Builds the schedule from its configuration."""
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.saving.deserialize_keras_object(schedule)
        return cls(**{**config, "schedule": schedule})


def _ascending(drop_epochs: Any, warmup_epochs: float) -> tuple[float, ...]:
    """Returns the epochs of drops.

    Raises:
        ValueError: if they are not finite numbers in ascending order, or one is before the end of the warm-up.
    """
    epochs = tuple(drop_epochs) if isinstance(drop_epochs, Iterable) else ()
    are_numbers = isinstance(drop_epochs, Iterable) and all(map(is_number, epochs))
    if not are_numbers or list(epochs) != sorted(epochs) or any(epoch < warmup_epochs for epoch in epochs):
        found = epochs if are_numbers else drop_epochs
        raise ValueError(
            "`drop_epochs` must be finite numbers in ascending order, none of them before the end of the warm-up. "
            f"Received {found!r} with warmup_epochs={warmup_epochs!r}. Example: drop_epochs=(30, 60, 80)."
        )
    return tuple(map(plain, epochs))


def _vanishes(rate: float) -> bool:
    """Returns whether a rate may be 0 in float32. Subnormal numbers are included, because they may be flushed to 0."""
    return abs(rate) < np.finfo(np.float32).tiny


def _has_periods(schedule: Schedule) -> bool:
    """Returns whether a schedule of Keras divides the step by the length of a period and rounds down."""
    restarts = isinstance(schedule, keras.optimizers.schedules.CosineDecayRestarts)
    return restarts or getattr(schedule, "staircase", False)


def _in_float64(schedule: Schedule | float) -> Schedule | float:
    """Returns a copy of a Keras schedule that computes in float64; other schedules are returned unchanged."""
    if not isinstance(schedule, Schedule) or not type(schedule).__module__.startswith("keras."):
        return schedule
    config = schedule.get_config()
    if "initial_learning_rate" not in config:
        return schedule
    # Keras computes in the dtype of the initial learning rate, but converts other Python floats to float32 first.
    wide = {key: np.float64(value) if isinstance(value, float) else value for key, value in config.items()}
    return type(schedule).from_config({**wide, "initial_learning_rate": np.float64(config["initial_learning_rate"])})


@keras.saving.register_keras_serializable(package="optimizers")
class ManualDrop(_ByEpochsOfJ):
    """Manual drops, one per restart, as in the published code of Kunin et al. 2020.

    The user stops a run when it no longer improves, and resumes it with the next drop, at the step where it stopped.
    With drop 0 the schedule is a linear warm-up, then the constant base rate. With drop k > 0 there is no warm-up: the
    rate is `learning_rate` * `drop_factor`^(k - 1) up to and including the global step `drop_step`, and
    `learning_rate` * `drop_factor`^k after it, as in `tf.compat.v1.train.piecewise_constant`.

    Args:
        learning_rate: the base rate.
        steps_per_epoch: global steps in an epoch, without alternation.
        drop: the number of the current drop.
        drop_step: the last global step before the drop; required if `drop` is not 0.
        drop_factor: factor on the rate at each drop.
        warmup_epochs: length of the warm-up of drop 0, in epochs.
        delay_epochs: length of the delay before the warm-up, in epochs.
        alternation: the number of steps of J between two steps of R; None if both are trained at every step.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        learning_rate: float,
        steps_per_epoch: int,
        drop: int = 0,
        drop_step: int | None = None,
        drop_factor: float = 0.1,
        warmup_epochs: float = 0,
        delay_epochs: float = 0,
        alternation: int | None = None,
    ):
        super().__init__(steps_per_epoch, warmup_epochs, delay_epochs, alternation)
        drop = integer("drop", drop, 1, 0)
        drop_step = integer("drop_step", drop_step, 150120, 0, optional=True)
        if (drop_step is None) == bool(drop):
            raise ValueError(
                "`drop_step` must be a global step if `drop` is not 0, and None if it is. "
                f"Received {drop_step!r} with drop={drop!r}. Example: drop=1, drop_step=150120."
            )
        self.learning_rate = base_rate(learning_rate)
        self.drop = drop
        self.drop_step = drop_step
        self.drop_factor = number("drop_factor", drop_factor, 0.1, least=0)

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at the global step `step`, a float32 scalar."""
        if not self.drop:
            return tf.cast(self.learning_rate * self._warmup(self._epoch(step)), tf.float32)
        before, after = (tf.constant(self.learning_rate * self.drop_factor**k) for k in (self.drop - 1, self.drop))
        return tf.where(tf.cast(step, tf.int64) <= self.drop_step, before, after)

    @property
    def reaches_zero(self) -> bool:
        """Whether the rate may be 0 at some step."""
        if not self.drop:
            return super().reaches_zero or _vanishes(self.learning_rate)
        return any(_vanishes(self.learning_rate * self.drop_factor**k) for k in (self.drop - 1, self.drop))

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "learning_rate": self.learning_rate,
            "drop": self.drop,
            "drop_step": self.drop_step,
            "drop_factor": self.drop_factor,
            **super().get_config(),
        }
