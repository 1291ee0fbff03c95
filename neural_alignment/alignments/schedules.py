"""Schedules for the weights of a rule that change during training.

A weight is a number or one of these schedules. Times are in epochs of `steps_per_epoch` global steps, which include the
steps of J and those of R. Before `start` and after `stop` a scheduled weight is zero.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic
import tensorflow as tf

from neural_alignment.errors import ArgumentError
from neural_alignment.options import Options


class Constant(Options):
    """A weight of `value` from epoch `start` to epoch `stop`, and zero before and after."""

    kind: Literal["constant"]
    value: pydantic.NonNegativeFloat
    """The weight at `start`."""
    start: pydantic.NonNegativeFloat = 0.0
    """First epoch with a nonzero weight. Epochs are counted in global steps."""
    stop: pydantic.NonNegativeFloat | None = None
    """Last epoch with a nonzero weight. Default: the end of training."""

    @pydantic.model_validator(mode="after")
    def _ordered(self):
        if self.stop is not None and self.stop <= self.start:
            raise ArgumentError("stop", f"must be after `start` ({self.start})", self.stop, "stop: 10")
        return self

    def __call__(self, epoch: tf.Tensor) -> tf.Tensor:
        """Returns the weight at `epoch`, a float scalar."""
        weight = self._shape(epoch - self.start)
        inside = epoch >= self.start
        if self.stop is not None:
            inside = tf.logical_and(inside, epoch <= self.stop)
        return tf.where(inside, weight, tf.zeros_like(weight))

    def _shape(self, elapsed: tf.Tensor) -> tf.Tensor:
        return tf.constant(self.value, elapsed.dtype)  # `tf.cast` would make a float32 of it first.


class _Changing(Constant):
    """Base of weights that change at `rate` per epoch."""

    rate: float
    """Rate of the change per epoch."""
    cycle: pydantic.PositiveFloat | None = None
    """Epochs of a cycle: the change is reversed after half of each cycle. Default: no cycles."""

    def _position(self, elapsed: tf.Tensor) -> tf.Tensor:
        """Returns the epochs since the start. With a cycle they rise from 0 to cycle / 2 and fall back to 0."""
        if self.cycle is None:
            return elapsed
        phase = tf.math.floormod(elapsed, self.cycle)
        return tf.minimum(phase, self.cycle - phase)


class Linear(_Changing):
    """The weight value + rate * (epoch - start).

    With a negative rate the weight becomes negative, unless `stop` or `cycle` prevents it.
    """

    kind: Literal["linear"]

    def _shape(self, elapsed: tf.Tensor) -> tf.Tensor:
        return self.value + self.rate * self._position(elapsed)


class Exponential(_Changing):
    """The weight value * exp(rate * (epoch - start))."""

    kind: Literal["exponential"]

    def _shape(self, elapsed: tf.Tensor) -> tf.Tensor:
        return self.value * tf.exp(self.rate * self._position(elapsed))


WeightSchedule = Annotated[Constant | Linear | Exponential, pydantic.Field(discriminator="kind")]
Weight = Annotated[
    Annotated[pydantic.NonNegativeFloat, pydantic.Tag("number")] | Annotated[WeightSchedule, pydantic.Tag("schedule")],
    pydantic.Discriminator(lambda value: "schedule" if isinstance(value, (dict, Constant)) else "number"),
]
"""The weight of a primitive: a number or a schedule."""


def evaluate(weight: Weight, step: tf.Tensor, steps_per_epoch: int, dtype: tf.DType = tf.float32) -> float | tf.Tensor:
    """Returns the value of `weight` at a global step: a float, or for a schedule a scalar tensor of type `dtype`."""
    if isinstance(weight, Constant):
        return tf.cast(weight(tf.cast(step, tf.float64) / steps_per_epoch), dtype)
    return weight
