"""Determines which of the losses J and R is trained at a global step, and with which factor."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from optimizers.arguments import integer, is_number, number, plain
from optimizers.learning_rate import Schedule, whole_if_near


@keras.saving.register_keras_serializable(package="optimizers")
class RateScheduler:
    """A function of the global step that returns the rates of J and R: the factors on the two losses.

    A loss with the rate 0 is not trained at that step. By default both rates are 1. With `alternation` k, only R is
    trained at the steps that are multiples of k + 1, and only J at the k steps between them. During the delay only R is
    trained, at every step (Kunin et al. 2020, Appendices A.3 and B.1.2).

    `loss_rates` are additional factors on J and R. They multiply the gradients before the optimizer uses them: the
    steps of momentum and gradient descent scale with them, while a constant factor hardly changes the steps of Adam. A
    schedule is called with the global step, so its epochs are global steps / `steps_per_epoch`. Unlike the epochs of
    learning-rate schedules they are neither stretched by alternation nor shifted by the delay. For example, the
    published code divides a loss by 10 at epochs 30, 60 and 80, which is
    `WarmupAndDrops(1.0, steps_per_epoch, 0, (30, 60, 80))` here.

    Args:
        steps_per_epoch: global steps in an epoch of `delay_epochs`.
        delay_epochs: length of the delay at the start, in epochs.
        alternation: k, the number of steps of J between two steps of R; None if both are trained at every step.
        loss_rates: factors on J and on R, each a non-negative number or a
            `keras.optimizers.schedules.LearningRateSchedule` over global steps.

    Raises:
        ValueError: if an argument has a wrong type or is out of range.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        delay_epochs: float = 0,
        alternation: int | None = None,
        loss_rates: Sequence[float | Schedule] = (1.0, 1.0),
    ):
        steps_per_epoch = integer("steps_per_epoch", steps_per_epoch, 5004, 1)
        delay_epochs = number("delay_epochs", delay_epochs, 1, least=0)
        alternation = integer("alternation", alternation, 1, 1, optional=True)
        pair = tuple(loss_rates) if isinstance(loss_rates, (list, tuple)) else ()
        if len(pair) != 2 or not all(isinstance(rate, Schedule) or _is_factor(rate) for rate in pair):
            raise ValueError(
                "`loss_rates` must be two non-negative numbers or learning-rate schedules of Keras. "
                f"Received {loss_rates!r}. Example: (1.0, 0.1)."
            )
        if all(_is_always_zero(rate) for rate in pair):
            raise ValueError(
                f"`loss_rates` must not both be 0: nothing would be trained. Received {loss_rates!r}. "
                "Example: (0.0, 1.0) to train only R."
            )
        self.steps_per_epoch = steps_per_epoch
        self.delay_epochs = delay_epochs
        self.alternation = alternation
        self.loss_rates = tuple(rate if isinstance(rate, Schedule) else plain(rate) for rate in pair)

    @property
    def constant(self) -> bool:
        """Whether both rates are 1 at every step."""
        return self._simultaneous and all(not isinstance(rate, Schedule) and rate == 1 for rate in self.loss_rates)

    @property
    def together(self) -> bool:
        """Whether both rates are equal at every step, as W and B of Kolen-Pollack require."""
        j_rate, r_rate = map(_serialized, self.loss_rates)
        return self._simultaneous and j_rate == r_rate

    @property
    def _simultaneous(self) -> bool:
        return not self.delay_epochs and self.alternation is None

    @property
    def modes(self) -> list[tuple[bool, bool]]:
        """The possible modes: pairs (J is trained, R is trained)."""
        if self.alternation is not None:
            turns = [(True, False), (False, True)]
        else:
            turns = [(True, True), (False, True)] if self.delay_epochs else [(True, True)]
        if self.together:
            states = [(state, state) for state in _possible_states(self.loss_rates[0])]
        else:
            states = list(itertools.product(*map(_possible_states, self.loss_rates)))
        return list(dict.fromkeys((j and j_on, r and r_on) for j_on, r_on in states for j, r in turns))

    def __call__(self, step: Any) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the rates of J and R at the global step `step`, two float32 scalars."""
        step = tf.cast(step, tf.int64)
        delayed = tf.cast(step, tf.float64) < whole_if_near(self.delay_epochs * self.steps_per_epoch)
        if self.alternation is None:
            j_runs, r_runs = tf.constant(True), tf.constant(True)
        else:
            r_runs = tf.equal(step % (self.alternation + 1), 0)
            j_runs = tf.logical_not(r_runs)
        runs = tf.logical_and(j_runs, tf.logical_not(delayed)), tf.logical_or(r_runs, delayed)
        factors = [rate(step) if isinstance(rate, Schedule) else rate for rate in self.loss_rates]
        j_rate, r_rate = (tf.where(on, tf.cast(f, tf.float32), 0.0) for on, f in zip(runs, factors, strict=True))
        return j_rate, r_rate

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "delay_epochs": self.delay_epochs,
            "alternation": self.alternation,
            "loss_rates": [_serialized(rate) for rate in self.loss_rates],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RateScheduler:
        """Builds the scheduler from its configuration."""
        load = keras.saving.deserialize_keras_object
        rates = [load(rate) if isinstance(rate, dict) else rate for rate in config["loss_rates"]]
        return cls(**{**config, "loss_rates": rates})


def _is_factor(rate: Any) -> bool:
    return is_number(rate) and rate >= 0


def _serialized(rate: float | Schedule) -> Any:
    return keras.saving.serialize_keras_object(rate) if isinstance(rate, Schedule) else rate


def _is_always_zero(rate: float | Schedule) -> bool:
    """Returns whether a factor is 0 at every step."""
    return not isinstance(rate, Schedule) and rate == 0


def _possible_states(rate: float | Schedule) -> list[bool]:
    """Returns the possible states of a loss with this factor at a step: True for trained, False for not trained."""
    if isinstance(rate, Schedule):
        return [True, False] if getattr(rate, "reaches_zero", True) else [True]
    return [rate != 0]
