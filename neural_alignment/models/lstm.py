"""A classifier of sequences by LSTM layers. An image is the sequence of its rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import keras
from pydantic import Field

from neural_alignment.errors import ArgumentError
from neural_alignment.models.base import MODELS, LayerSizes, ModelOptions
from neural_alignment.models.parts import Parts, Rules


def lstm(
    units: Sequence[int],
    classes: int,
    input_shape: tuple[int, ...],
    alignment: Rules = None,
    weight_decay: float = 0.0,
) -> keras.Model:
    """Builds LSTM layers and a dense layer over the last output, which returns logits.

    Layers are named `lstm1`, `lstm2` and so on, and `dense`.

    Args:
        units: units of each LSTM layer.
        classes: number of classes.
        input_shape: `(steps, features)`, or `(height, width, channels)` of an image, whose rows are the steps.
        alignment: None, one rule for all layers, or rules with patterns of layer names.
        weight_decay: coefficient of J's L2 term.

    Returns:
        A functional model, `(batch, steps, ...)` -> `(batch, classes)`.

    Raises:
        ValueError: if an example has only one axis.
        ConfigError: if a rule matches no layer.
    """
    if len(input_shape) < 2:
        raise ArgumentError("input_shape", "must have at least two axes, steps and features", tuple(input_shape))
    parts = Parts(alignment, weight_decay)
    inputs = x = keras.Input(input_shape)
    if len(input_shape) > 2:
        x = keras.layers.Reshape((input_shape[0], math.prod(input_shape[1:])))(x)
    for number, size in enumerate(units, start=1):
        x = parts.lstm(size, f"lstm{number}", return_sequences=number < len(units))(x)
    return parts.finish(inputs, parts.dense(classes, "dense")(x), "lstm")


@MODELS.register
class LSTMClassifier(ModelOptions):
    """LSTM layers over the rows of an image."""

    builder = staticmethod(lstm)
    size_keys: ClassVar[tuple[str, ...]] = ("units",)

    name: Literal["lstm"]
    units: Annotated[LayerSizes, Field(min_length=1)]
    """Units of each LSTM layer."""

    def fewest_weights(self, outputs: int, input_shape: Sequence[int]) -> int:
        """Returns the number of weights in the forward kernels."""
        sizes = [math.prod(input_shape[1:]), *self.units]
        gates = sum(4 * size * (before + size) for before, size in zip(sizes, self.units, strict=False))
        return gates + self.units[-1] * outputs
