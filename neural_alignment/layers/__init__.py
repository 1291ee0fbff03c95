"""Keras layers with the argument `alignment`."""

import keras

from neural_alignment.layers.base import AlignedLayer
from neural_alignment.layers.convolution import Conv2D
from neural_alignment.layers.dense import Dense

__all__ = ["ALIGNED_FORMS", "AlignedLayer", "Conv2D", "Dense"]

ALIGNED_FORMS = {keras.layers.Dense: Dense, keras.layers.Conv2D: Conv2D}
"""Maps each native layer to its aligned form, for `models.convert`."""
