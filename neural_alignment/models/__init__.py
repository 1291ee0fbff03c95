"""Networks of aligned layers. Each builder returns a Keras functional model."""

from __future__ import annotations

import keras

from neural_alignment.errors import ArgumentError
from neural_alignment.models.base import MODELS, ModelOptions
from neural_alignment.models.batch_norm import BatchAxisNormalization, FusedBatchNormalization
from neural_alignment.models.convert import Conversion, convert
from neural_alignment.models.convnet import convnet
from neural_alignment.models.fc import fc
from neural_alignment.models.parts import Rules
from neural_alignment.models.resnet import resnet
from neural_alignment.models.rnn import Recurrent, rnn
from neural_alignment.models.weight_norm import ColumnNorm, WeightNorm
from neural_alignment.models.wide_cnn import wide_cnn

__all__ = [
    "MODELS",
    "BatchAxisNormalization",
    "ColumnNorm",
    "Conversion",
    "FusedBatchNormalization",
    "ModelOptions",
    "Recurrent",
    "WeightNorm",
    "build",
    "convert",
    "convnet",
    "fc",
    "resnet",
    "rnn",
    "wide_cnn",
]


def build(
    name: str, classes: int, input_shape: tuple[int, ...], alignment: Rules = None, **options: object
) -> keras.Model:
    """Builds the model called `name`.

    Args:
        name: a key of `MODELS`.
        classes: number of outputs.
        input_shape: shape of one example, without the batch.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        **options: other arguments of the builder.

    Returns:
        A functional model.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in MODELS:
        raise ArgumentError("name", f"must be one of {', '.join(MODELS)}", name, "name='fc'")
    return MODELS[name].builder(classes=classes, input_shape=input_shape, alignment=alignment, **options)
