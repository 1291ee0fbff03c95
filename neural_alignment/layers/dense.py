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

    Inputs may have any rank from 2; axes between the first and the last count as space.

    Args:
        units: number of outputs.
        *args: as in `keras.layers.Dense`.
        alignment: the rule that B learns by; none for plain backpropagation and no B.
        alignment_activation: the nonlinearity that follows the layer where it is not its own `activation`.
        parameterization: "standard"; or "ntk": W is drawn from N(0, 1) unless an initialiser is given, and divided by
            sqrt(fan-in) wherever it is used, B likewise.
        **kwargs: as in `keras.layers.Dense`.

    Raises:
        ValueError: if an argument is not of its kind or cannot be combined with an alignment.
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
        """Returns the map of a matrix product."""
        return DenseMap()
