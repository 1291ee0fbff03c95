"""Dense layers with a backward kernel."""

from __future__ import annotations

import keras

from neural_alignment.layers.base import SingleKernelLayer
from neural_alignment.operations import DenseMap, EinsumMap
from neural_alignment.serialization import serializable


@serializable
class Dense(SingleKernelLayer, keras.layers.Dense):
    """`keras.layers.Dense` whose error travels back through a backward kernel `(units, inputs)`.

    Inputs must have at least rank 2. The axes between the first and the last are treated as space. The arguments are
    those of `keras.layers.Dense` and of `AlignedLayer`.
    """

    def linear_map(self) -> DenseMap:
        """Returns the linear map: a matrix product."""
        return DenseMap()


@serializable
class EinsumDense(SingleKernelLayer, keras.layers.EinsumDense):
    """`keras.layers.EinsumDense` whose error travels back through a backward kernel in the shape of the kernel.

    The arguments are those of `keras.layers.EinsumDense` and of `AlignedLayer`. The fan-in of the NTK parameterization
    is the product of the kernel's axes that the outputs do not have.
    """

    def linear_map(self) -> EinsumMap:
        """Returns the linear map of the equation."""
        return EinsumMap(self.equation)
