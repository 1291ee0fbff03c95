"""Records when J or R is no longer finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Tensor = tf.Tensor


class FiniteWatch:
    """Records the first step at which J or an R_l was not finite.

    Args:
        layers: names of the layers that have an R_l.
    """

    def __init__(self, layers: Sequence[str]):
        self.layers = list(layers)
        self.steps = tf.Variable(tf.fill([1 + len(layers)], tf.constant(-1, tf.int64)), trainable=False)

    def update(self, step: Any, loss: Tensor, regularisers: Tensor) -> None:
        """Checks the values of one step.

        Args:
            step: the global step.
            loss: J.
            regularisers: the R_l, `(layers,)`.
        """
        values = tf.concat([[loss], regularisers], axis=0)
        fresh = tf.logical_and(self.steps < 0, tf.logical_not(tf.math.is_finite(values)))
        self.steps.assign(tf.where(fresh, tf.cast(tf.convert_to_tensor(step), tf.int64), self.steps))

    def first(self) -> tuple[int, list[str]] | None:
        """Returns the earliest step with a value that is not finite and the names of these values, or None."""
        steps = self.steps.numpy()
        if (steps < 0).all():
            return None
        step = int(steps[steps >= 0].min())
        return step, [name for name, first in zip(["J", *self.layers], steps, strict=True) if first == step]
