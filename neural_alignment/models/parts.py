"""Creates aligned layers with the initializers and the weight decay that all models share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from neural_alignment.alignments import Alignment, Assignment
from neural_alignment.errors import ArgumentError
from neural_alignment.layers import LSTM, Conv2D, Dense, MultiHeadAttention

Rules = Alignment | Sequence[Alignment] | None
"""The argument `alignment` of a model: None, one rule for all layers, or rules with patterns of layer names."""


class Parts:
    """Creates the layers of one model.

    By default, kernels of convolutions are drawn from a truncated normal distribution with variance 1 / fan-in, kernels
    of dense layers from the Glorot uniform distribution, and biases are 0. The weight decay, which is a part of J, is
    1/2 `weight_decay` times the sum of squares of the forward kernels and the biases of dense and recurrent layers.

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
            alignment=self._assignment(name),
            alignment_activation=followed_by,
            name=name,
            **{**self.decay("kernel"), **defaults, **options},
        )

    def dense(self, units: int, name: str, **options: Any) -> Dense:
        """Returns a dense layer, by default with bias. The name determines the rule of the layer."""
        decay = self.decay("kernel", "bias")
        return Dense(units, alignment=self._assignment(name), name=name, **decay, **options)

    def attention(self, heads: int, size: int, name: str, **options: Any) -> MultiHeadAttention:
        """Returns an attention layer. The name determines the rule of its four kernels.

        Args:
            heads: number of heads.
            size: features of queries, keys and values of a head.
            name: name of the layer.
            **options: other arguments of `MultiHeadAttention`.
        """
        decay = self.decay("kernel", "bias")
        return MultiHeadAttention(heads, size, alignment=self._assignment(name), name=name, **decay, **options)

    def lstm(self, units: int, name: str, **options: Any) -> LSTM:
        """Returns an LSTM layer. The name determines the rule of its two kernels."""
        decay = self.decay("kernel", "recurrent", "bias")
        return LSTM(units, alignment=self._assignment(name), name=name, **decay, **options)

    def decay(self, *kinds: str) -> dict[str, keras.regularizers.Regularizer | None]:
        """Returns the arguments of a layer for weight decay, such as `bias_regularizer` for the kind "bias"."""
        coefficient = 0.5 * self._weight_decay
        return {f"{kind}_regularizer": keras.regularizers.L2(coefficient) if coefficient else None for kind in kinds}

    def finish(self, inputs: Any, outputs: Any, name: str) -> keras.Model:
        """Checks that every rule applies to a layer, and returns the functional model.

        Raises:
            ConfigError: if a rule matches no layer.
        """
        self._assignment.check()
        return keras.Model(inputs, outputs, name=name)
