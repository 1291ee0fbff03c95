"""When J and when R is optimised, as a function of the global step."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable(package="optimizers")
class RateScheduler:
    """Step -> (J rate, R rate): both 1 by default; delayed or alternating where asked for.

    With `alternation` k, every step that is a multiple of k + 1 is R's alone and the k steps between are J's alone.
    During the delay J rests and R runs on every step (Kunin et al. 2020, Appendices A.3 and B.1.2).

    Args:
        steps_per_epoch: global steps in an epoch of `delay_epochs`.
        delay_epochs: epochs before J begins.
        alternation: k, the steps of J to each step of R; none for both at every step.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, steps_per_epoch: int, delay_epochs: float = 0, alternation: int | None = None):
        if steps_per_epoch < 1:
            raise ValueError(f"`steps_per_epoch` must be at least 1. Received {steps_per_epoch!r}. Example: 5004.")
        if delay_epochs < 0:
            raise ValueError(f"`delay_epochs` must not be negative. Received {delay_epochs!r}. Example: 1.")
        if alternation is not None and alternation < 1:
            raise ValueError(f"`alternation` must be at least 1, or None. Received {alternation!r}. Example: 1.")
        self.steps_per_epoch = steps_per_epoch
        self.delay_epochs = delay_epochs
        self.alternation = alternation

    @property
    def constant(self) -> bool:
        """Whether both rates are 1 at every step."""
        return not self.delay_epochs and self.alternation is None

    @property
    def modes(self) -> list[tuple[bool, bool]]:
        """Which of J and R runs at some step: the pairs (J runs, R runs) that occur."""
        if self.alternation is not None:
            return [(True, False), (False, True)]
        return [(True, True), (False, True)] if self.delay_epochs else [(True, True)]

    def __call__(self, step: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the rates of J and R at the global step `step`, two float32 scalars."""
        step = tf.cast(step, tf.int64)
        delayed = tf.cast(step, tf.float64) < self.delay_epochs * self.steps_per_epoch
        if self.alternation is None:
            j_runs, r_runs = tf.constant(True), tf.constant(True)
        else:
            r_runs = tf.equal(step % (self.alternation + 1), 0)
            j_runs = tf.logical_not(r_runs)
        j_rate = tf.logical_and(j_runs, tf.logical_not(delayed))
        r_rate = tf.logical_or(r_runs, delayed)
        return tf.cast(j_rate, tf.float32), tf.cast(r_rate, tf.float32)

    def get_config(self) -> dict[str, Any]:
        """Returns what the constructor takes."""
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "delay_epochs": self.delay_epochs,
            "alternation": self.alternation,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RateScheduler:
        """Builds the scheduler from what `get_config` returned."""
        return cls(**config)
