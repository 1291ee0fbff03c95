"""Creates aligned layers with the initializers and the weight decay that all models share."""

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

    By default, kernels of convolutions are drawn from a truncated normal distribution with variance 1 / fan-in, kernels
    of dense layers from the Glorot uniform distribution, and biases are 0. The weight decay, which is a part of J, is
    1/2 `weight_decay` times the sum of squares of the forward kernels and the biases of dense layers.

    Args:
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        weight_decay: coefficient of the weight decay; not negative.

    Raises:
        ValueError: if `weight_decay` is negative.
    """

    def __init__(self, alignment: Rules, weight_decay: float):
        if weight_decay < 0:
            raise ArgumentError("weight_decay", "must not be negative", weight_decay, "1e-4")
        self._assignment = Assignment(alignment)
        self._weight_decay = weight_decay

    def conv(self, filters: int, kernel_size: int, name: str, followed_by: str | None = None, **options: Any) -> Conv2D:
        """Returns a convolution, by default without bias.

        Args:
            filters: number of output channels.
            kernel_size: rows and columns of the kernel.
            name: name of the layer, which determines its rule.
            followed_by: name of the nonlinearity that follows the layer, directly or after batch normalisation.
            **options: other arguments of `Conv2D`.
        """
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
        """Returns a dense layer, by default with bias. The name determines the rule of the layer."""
        return Dense(
            units,
            kernel_regularizer=self._decay(),
            bias_regularizer=self._decay(),
            alignment=self._assignment(name),
            name=name,
            **options,
        )

    def finish(self, inputs: Any, outputs: Any, name: str) -> keras.Model:
        """Checks that every rule applies to a layer, and returns the functional model.

        Raises:
            ConfigError: if a rule matches no layer.
        """
        self._assignment.check()
        return keras.Model(inputs, outputs, name=name)

    def _decay(self) -> keras.regularizers.Regularizer | None:
        return keras.regularizers.L2(0.5 * self._weight_decay) if self._weight_decay else None
