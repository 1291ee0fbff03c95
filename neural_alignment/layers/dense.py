"""The dense layer with a backward kernel."""

from __future__ import annotations

from typing import Any, Literal

import keras

from neural_alignment.alignments import Alignment
from neural_alignment.layers.base import AlignedLayer, with_initializer
from neural_alignment.operations import DenseMap
from neural_alignment.serialization import serializable


@serializable
class Dense(AlignedLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose error travels back through a backward kernel.

    It maps `(batch, ..., inputs)` to `(batch, ..., units)`. The axes between the first and the last are treated as
    spatial axes. The backward kernel has the shape `(units, inputs)`.

    Args:
        units: number of output units.
        *args: as in `keras.layers.Dense`.
        alignment: the rule of the layer. None means plain backpropagation; the layer then has no B.
        alignment_activation: the nonlinearity that follows the layer, if it is not the layer's `activation`.
        parameterization: "standard" or "ntk". With "ntk" W is drawn from N(0, 1) unless an initializer is given, and W
            and B are divided by sqrt(fan-in) when the layer uses them.
        **kwargs: as in `keras.layers.Dense`.

    Raises:
        ValueError: if an argument has a wrong type or cannot be combined with an alignment.
    """

    def __init__(
        self,
        units: int,
        *args: Any,
        alignment: Alignment | None = None,
        alignment_activation: Any = None,
        parameterization: Literal["standard", "ntk"] = "standard",
        **kwargs: Any,
    ):
        super().__init__(units, *args, **with_initializer(kwargs, parameterization, given=len(args) > 2))
        self._set_alignment(alignment, alignment_activation, parameterization)

    def linear_map(self) -> DenseMap:
        """Returns the linear map: a matrix product."""
        return DenseMap()
