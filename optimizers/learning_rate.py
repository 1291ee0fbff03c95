"""Learning rates over training: warm-up and drops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="optimizers")
class WarmupAndDrops(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then a drop at each of some epochs (Kunin et al. 2020, Appendices B.1.2 and B.2).

    Epochs are those of J. With alternation k an epoch takes (k + 1) times as many steps. The clock starts after the
    delay, which is counted in epochs of `steps_per_epoch` steps: J's rate warms up from there; for R take
    `warmup_epochs=0` with a delay, so that its rate is full from step 0 and its drops are those of J.

    Args:
        learning_rate: the rate after the warm-up.
        steps_per_epoch: steps in an epoch, without alternation.
        warmup_epochs: length of the warm-up.
        drop_epochs: ascending epochs at which the rate is multiplied by `drop_factor`.
        drop_factor: what a drop multiplies by.
        delay_epochs: epochs before the clock starts.
        alternation: k, the steps of J to each step of R; none for both at every step.

    Raises:
        ValueError: if an argument is out of its range.
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
        if steps_per_epoch < 1:
            raise ValueError(f"`steps_per_epoch` must be at least 1. Received {steps_per_epoch!r}. Example: 5004.")
        if warmup_epochs < 0 or delay_epochs < 0:
            raise ValueError(
                "`warmup_epochs` and `delay_epochs` must not be negative. "
                f"Received {warmup_epochs!r} and {delay_epochs!r}. Example: warmup_epochs=5, delay_epochs=0."
            )
        if list(drop_epochs) != sorted(drop_epochs) or any(epoch < warmup_epochs for epoch in drop_epochs):
            raise ValueError(
                "`drop_epochs` must be ascending and not before the end of the warm-up. "
                f"Received {tuple(drop_epochs)!r} with warmup_epochs={warmup_epochs!r}. Example: (30, 60, 80)."
            )
        if alternation is not None and alternation < 1:
            raise ValueError(f"`alternation` must be at least 1, or None. Received {alternation!r}. Example: 1.")
        self.learning_rate = learning_rate
        self.steps_per_epoch = steps_per_epoch
        self.warmup_epochs = warmup_epochs
        self.drop_epochs = tuple(drop_epochs)
        self.drop_factor = drop_factor
        self.delay_epochs = delay_epochs
        self.alternation = alternation

    def __call__(self, step: Any) -> tf.Tensor:
        """Returns the rate at the global step `step`, a float32 scalar."""
        # float64: in float32 the steps of a long run are too coarse to place the drops.
        steps = tf.cast(step, tf.float64) - self.delay_epochs * self.steps_per_epoch
        epoch = tf.maximum(steps, 0.0) / (self.steps_per_epoch * ((self.alternation or 0) + 1))
        factor = tf.ones([], tf.float64)
        if self.warmup_epochs:
            factor = tf.minimum(epoch / self.warmup_epochs, 1.0)
        for drop in self.drop_epochs:
            factor = tf.where(epoch < drop, factor, factor * self.drop_factor)
        return tf.cast(self.learning_rate * factor, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns what the constructor takes."""
        return {
            "learning_rate": self.learning_rate,
            "steps_per_epoch": self.steps_per_epoch,
            "warmup_epochs": self.warmup_epochs,
            "drop_epochs": list(self.drop_epochs),
            "drop_factor": self.drop_factor,
            "delay_epochs": self.delay_epochs,
            "alternation": self.alternation,
        }
