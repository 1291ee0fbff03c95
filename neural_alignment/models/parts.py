"""Aligned layers with the initializers and weight decay that are common to all models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from neural_alignment.alignments import Alignment, Assignment
from neural_alignment.errors import ArgumentError
from neural_alignment.layers import Conv2D, Dense

Rules = Alignment | Sequence[Alignment] | None
"""The argument `alignment` of a model: None, one rule for all layers, or rules with patterns of layer names."""


class Parts:
    """Creates the layers of one model.

    Kernels of convolutions are drawn from a truncated normal distribution with variance 1 / fan-in. Kernels of dense
    layers are Glorot uniform by default. Biases start at 0. J's weight decay is 1/2 `weight_decay` times the sum of
    squares of the forward kernels and the dense biases.

    Args:
        alignment: the rules.
        weight_decay: coefficient of the decay of W.
    """

    def __init__(self, alignment: Rules, weight_decay: float):
        if weight_decay < 0:
            raise ArgumentError("weight_decay", "must not be negative", weight_decay, "1e-4")
        self._assignment = Assignment(alignment)
        self._weight_decay = weight_decay

    def conv(self, filters: int, kernel_size: int, name: str, followed_by: str | None = None, **options: Any) -> Conv2D:
        """Returns a convolution without bias. `followed_by` names the nonlinearity after its batch normalisation."""
        defaults = {
            "padding": "same",
            "use_bias": False,
            "kernel_initializer": keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal"),
        }
        return Conv2D(
            filters,
            kernel_size,
            kernel_regularizer=self._decay(),
            alignment=self._assignment(name),
            alignment_activation=followed_by,
            name=name,
            **{**defaults, **options},
        )

    def dense(self, units: int, name: str, **options: Any) -> Dense:
        """Returns a dense layer with bias."""
        return Dense(
            units,
            kernel_regularizer=self._decay(),
            bias_regularizer=self._decay(),
            alignment=self._assignment(name),
            name=name,
            **options,
        )

    def finish(self, inputs: Any, outputs: Any, name: str) -> keras.Model:
        """Returns the functional model after checking that every rule applies to a layer.

        Raises:
            ConfigError: if the pattern of a rule matches no layer.
        """
        self._assignment.check()
        return keras.Model(inputs, outputs, name=name)

    def _decay(self) -> keras.regularizers.Regularizer | None:
        return keras.regularizers.L2(0.5 * self._weight_decay) if self._weight_decay else None
