"""Linear maps, and operations whose backward pass uses a separate kernel."""

from neural_alignment.operations.carry import carry, conv2d, matmul
from neural_alignment.operations.convolution import ConvMap, DepthwiseMap, TransposedConvMap
from neural_alignment.operations.einsum import EinsumMap
from neural_alignment.operations.linear_map import DenseMap, LinearMap

__all__ = [
    "ConvMap", "DenseMap", "DepthwiseMap", "EinsumMap", "LinearMap", "TransposedConvMap", "carry", "conv2d", "matmul",
]  # fmt: skip
