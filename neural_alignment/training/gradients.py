"""The gradients of J and R in one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Tensor = tf.Tensor


class Gradients:
    """The gradients of J and R in one step, a tensor or None for each target.

    Args:
        targets: the variables to which the gradients belong. A W that both losses train occurs twice: first for J, and
            later for R.
    """

    def __init__(self, targets: Sequence[Any]):
        self._targets = list(targets)
        self.values: list[Tensor | None] = [None] * len(self._targets)

    def add_of_r(self, variable: Any, gradient: Tensor | None) -> None:
        """Adds a gradient of R. That of a frozen variable, which is no target, is left out."""
        places = [place for place, target in enumerate(self._targets) if target is variable]
        if gradient is None or not places:
            return
        gradient, place = tf.cast(gradient, variable.dtype), places[-1]
        self.values[place] = gradient if self.values[place] is None else self.values[place] + gradient

    def of(self, variable: Any) -> Tensor | None:
        """Returns the gradient of a variable that occurs once; None if there is none."""
        return next((g for g, target in zip(self.values, self._targets, strict=True) if target is variable), None)

    def present(self) -> list[Tensor]:
        """Returns the gradients that are not None."""
        return [gradient for gradient in self.values if gradient is not None]


def filled(gradients: Sequence[Tensor | None], variables: Sequence[Any]) -> list[Tensor]:
    """Returns the gradients of variables, with zeros for missing ones."""
    return [tf.zeros_like(v.value) if g is None else g for g, v in zip(gradients, variables, strict=True)]


def dense(gradient: Tensor | tf.IndexedSlices | None, variable: Any) -> Tensor | None:
    """Returns a gradient as a tensor, or None. Those of `Embedding` are slices, which a loop cannot add."""
    if not isinstance(gradient, tf.IndexedSlices):
        return gradient
    return tf.math.unsorted_segment_sum(gradient.values, gradient.indices, variable.shape[0])
