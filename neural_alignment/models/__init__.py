"""Networks of aligned layers; each builder returns a Keras functional model."""

from __future__ import annotations

import keras

from neural_alignment.models.batch_norm import FusedBatchNormalization
from neural_alignment.models.convert import Conversion, convert
from neural_alignment.models.convnet import convnet
from neural_alignment.models.fc import fc
from neural_alignment.models.parts import Rules
from neural_alignment.models.resnet import resnet
from neural_alignment.models.weight_norm import ColumnNorm, WeightNorm

__all__ = [
    "MODELS",
    "ColumnNorm",
    "Conversion",
    "FusedBatchNormalization",
    "WeightNorm",
    "build",
    "convert",
    "convnet",
    "fc",
    "resnet",
]

MODELS = {"fc": fc, "convnet": convnet, "resnet": resnet}
"""Every builder by the name it has in a configuration."""


def build(
    name: str, classes: int, input_shape: tuple[int, ...], alignment: Rules = None, **options: object
) -> keras.Model:
    """Builds the model called `name`.

    Args:
        name: a key of `MODELS`.
        classes: number of classes.
        input_shape: shape of one example.
        alignment: none, one rule for all layers, or rules with patterns of layer names.
        **options: what else the builder takes.

    Returns:
        A functional model.
    """
    return MODELS[name](classes=classes, input_shape=input_shape, alignment=alignment, **options)
