"""Keras layers with the argument `alignment`."""

from neural_alignment.layers.base import AlignedLayer
from neural_alignment.layers.convolution import Conv2D
from neural_alignment.layers.dense import Dense

__all__ = ["AlignedLayer", "Conv2D", "Dense"]
